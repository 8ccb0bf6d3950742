"""Synthetic snapshots: as many as asked for, reproducible, and only their own blocks take space."""

import json
from pathlib import Path

import pytest

from raysnap.cli.app import main
from raysnap.config.jobs import SynthesizeConfig
from raysnap.errors import ArchitectureError, ConfigError, WeightsError
from raysnap.jobs.synthesize import synthesize
from raysnap.runs.json_fields import read_rows
from raysnap.store.store import Store


def job(directory: Path, **changes) -> SynthesizeConfig:
    settings = {"run_dir": directory / "run", "store": directory / "store", "num_snapshots": 12, "num_classes": 3}
    return SynthesizeConfig.model_validate(settings | changes)


def run(config: SynthesizeConfig, resume: bool = False):
    return synthesize(config, resume=resume, on_progress=lambda *progress: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = job(tmp_path_factory.mktemp("synthesize"))
    return config, run(config)


def test_there_are_as_many_distinct_snapshots_as_asked_for(finished):
    config, summary = finished
    store = Store.open(config.store)
    assert len(set(summary.snapshots)) == 12
    assert {manifest.id for manifest in store.manifests()} == set(summary.snapshots)
    assert sum(manifest.base is None for manifest in store.manifests()) == 1
    assert store.verify()["ok"]


def test_a_snapshot_is_its_parent_under_fresh_top_blocks(finished):
    config, _ = finished
    store = Store.open(config.store)
    parents = set()
    for manifest in store.manifests("base is not None"):
        parent = store.manifest(manifest.base)
        parents.add(parent.id)
        shared = [a.digest == b.digest for a, b in zip(manifest.blocks, parent.blocks, strict=True)]
        num_kept = 9 - manifest.retrain_index
        assert shared == [True] * num_kept + [False] * (10 - num_kept)
    assert len(parents) > 1, "parents are picked among those already made"


def test_the_store_takes_hardly_more_than_the_unique_blocks(finished):
    config, _ = finished
    store = Store.open(config.store)
    unique = {block.digest: block.num_bytes for manifest in store.manifests() for block in manifest.blocks}
    on_disk = sum(path.stat().st_size for path in config.store.rglob("*") if path.is_file())
    assert sum(unique.values()) < on_disk <= 1.02 * sum(unique.values())


def test_a_head_alone_adds_under_two_percent(tmp_path):
    config = job(tmp_path, num_snapshots=2, retrain={"distribution": "fixed", "values": [0]})
    run(config)
    row = read_rows(config.run_dir / "results.jsonl")[1]
    assert row["retrain_index"] == 0
    assert row["new_bytes"] < 0.02 * row["snapshot_bytes"]


def test_equal_seeds_give_equal_snapshots_and_other_seeds_others(finished, tmp_path):
    _, summary = finished
    assert run(job(tmp_path / "again")).snapshots == summary.snapshots
    assert not set(run(job(tmp_path / "other", seed=1, num_snapshots=3)).snapshots) & set(summary.snapshots)


def test_a_run_that_was_cut_short_goes_on_to_the_same_snapshots(finished, tmp_path):
    _, summary = finished
    config = job(tmp_path)
    run(config)
    path = config.run_dir / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:30])
    with pytest.raises(ConfigError, match="add --resume"):
        run(config)
    assert run(config, resume=True).snapshots == summary.snapshots
    assert len(read_rows(path)) == 12


def test_the_base_can_be_everyones_parent(tmp_path):
    config = job(tmp_path, parent="base", num_snapshots=4, architectures=["resnet18", "mobilenet_v3_small"])
    run(config)
    store = Store.open(config.store)
    bases = {manifest.id: manifest.architecture for manifest in store.manifests("base is None")}
    assert sorted(bases.values()) == ["mobilenet_v3_small", "resnet18"]
    assert all(bases[m.base] == m.architecture for m in store.manifests("base is not None"))


def test_a_file_of_weights_can_be_the_base(finished, tmp_path):
    config, summary = finished
    weights_path = tmp_path / "weights.pth"
    assert main(["store", "export", summary.snapshots[0], "--to", str(weights_path), "--store", str(config.store)]) == 0
    other = job(tmp_path, num_snapshots=2, base={"weights": str(weights_path)})
    assert run(other).snapshots[0] == summary.snapshots[0]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"architectures": ["resnet_18"]}, ArchitectureError),
        ({"base": {"weights": "nowhere.pth"}}, WeightsError),
        ({"retrain": {"distribution": "fixed", "values": [9]}}, ConfigError),
    ],
)
def test_impossible_jobs_are_refused_before_any_write(tmp_path, changes, error):
    with pytest.raises(error):
        run(job(tmp_path, **changes))
    assert not list(tmp_path.iterdir())


def test_the_command_prints_the_keys_that_scripts_rely_on(tmp_path, capsys):
    path = tmp_path / "job.yaml"
    path.write_text("kind: synthesize\nnum_snapshots: 2\nnum_classes: 3\n")
    places = [f"run_dir={tmp_path / 'run'}", f"store={tmp_path / 'store'}"]
    assert main(["synthesize", str(path), *places, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {"run_dir", "num_trials", "num_done", "num_failed", "snapshots"} <= answer.keys()
    assert answer["num_done"] == len(answer["snapshots"]) == 2
