"""The command line: exit codes, one line per error, one document per `--json`, nothing written on bad input."""

import json
import logging
import os
import subprocess
import sys

import pytest
import torch

from raysnap.cli.app import app, main
from raysnap.config.load import find_config, load_config
from raysnap.progress import ignore_progress, show_progress
from raysnap.runs.run_directory import RunDirectory
from raysnap.store.store import Store
from raysnap.system import package_version
from tests.support.cli_commands import listing, make_dataset, process, run_json, run_text

MILLION = ("lr", "epochs", "batch_size")

# Features that an earlier test kept would leave nothing to run.
UNCACHED = ["search", "--data", "pets", "--feature-cache", "0"]

MISTAKES = [
    (["serch"], "No such command 'serch'. Did you mean 'search'"),
    (["store", "lss"], "No such command 'lss'. Did you mean 'ls'?"),
    (["data", "prepar"], "Did you mean 'prepare'?"),
    (["store"], "Missing command; see `raysnap store --help`"),
    (["generate"], "Missing argument 'CONFIG'; see `raysnap generate --help`"),
    (["search"], "Missing option '--data'; see `raysnap search --help`"),
    (["search", "--dta", "x"], "No such option: --dta"),
    (["store", "ls", "extra"], "unexpected extra argument"),
    (["search", "--data", "pets", "--method", "alsation"], "'alsation' is not one of 'auto'"),
    (["search", "--data", "pets", "--num-train", "many"], "Invalid value for '--num-train'"),
    (["search", "--data", "pets", "--num-train", "-1"], "Invalid value for '--num-train'"),
    (["search", "--data", "pets", "--image-size", "1"], "Invalid value for '--image-size'"),
    (["generate", "missing.yaml"], "missing.yaml: can't be read as a configuration file: No such file"),
    (["generate", "store"], "store: can't be read as a configuration file: Is a directory"),
    (["generate", "a-file"], "a-file: expected `key: value` lines, found str"),
    (["generate", "job.yaml", "epochs=3"], "epochs: unknown key; did you mean 'train.epochs'?"),
    (["generate", "job.yaml", "train.epocs=3"], "train.epocs: unknown key; did you mean 'epochs'?"),
    (["generate", "job.yaml", "nonsense"], "'nonsense': expected key=value, for example train.epochs=3"),
    (["generate", "job.yaml", "train.lr=fast"], "train.lr: expected a number, found 'fast'"),
    (["generate", "job.yaml", "run_dir=a-file"], "run_dir a-file: expected a folder, found the file"),
    (["generate", "job.yaml", "run_dir=a-file/run"], "run_dir a-file/run: expected a folder, found the file"),
    (["generate", "job.yaml", "store=a-file"], "a-file: expected a store's folder, found a file"),
    (["generate", "job.yaml", "store=data"], "data: expected a model store, found a folder without store.json"),
    (["generate", "job.yaml", "data_dir=a-file"], "data_dir a-file: expected a folder, found a file"),
    (["generate", "job.yaml", "datasets=[pet]"], "did you mean 'pets'?"),
    (["generate", "job.yaml", "datasets=[empty]"], "expected a folder train/"),
    (["generate", "job.yaml", "datasets=[single]"], "train/cat: expected at least 2 images, found 1 image"),
    (["generate", "job.yaml", "datasets=[food-101]"], "run `raysnap data prepare food-101 --source PATH`"),
    (["generate", "job.yaml", "architectures=[resnet19]"], "did you mean 'resnet18'?"),
    (["generate", "job.yaml", "architectures=[timm/crossvit_9_240]"], "can't split a CrossVit into blocks"),
    (["generate", "job.yaml", "architectures=[vit_b_16]"], "expects 196 patches, found 4"),
    (["generate", "job.yaml", "base.weights=nope"], "base.weights 'nope': expected `random`, a weights name"),
    (["generate", "job.yaml", "base.weights=a-file"], "a-file: expected a file ending in .safetensors"),
    (["generate", "job.yaml", "base.weights=garbage.pth"], "garbage.pth: expected a checkpoint of tensors only"),
    (["generate", "job.yaml", "base.weights=tuned", "architectures=[resnet34]"], "found one of resnet18"),
    (["generate", "job.yaml", "retrain={distribution: fixed, values: [9]}"], "at most 8, the blocks of resnet18"),
    (["generate", "job.yaml", "kind=bench"], "kind: expected 'generate', found 'bench'"),
    (["sweep", "job.yaml"], "kind: expected 'sweep', found 'generate'"),
    (["sweep", "sweep.yaml", "space.train.lrr={grid: [1]}"], "train.lrr: unknown key; did you mean 'train.lr'?"),
    (["sweep", "sweep.yaml", "space.train.lr={gird: [1]}"], "unknown kind 'gird'; did you mean 'grid'?"),
    (["sweep", "sweep.yaml", "space.train.lr={grid: [-1]}"], "trial 1 (train.lr=-1): train.lr: expected more than 0"),
    (["sweep", "sweep.yaml", "space.train.epochs={grid: [0]}"], "train.epochs: expected at least 1, found 0"),
    (["sweep", "sweep.yaml", "space.train.lr={loguniform: [0, 1]}"], "`loguniform`: expected numbers above 0"),
    (["sweep", "exponent.yaml"], "exponent.yaml line 6: YAML reads 1e-3 as text: write 0.001, or quotes"),
    (["sweep", "exponent_in_space.yaml"], "exponent_in_space.yaml line 4: YAML reads 1e-3 as text: write 0.001"),
    (["sweep", "sweep.yaml", "train.lr=-1"], "train.lr: expected more than 0, found -1"),
    (["sweep", "sweep.yaml", "train.epochs=0"], "train.epochs: expected at least 1, found 0"),
    (["sweep", "sweep.yaml", "train.patience=0"], "train.patience: expected at least 1, found 0"),
    (["sweep", "sweep.yaml", "scheduler=hyperbnd"], "scheduler: expected 'fifo', 'asha', 'median_stopping' or 'pbt'"),
    (["sweep", "sweep.yaml", "scheduler=asha", "resources.num_workers=2"], "expected resources.num_workers 0, found 2"),
    (["sweep", "sweep.yaml", "scheduler=pbt"], "`scheduler: pbt` needs at least 4 trials, found 2"),
    (["sweep", "sweep.yaml", "num_samples=10000"], "at most 10,000 trials, found up to 20,000"),
    (
        ["sweep", "sweep.yaml", *(f"space.train.{key}={{grid: {list(range(1, 101))}}}" for key in MILLION)],
        "at most 10,000 trials, found up to 1,000,000",
    ),
    (["sweep", "sweep.yaml", "space.dataset={grid: [pets, pet]}"], "did you mean 'pets'?"),
    (["sweep", "sweep.yaml", "space.architecture={grid: [resnet19]}"], "did you mean 'resnet18'?"),
    (["sweep", "sweep.yaml", "space.base.weights={grid: [nope]}"], "base.weights 'nope': expected `random`"),
    (["sweep", "sweep.yaml", "run_dir=a-file"], "run_dir a-file: expected a folder, found the file"),
    (["bench", "job.yaml"], "kind: expected 'bench', found 'generate'"),
    (["bench", "bench.yaml", "where=accuracy > 2"], "found none that match --where 'accuracy > 2'"),
    (["bench", "bench.yaml", "run_dir=a-file"], "run_dir a-file: expected a folder"),
    (["bench", "bench.yaml", "store=new-store"], "new-store: expected a model store, found nothing there"),
    (["quickstart", "--dir", "a-file"], "a-file"),
    (["quickstart", "generate.train.epocs=1"], "generate.train.epocs: unknown key; did you mean 'epochs'?"),
    (["config", "missing.yaml"], "missing.yaml: can't be read"),
    (["config", "a-file"], "expected `key: value` lines"),
    (["report", "missing"], "missing: expected a run directory, found nothing there"),
    (["report", "data"], "data: expected a run directory"),
    (["search", "--data", "pets", "--store", "missing"], "missing: expected a model store, found nothing there"),
    (["search", "--data", "pets", "--store", "a-file"], "a-file: expected a store's folder, found a file"),
    (["search", "--data", "pets", "--where", "acuracy > 1"], "unknown field 'acuracy'; did you mean 'accuracy'?"),
    (["search", "--data", "pets", "--where", "accuracy > 2"], "expected at least one snapshot to rank, found none"),
    (["search", "--data", "pets", "--store", "empty-store"], "expected at least one snapshot to rank, found none"),
    (["search", "--data", "pet"], "did you mean 'pets'?"),
    (["search", "--data", "pet", "--workers", "2"], "did you mean 'pets'?"),
    (
        ["search", "--data", "pets", "--workers", "2", "--store", "empty-store"],
        "expected at least one snapshot to rank",
    ),
    (["search", "--data", "pets", "--workers", "0"], "Invalid value for '--workers'"),
    (["search", "--data", "empty"], "dataset empty: expected a folder train/"),
    (["search", "--data", "single"], "expected at least 2 images, found 1 image"),
    (["search", "--data", "a-file"], "expected a folder with train/<class>/<image>, found a file"),
    ([*UNCACHED, "--budget", "1"], "--budget 1: resnet18 at 32 px holds"),
    ([*UNCACHED, "--memory", "1MB"], "memory: resnet18 at 32 px takes"),
    (
        ["search", "--data", "pets", "--memory", "much"],
        "expected a number of bytes such as 3GiB or 500MB, found 'much'",
    ),
    (["data", "check", "nowhere"], "dataset 'nowhere': expected a folder in data or a known name"),
    (["data", "check", "empty"], "dataset empty: expected a folder train/"),
    (["data", "ls", "--data-dir", "a-file"], "data_dir a-file: expected a folder, found a file"),
    (["data", "prepare", "nope"], "dataset 'nope': expected the name of a known dataset"),
    (["data", "prepare", "fashion-mnist"], "dataset 'fashion-mnist': expected --source PATH"),
    (["data", "prepare", "fashion-mnist", "--source", "missing"], "--source missing"),
    (["store", "ls", "--store", "a-file"], "a-file: expected a store's folder, found a file"),
    (["store", "ls", "--store", "data"], "data: expected a model store, found a folder without store.json"),
    (["store", "ls", "--where", "accuracy >"], "not an expression"),
    (["store", "show", "bsae"], "no snapshot has the name or id 'bsae'; did you mean 'base'?"),
    (["store", "show", "../../etc/passwd"], "no snapshot has the name or id '../../etc/passwd'"),
    (["store", "diff", "base", "nope"], "no snapshot has the name or id 'nope'"),
    (["store", "export", "nope", "--to", "x.pth"], "no snapshot has the name or id 'nope'"),
    (["store", "export", "base", "--to", "x.zip"], "x.zip: expected a file called .safetensors or .pth"),
    (
        ["store", "add", "missing.pth", "--arch", "resnet18", "--store", "new"],
        "missing.pth: expected a file or folder of weights",
    ),
    (["store", "add", "garbage.pth", "--arch", "resnet18", "--store", "new"], "expected a checkpoint of tensors only"),
    (["store", "add", "garbage.pth", "--arch", "resnet19", "--store", "new"], "did you mean 'resnet18'?"),
    (["store", "add", "head.pth", "--arch", "resnet18", "--store", "new"], "expected 122 tensors, found 1"),
    (["store", "add", "fits.pth", "--arch", "resnet18", "--store", "new", "--name", "a b"], "snapshot name 'a b'"),
    (
        ["store", "add", "fits.pth", "--arch", "resnet18", "--store", "new", "--metric", "val_accuracy"],
        "--metric val_accuracy: expected NAME=NUMBER",
    ),
    (["store", "add", "fits.pth", "--arch", "resnet18", "--metric", "a=1", "--metric", "a=2"], "each name once"),
    (["store", "add", "fits.pth", "--arch", "resnet18", "--metric", "a=nan"], "--metric a=nan: expected NAME=NUMBER"),
    (["store", "add", "fits.pth", "--arch", "resnet18", "--base", "nope"], "no snapshot has the name or id 'nope'"),
    (["store", "add", "fits.pth", "--arch", "resnet18", "--store", "new", "--base", "x"], "expected a model store"),
    (["store", "add", "nan.pth", "--arch", "resnet18", "--store", "new"], "fc.bias: expected finite weights"),
    (["generate", "job.yaml", "base.weights=nan.pth"], "fc.bias: expected finite weights"),
    (["generate", "job.yaml", "base.weights=fits.pth", "architectures=[resnet34]"], "expected 218 tensors, found 122"),
    (["store", "gc", "--grace", "-1"], "Invalid value for '--grace'"),
    (["store", "verify", "--store", "missing"], "missing: expected a model store, found nothing there"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(one) for one, _ in MISTAKES])
