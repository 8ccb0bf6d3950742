"""A store and a dataset that the tests of searches share, and what they read from a ranking."""

import os
import shutil

import numpy as np
from PIL import Image

from raysnap.config.parts import ShapesConfig
from raysnap.models.block_facts import block_shapes
from raysnap.search.candidates import find_candidates
from raysnap.search.plan.rungs import plan_rungs
from raysnap.search.plan.tree import build_tree, needed_nodes
from raysnap.store.store import Store

SMALL = "mobilenet_v3_small"
SHAPES = ShapesConfig(image_size=32, num_train=48, num_val=24, num_test=8)
DATA = "shapes-colour-a"
VARIANTS = {"base": (0, 0), "head": (1, 0), "one": (2, 1), "two": (3, 2), "three": (4, 3), "also-three": (5, 3)}
METHODS = ("baseline", "shared", "shift", "alsatian", "nested")


def lines(result):
    """Return the ranking as plain values, everything but the rank."""
    return [(one.snapshot, one.score, one.num_train, one.num_test, one.tied_with_best) for one in result.ranking]


def rungs_of(store, result):
    """Yield for each rung of a halving the nodes it needed and the items it ran, from the ranking alone."""
    candidates = find_candidates(store, None, None)
    tree = build_tree(candidates, sharing=True)
    number_of = {one.snapshot: number for number, one in enumerate(candidates)}
    for rung in plan_rungs(result.method, len(candidates), SHAPES.num_train, SHAPES.num_val):
        alive = [number_of[one.snapshot] for one in result.ranking if one.num_train >= rung.train_stop]
        num_items = rung.train_stop - rung.train_start + rung.test_stop - rung.test_start
        yield [tree.nodes[index] for index in needed_nodes(tree, alive)], num_items


def flops_of(nodes):
    return sum(block_shapes(n.architecture, n.preprocessing.image_size)[n.block_index].flops for n in nodes)


def copy_store(store, tmp_path):
    """Return a store of the same files, and the ids by name."""
    shutil.copytree(store.path, tmp_path / "copy", copy_function=os.link)
    copy = Store.open(tmp_path / "copy")
    return copy, copy.refs()


def flip_a_bit(store, snapshot, block_index):
    digest = store.manifest(snapshot).blocks[block_index].digest
    path = store.path / "objects" / digest[:2] / digest
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)
    return digest


def draw_photos(root, num_by_class, size=(40, 32)):
    rng = np.random.default_rng(0)
    for name, num_images in num_by_class.items():
        (root / "train" / name).mkdir(parents=True)
        for number in range(num_images):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "train" / name / f"{number}.png")
    return root
