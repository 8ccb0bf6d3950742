"""What a process does before it imports torch: it plans the search, and can decode the images."""

import json
import shutil
import subprocess
import sys

import pytest

from raysnap.search.candidates import find_candidates
from raysnap.search.plan.tree import build_tree
from tests.support.search_stores import PREPROCESSING
from tests.support.searches import DATA, SHAPES, lines

pytestmark = [pytest.mark.usefixtures("single_thread"), pytest.mark.xdist_group("searches")]

PLAN = """
import json, sys
sys.modules["torch"] = None  # importing it fails
from raysnap.config.search_options import SearchOptions
from raysnap.search.engine.setup import Setup
from raysnap.search.narrowing import Field
from raysnap.search.plan.rungs import plan_rungs
from raysnap.search.plan.tree import build_tree
from raysnap.store.store import Store

setup = Setup(sys.argv[1], sys.argv[2], SearchOptions())
store, dataset = Store.open(sys.argv[1]), setup.open_dataset()
candidates = Field(store, setup.options, store.summaries()).first_round()
tree = build_tree(candidates, sharing=True)
drawn = setup.draw_items(dataset, candidates)
rungs = plan_rungs("nested", len(candidates), len(drawn.train), len(drawn.test))
items = drawn.decode(len(drawn.train), len(drawn.test))
print(json.dumps([[one.snapshot for one in candidates], len(tree.nodes), rungs[-1].train_stop, items.num_decoded]))
"""
SEARCH = """
import json, sys
from raysnap.search import search
told = []
result = search(
    sys.argv[1],
    sys.argv[2],
    method="shared",
    time_budget_s=float(sys.argv[3]) if sys.argv[3:] else None,
    on_progress=lambda stage, num_done, num_all, note: told.append(f"{stage} {num_done}/{num_all}"),
)
ranking = [(line.snapshot, line.score) for line in result.ranking]
print(json.dumps([ranking, result.work, "start" in result.timings_s, told]))
"""


@pytest.fixture
def photos(data_dir, tmp_path):
    """Return a copy of the dataset of which nothing is decoded."""
    shutil.copytree(data_dir / DATA, tmp_path / "photos", ignore=shutil.ignore_patterns(".raysnap"))
    return tmp_path / "photos"


def run(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_search_is_planned_and_decoded_without_torch(resnets, photos):
    candidates = find_candidates(resnets, None, None)
    tree = build_tree(candidates, sharing=True)  # from here on, the facts about blocks are in the user's cache
    assert all(candidate.preprocessing == PREPROCESSING for candidate in candidates)
    done = run(PLAN, resnets.path, photos)
    expected = [[one.snapshot for one in candidates], len(tree.nodes), SHAPES.num_train]
    assert json.loads(done.stdout or "null") == [*expected, SHAPES.num_train + SHAPES.num_val], done.stderr


def test_a_fresh_process_answers_like_one_that_has_torch(find, resnets, photos):
    known = find(resnets, method="shared")
    done = run(SEARCH, resnets.path, photos)
    ranking, work, has_start, told = json.loads(done.stdout)
    assert [snapshot for snapshot, _ in ranking] == [line[0] for line in lines(known)]
    assert [score for _, score in ranking] == pytest.approx([line[1] for line in lines(known)], abs=1e-6)
    assert work["images_decoded"] == SHAPES.num_train + SHAPES.num_val and has_start
    assert told[:4] == ["search/libraries 0/1", "data 0/1", "data 1/1", "search/libraries 1/1"]


def test_a_time_budget_says_what_to_decode_once_torch_is_there(resnets, photos):
    done = run(SEARCH, resnets.path, photos, 600)
    *_, told = json.loads(done.stdout)
    assert told[:4] == ["search/libraries 0/1", "search/libraries 1/1", "data 0/1", "data 1/1"]


def test_too_many_bad_images_are_an_error_in_a_fresh_process(resnets, photos):
    for path in sorted((photos / "train").rglob("*.jpg"))[:20]:
        path.write_bytes(b"no image")
    done = run(SEARCH, resnets.path, photos)
    assert done.returncode == 1 and "images are bad" in done.stderr