@pytest.mark.parametrize("as_json", [False, True], ids=["", "json"])
def test_a_mistake_is_one_line_exit_2_and_writes_nothing(here, shared, capsys, arguments, message, as_json):
    (here / "empty").mkdir()
    (here / "garbage.pth").write_bytes(b"garbage")
    for name in ("fits.pth", "nan.pth", "empty-store"):
        (here / name).symlink_to(shared / name)
    (here / "bench.yaml").write_text("kind: bench\ndatasets: [pets]\n")
    torch.save({"fc.bias": torch.zeros(3)}, here / "head.pth")
    make_dataset(here / "single", num_images=1)
    before = listing(here), listing(shared)
    knows_json = arguments[0] != "report" and arguments != ["store"]
    assert main([*arguments, *(["--json"] if as_json and knows_json else [])]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("raysnap: ")
    assert "unexpected " not in err.replace("unexpected extra argument", "")
    assert (listing(here), listing(shared)) == before


def test_debug_shows_the_traceback_in_any_position(here, capsys):
    for arguments in (["--debug", "store", "show", "nope"], ["store", "show", "nope", "--debug"]):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert "Traceback" in err
        assert err.splitlines()[-1].startswith("raysnap: store: no snapshot has the name or id 'nope'")


def test_an_unforeseen_error_is_one_line_too(here, capsys, monkeypatch):
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(Store, "stats", fail)
    assert main(["store", "stats"]) == 2
    assert capsys.readouterr().err == "raysnap: unexpected ZeroDivisionError: two lines; run again with --debug\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["store", "stats"], ""),
        (["generate", "job.yaml", "a=b c"], "; finish it with: raysnap generate job.yaml 'a=b c' --resume"),
        (["generate", "job.yaml", "--resume"], "; finish it with: raysnap generate job.yaml --resume"),
        (["sweep", "sweep.yaml"], "; finish it with: raysnap sweep sweep.yaml --resume"),
        (["quickstart", "--dir", "q"], "; finish it with: raysnap quickstart --dir q"),
    ],
)
def test_an_interrupt_is_exit_130_and_says_how_to_resume(here, capsys, monkeypatch, arguments, hint):
    def interrupt(*given: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "stats", interrupt)
    monkeypatch.setattr("raysnap.config.load.load_config", interrupt)
    assert main(arguments) == 130
    assert capsys.readouterr().err == f"raysnap: interrupted{hint}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--debug"]])
