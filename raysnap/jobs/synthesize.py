"""Synthetic snapshots: parts of a base under freshly initialised top blocks, for measuring stores and searches.

Nothing is trained and no parent's weights are read: a snapshot is its parent's digests and some new blocks. Each one
derives from the seed and its number alone, so a run that was cut short goes on where it stopped.
"""

from __future__ import annotations

import time
from typing import Any

from raysnap.config.jobs import SynthesizeConfig
from raysnap.jobs.bases import store_base
from raysnap.jobs.summary import JobSummary
from raysnap.models.block_facts import block_shapes, num_body_blocks
from raysnap.models.blocks import random_tensors
from raysnap.planning.generate import check_weights
from raysnap.planning.synthetic import Descent, draw_descents
from raysnap.progress import OnProgress
from raysnap.runs.run_directory import RunDirectory, check_run_dir
from raysnap.store.manifest import Manifest, Preprocessing
from raysnap.store.store import Store
from raysnap.system import utc_timestamp
from raysnap.training.trial import derive_seed


def check_plan(config: SynthesizeConfig) -> None:
    """Passes when the job can be started; nothing is written.

    Raises:
        RaysnapError: an architecture or the base's weights are not to be had.
    """
    draw_descents(config)
    store = Store.open(config.store) if config.store.exists() else None
    for architecture in config.architectures:
        block_shapes(architecture, config.image_size)
        check_weights(config.base.weights, architecture, store)


def synthesize(config: SynthesizeConfig, *, resume: bool = False, on_progress: OnProgress) -> JobSummary:
    """Puts `num_snapshots` distinct snapshots into the store, each architecture's base among them.

    Architectures take turns. Each further snapshot takes a parent among those already made of its architecture (or
    always the base), and gets the last `r` blocks and the head anew.

    Raises:
        RaysnapError: the job can't be started, or the store can't be written.
    """
    check_plan(config)
    check_run_dir(config, config.run_dir, resume=resume)
    store = Store.open(config.store, create=True)
    run = RunDirectory.open(config, config.run_dir, resume=resume)
    started, started_s = utc_timestamp(), time.perf_counter()
    made: list[Manifest] = []
    known = {row["trial"]: row["snapshot"] for row in run.rows()}
    for descent in draw_descents(config):
        name = _name(descent)
        on_progress("synthesize", descent.number, config.num_snapshots, name)
        if name in known:
            made.append(store.manifest(known[name]))
            continue
        new_bytes = 0
        if descent.parent is None:
            made.append(_base(store, config, descent.architecture))
        else:
            manifest, new_bytes = _derive(store, config, descent, made[descent.parent])
            made.append(manifest)
        run.add_row(_row(name, made[-1], new_bytes))
    on_progress("synthesize", config.num_snapshots, config.num_snapshots, "done")
    wall_s = time.perf_counter() - started_s
    run.write_env(config.seed, started, wall_s, {"synthesize": wall_s})
    snapshots = [manifest.id for manifest in made]
    return JobSummary(str(run.path), config.num_snapshots, config.num_snapshots, 0, snapshots, [])


def _name(descent: Descent) -> str:
    if descent.parent is None:
        return f"base-{descent.architecture}-synthetic"
    return f"{descent.number + 1:03d}-{descent.architecture}-synthetic-r{descent.retrain_index}"


def _base(store: Store, config: SynthesizeConfig, architecture: str) -> Manifest:
    seed = derive_seed(config.seed, "base", architecture)
    preprocessing = Preprocessing.cropping(config.image_size)
    return store.manifest(store_base(store, config.base.weights, architecture, config.num_classes, seed, preprocessing))


def _derive(store: Store, config: SynthesizeConfig, descent: Descent, parent: Manifest) -> tuple[Manifest, int]:
    """A snapshot with its parent's blocks but for the last `retrain_index` and the head, and the bytes it added."""
    num_kept = 1 + num_body_blocks(parent.architecture) - descent.retrain_index
    fresh = random_tensors(parent.architecture, config.num_classes, descent.seed)
    written = store.put_snapshot(
        architecture=parent.architecture,
        blocks=[*((block.name, block.digest) for block in parent.blocks[:num_kept]), *fresh[num_kept:]],
        num_classes=config.num_classes,
        base=parent.id,
        retrain_index=descent.retrain_index,
        preprocessing=parent.preprocessing,
        trial=_name(descent),
        name=_name(descent),
    )
    return written.manifest, written.new_bytes


def _row(name: str, manifest: Manifest, new_bytes: int) -> dict[str, Any]:
    return {
        "trial": name,
        "role": "synthetic",
        "status": "done",
        "error": None,
        "architecture": manifest.architecture,
        "dataset": None,
        "retrain_index": manifest.retrain_index,
        "num_blocks": num_body_blocks(manifest.architecture),
        "snapshot": manifest.id,
        "base": manifest.base,
        "metrics": {},
        "new_bytes": new_bytes,
        "snapshot_bytes": manifest.num_bytes,
        "finished": utc_timestamp(),
    }
