"""Commands that fine-tune: what they print and refuse before Ray starts."""

from raysnap.cli.app import main
from raysnap.runs.run_directory import RunDirectory, lock_run
from tests.support.cli_commands import listing, run_json, run_text


def test_a_dry_run_lists_the_trials_and_writes_nothing(here, capsys):
    before = listing(here)
    document = run_json(capsys, "generate", "job.yaml", "--dry-run", "base.pretraining.dataset=pets")
    assert (document["num_trials"], len(document["trials"])) == (3, 3)
    assert [trial["role"] for trial in document["trials"]] == ["base", "finetune", "finetune"]
    out = run_text(capsys, "generate", "job.yaml", "--dry-run", "datasets=[pets, shapes-shape-a]")
    assert "002-resnet18-shapes-shape-a-r" in out
    assert "2\u00a0fine-tunes and 1\u00a0base, " in out and "Nothing was written." in out
    assert "To be drawn first: shapes-shape-a" in out and "of new blocks; copies would take" in out
    assert listing(here) == before


def test_a_dry_run_says_what_trials_take_of_a_gpu(here, capsys, monkeypatch):
    monkeypatch.setenv("RAYSNAP_PRETEND_GPU_BYTES", "4000000000")
    arguments = ("generate", "job.yaml", "--dry-run", "retrain.distribution=fixed", "retrain.values=[0, 8]")
    shallow, deep = run_json(capsys, *arguments, "resources.pack_gpus=true")["forecast"]["gpu_kinds"]
    assert (shallow["retrain_index"], deep["retrain_index"], deep["num_trials"]) == (0, 8, 1)
    assert 600 * 2**20 < shallow["peak_bytes"] < deep["peak_bytes"] < 1e9
    assert shallow["per_gpu"] >= deep["per_gpu"] == 4_000_000_000 * 100 // (110 * deep["peak_bytes"])
    out = run_text(capsys, *arguments, "resources.pack_gpus=true")
    assert "trials per GPU" in out and "0 to 8" in out
    assert "GPU memory" not in run_text(capsys, *arguments, "resources.gpus=0")


def test_a_dry_run_refuses_trials_too_large_for_a_gpu(here, capsys, monkeypatch):
    monkeypatch.setenv("RAYSNAP_PRETEND_GPU_BYTES", "600000000")
    assert main(["generate", "job.yaml", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "is forecast to take" in error and "found GPUs of at most 600" in error and "micro_batch_size" in error
    assert main(["generate", "job.yaml", "--dry-run", "resources.gpus=0"]) == 0


def test_a_dry_run_of_a_sweep_shows_its_points(here, capsys):
    before = listing(here)
    document = run_json(capsys, "sweep", "sweep.yaml", "--dry-run", "train.optimizer=sgd")
    assert [trial["train"]["lr"] for trial in document["trials"] if trial["role"] == "finetune"] == [1e-3, 1e-2]
    (_, alone) = run_json(capsys, "sweep", "sweep.yaml", "--dry-run", "space={}", "train.lr=1e-2")["trials"]
    assert alone["train"]["lr"] == 0.01
    out = run_text(capsys, "sweep", "sweep.yaml", "--dry-run")
    assert out.splitlines()[:3] == ["trial  lr", "001    0.001", "002    0.01"]
    assert "Nothing was written." in out
    assert listing(here) == before


def test_a_run_that_was_begun_is_refused_before_ray_starts(here, capsys):
    from raysnap.config.jobs import GenerateConfig
    from raysnap.config.load import load_config

    config = load_config(here / "job.yaml", [], GenerateConfig)
    with lock_run(config, here / "runs/generate", resume=False) as lock:
        RunDirectory.open(config, lock, resume=False)
    before = listing(here)
    assert main(["generate", "job.yaml"]) == 2
    assert "already holds a run; add --resume to finish it" in capsys.readouterr().err
    assert main(["generate", "job.yaml", "--resume", "seed=4"]) == 2
    assert "seed: the run was started with 0, found 4" in capsys.readouterr().err
    assert listing(here) == before