def test_help_lists_every_verb(capsys, arguments):
    out = run_text(capsys, *arguments)
    for verb in ("quickstart", "generate", "search", "bench", "report", "config", "doctor", "data", "store"):
        assert f"  {verb} " in out
    assert "Exit codes: 0 success;" in out


@pytest.mark.parametrize("group", [command.callback.__name__ for command in app.registered_commands])
def test_every_command_says_what_it_does(capsys, group):
    verb = {"show_config": "config"}.get(group, group)
    assert "Usage: raysnap" in run_text(capsys, verb, "--help")


def test_help_imports_nothing_that_is_slow(tmp_path):
    code = (
        "import sys; from raysnap.cli.app import main; main(['--help']); "
        "slow = {'torch', 'ray', 'pydantic', 'numpy', 'scipy', 'pandas', 'yaml'} & {*sys.modules}; sys.exit(str(slow))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


def test_a_process_has_the_exit_code_and_separate_streams(here):
    done = process("store", "ls", "--json", cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["snapshots"]) == 2
    failed = process("store", "show", "nope", "--json", cwd=here)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert (
        failed.stderr
        == "raysnap: store: no snapshot has the name or id 'nope'; `raysnap store ls` lists the snapshots\n"
    )


def test_a_reader_that_goes_away_is_not_an_error(here):
    command = f"{sys.executable} -m raysnap data ls --json | head -n 1"
    done = subprocess.run(command, cwd=here, shell=True, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_config_prints_what_reruns_the_job(here, capsys):
    resolved = run_text(capsys, "config", "job.yaml", "train.lr=1e-3", "run_dir='1e3'")
    (here / "resolved.yaml").write_text(resolved)
    assert run_text(capsys, "config", "resolved.yaml") == resolved
    assert run_json(capsys, "config", "resolved.yaml")["train"]["lr"] == 0.001
    assert run_json(capsys, "config", "resolved.yaml")["run_dir"] == "1e3"


def test_report_prints_the_path_of_the_page(here, capsys):
    row = {"trial": "a", "role": "finetune", "status": "failed", "error": "it broke", "dataset": "pets"}
    RunDirectory(here).add_row(row)
    assert run_text(capsys, "report", ".", "--out", "page.html") == "page.html\n"
    assert "it broke" in (here / "page.html").read_text()


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"raysnap {package_version('raysnap') or 'of unknown version'}\n"


@pytest.mark.parametrize(
    ("option", "shown"), [([], ["warned"]), (["-q"], []), (["--quiet"], []), (["-v"], ["warned", "told"])]
)
def test_quiet_and_verbose_choose_what_is_said(here, capsys, monkeypatch, option, shown):
    said = []

    def ls(store_dir, where=None):
        logger = logging.getLogger("raysnap.store")
        levels = ((logging.WARNING, "warned"), (logging.INFO, "told"))
        said.extend(word for level, word in levels if logger.isEnabledFor(level))
        return []

    monkeypatch.setattr(Store, "summaries", ls)
    assert main(["store", "ls", *option]) == 0
    assert said == shown
    with show_progress() as on_progress:
        assert (on_progress is ignore_progress) == (option in (["-q"], ["--quiet"]))
    assert main(["--version"]) == 0
    assert logging.getLogger("raysnap").level == logging.NOTSET


def test_a_shell_completes_commands_choices_and_names(here):
    for words, expected in (
        ("raysnap sto", "store"),
        ("raysnap store show tu", "tuned"),
        ("raysnap search --proxy lin", "linear"),
    ):
        environment = {"_RAYSNAP_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        assert process(cwd=here, env=os.environ | environment).stdout.split() == [expected]


def test_init_copies_a_shipped_configuration_once(here, capsys):
    assert "trained_snapshots_small" in run_json(capsys, "init")["configs"]
    assert run_json(capsys, "init", "trained_snapshots_small")["config"] == "trained_snapshots_small.yaml"
    copied = load_config("trained_snapshots_small.yaml")
    assert copied == load_config(find_config("trained_snapshots_small"))
    assert main(["init", "trained_snapshots_small"]) == 2
    assert "expected no such file yet, found one; choose another --to" in capsys.readouterr().err
    assert main(["init", "trained_snapshot_small"]) == 2
    assert "did you mean 'trained_snapshots_small'?" in capsys.readouterr().err
    assert run_json(capsys, "init", "quickstart", "--to", "jobs/mine.yaml")["config"] == "jobs/mine.yaml"
