"""Synthetic snapshots: parts of a base under freshly initialised top blocks, for measuring stores and searches.

Nothing is trained and no parent's weights are read: a snapshot is its parent's digests and some new blocks. Each one
follows from the seed and its number only, so an interrupted run can be resumed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from raysnap.config.choices import Role, Status
from raysnap.config.jobs import SynthesizeConfig
from raysnap.jobs.bases import store_base
from raysnap.jobs.data import put_tokenizer
from raysnap.jobs.summary import JobSummary
from raysnap.models.architecture import label
from raysnap.models.block_facts import num_body_blocks
from raysnap.models.blocks import random_tensors
from raysnap.planning.generate import weights_preprocessing
from raysnap.planning.synthetic import Descent, plan_synthesize
from raysnap.progress import OnProgress, ignore_progress
from raysnap.runs.run_directory import RunDirectory, lock_run
from raysnap.runs.trial_rows import TrialRow
from raysnap.store.manifest import Manifest
from raysnap.store.preprocessing import Preprocessing
from raysnap.store.store import Store
from raysnap.system import utc_timestamp
from raysnap.training.trial import derive_seed


def synthesize(
    config: SynthesizeConfig,
    *,
    plan: Sequence[Descent] | None = None,
    resume: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> JobSummary:
    """Put `num_snapshots` distinct snapshots into the store, each architecture's base among them.

    >>> job = raysnap.SynthesizeConfig(
    ...     architectures=["mobilenet_v3_small"], num_snapshots=2, image_size=32, store="made", run_dir="runs/made"
    ... )
    >>> len(raysnap.synthesize(job).snapshots)
    2

    Architectures take turns. Each further snapshot has a parent among those already made of its architecture (or
    always the base); its last `r` blocks and its head are re-initialised.

    Args:
        plan: what `plan_synthesize(config)` returned; planned here where it is None.

    Raises:
        RaysnapError: the job can't be started, or the store can't be written.
    """
    plan = plan_synthesize(config) if plan is None else plan
    with lock_run(config, config.run_dir, resume=resume) as lock:
        store = Store.open(config.store, create=True)
        run = RunDirectory.open(config, lock, resume=resume)
        return _synthesize(config, plan, store, run, on_progress)


def _synthesize(
    config: SynthesizeConfig, plan: Sequence[Descent], store: Store, run: RunDirectory, on_progress: OnProgress
) -> JobSummary:
    started, started_s = utc_timestamp(), time.perf_counter()
    made: list[Manifest] = []
    renamed: dict[str, str] = {}
    known = {row.trial: row.snapshot for row in run.trial_rows()}
    for descent in plan:
        name = _name(descent)
        on_progress("synthesize", descent.number, config.num_snapshots, name)
        snapshot = known.get(name)
        if snapshot is not None:
            made.append(store.manifest(snapshot))
            continue
        new_bytes = 0
        if descent.parent is None:
            made.append(_base(store, config, descent.architecture))
        else:
            manifest, new_bytes = _derive(store, config, descent, made[descent.parent])
            made.append(manifest)
            if (given := store.give_name(name, manifest.id)) != name:
                renamed[name] = given
        run.add_row(_row(name, made[-1], new_bytes).as_json())
    on_progress("synthesize", config.num_snapshots, config.num_snapshots, "done")
    wall_s = time.perf_counter() - started_s
    run.write_env(config.seed, started, wall_s, {"synthesize": wall_s})
    snapshots = [manifest.id for manifest in made]
    return JobSummary(str(run.path), config.num_snapshots, config.num_snapshots, 0, snapshots, [], renamed)


def _name(descent: Descent) -> str:
    name = label(descent.architecture)
    if descent.parent is None:
        return f"base-{name}-synthetic"
    return f"{descent.number + 1:03d}-{name}-synthetic-r{descent.retrain_index}"


def _base(store: Store, config: SynthesizeConfig, architecture: str) -> Manifest:
    seed = derive_seed(config.seed, "base", architecture)
    own = weights_preprocessing(config.base.weights, architecture, store, config.base.tokenizer)
    put_tokenizer(store, config.base.tokenizer, architecture, own)
    preprocessing = own.sized(config.image_size) if own else Preprocessing.cropping(config.image_size)
    return store.manifest(store_base(store, config.base.weights, architecture, config.num_classes, seed, preprocessing))


def _derive(store: Store, config: SynthesizeConfig, descent: Descent, parent: Manifest) -> tuple[Manifest, int]:
    """Store a snapshot whose last `retrain_index` blocks and head differ from its parent's; return the bytes added."""
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
    )
    return written.manifest, written.new_bytes


def _row(name: str, manifest: Manifest, new_bytes: int) -> TrialRow:
    return TrialRow(
        trial=name,
        role=Role.SYNTHETIC,
        status=Status.DONE,
        architecture=manifest.architecture,
        retrain_index=manifest.retrain_index,
        num_blocks=num_body_blocks(manifest.architecture),
        snapshot=manifest.id,
        base=manifest.base,
        new_bytes=new_bytes,
        snapshot_bytes=manifest.num_bytes,
        finished=utc_timestamp(),
    )
