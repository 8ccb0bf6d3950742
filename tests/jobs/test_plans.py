"""A job is planned once: by the command line, which hands the plan on, or by the job itself when called from Python."""

from contextlib import nullcontext
from pathlib import Path

import pytest

import raysnap.bench.cells
import raysnap.bench.run_bench
import raysnap.cli.job_commands
import raysnap.cli.search_commands
import raysnap.jobs.generate
import raysnap.jobs.sweep
import raysnap.jobs.synthesize
import raysnap.planning.generate
import raysnap.planning.sweep
import raysnap.planning.synthetic
from raysnap.cli.app import main
from raysnap.config.bench import BenchConfig
from raysnap.config.jobs import GenerateConfig, SynthesizeConfig
from raysnap.config.load import dump_yaml
from raysnap.config.sweep import SweepConfig
from raysnap.jobs.job import Job

RECIPE = {"architectures": ["resnet18"], "num_snapshots": 3, "num_classes": 4, "image_size": 32}
PLANNERS = {
    "generate": (raysnap.planning.generate, "plan_generate", raysnap.jobs.generate),
    "quickstart": (raysnap.planning.generate, "plan_generate", raysnap.jobs.generate),
    "sweep": (raysnap.planning.sweep, "plan_sweep", raysnap.jobs.sweep),
    "synthesize": (raysnap.planning.synthetic, "plan_synthesize", raysnap.jobs.synthesize),
    "bench": (raysnap.bench.cells, "plan_bench", raysnap.bench.run_bench),
}


class Started(Exception):
    """Ends a job right after its planning."""


def start(*args, **options):
    raise Started


def quiet(*progress) -> None:
    pass


@pytest.fixture
def planned(monkeypatch) -> list[str]:
    """Return the plans that are made; every job ends after its planning."""
    made: list[str] = []
    for module, name, job in set(PLANNERS.values()):
        make = getattr(module, name)

        def count(config, make=make, name=name):
            made.append(name)
            return make(config)

        monkeypatch.setattr(module, name, count)
        monkeypatch.setattr(job, name, count)
    for commands in (raysnap.cli.job_commands, raysnap.cli.search_commands):
        monkeypatch.setattr(commands, "job_session", lambda *config, **options: nullcontext((None, quiet)))
    monkeypatch.setattr(Job, "open", start)
    for module in (raysnap.jobs.synthesize, raysnap.bench.run_bench):
        monkeypatch.setattr(module, "lock_run", start)
    return made


def config_of(verb: str, directory: Path):
    places = {"run_dir": directory / "run", "store": directory / "store"}
    trained = {"datasets": ["shapes-shape-a"], "data_dir": directory / "data", "image_size": 32}
    match verb:
        case "generate":
            return GenerateConfig.model_validate(places | trained | {"num_snapshots": 1})
        case "sweep":
            return SweepConfig.model_validate(places | trained | {"space": {"train.lr": {"grid": [0.1, 0.01]}}})
        case "synthesize":
            return SynthesizeConfig.model_validate(places | {"num_snapshots": 2})
        case "bench":
            sets = {"store": "made", "synthetic_sets": {"made": RECIPE}, "synthetic_dir": directory / "synthetic"}
            return BenchConfig.model_validate(trained | sets | {"run_dir": directory / "run"})


@pytest.mark.parametrize("verb", PLANNERS)
def test_the_command_line_plans_once_and_hands_the_plan_on(planned, tmp_path, capsys, verb):
    if verb == "quickstart":
        arguments = ["--dir", str(tmp_path / "quickstart")]
    else:
        (tmp_path / "job.yaml").write_text(dump_yaml(config_of(verb, tmp_path)))
        arguments = [str(tmp_path / "job.yaml")]
    main([verb, *arguments])
    assert "unexpected Started" in capsys.readouterr().err
    assert planned == [PLANNERS[verb][1]]


@pytest.mark.parametrize("verb", ["generate", "sweep", "synthesize", "bench"])
def test_a_job_called_from_python_plans_itself_once(planned, tmp_path, verb):
    job = getattr(PLANNERS[verb][2], verb)
    with pytest.raises(Started):
        job(config_of(verb, tmp_path), on_progress=quiet)
    assert planned == [PLANNERS[verb][1]]


@pytest.mark.parametrize("verb", ["generate", "sweep", "synthesize", "bench"])
def test_a_plan_that_is_handed_over_is_not_made_again(planned, tmp_path, verb):
    module, name, job_module = PLANNERS[verb]
    config = config_of(verb, tmp_path)
    plan = getattr(module, name)(config)
    planned.clear()
    with pytest.raises(Started):
        getattr(job_module, verb)(config, plan=plan, on_progress=quiet)
    assert planned == []
