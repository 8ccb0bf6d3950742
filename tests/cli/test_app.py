"""The command line: exit codes, one line per error, one document per `--json`, and nothing written on bad input.

Nothing here starts Ray: what needs it is refused before, or is in `test_end_to_end`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.models import get_model

from raysnap.cli.app import app, main
from raysnap.cli.ray_session import check_resources, interrupted_by_sigterm
from raysnap.config.parts import ResourcesConfig
from raysnap.errors import ConfigError
from raysnap.models.blocks import random_head, random_tensors
from raysnap.runs.run_directory import RunDirectory
from raysnap.store.manifest import DatasetRecord, Preprocessing
from raysnap.store.store import Store

SMALL = Preprocessing(image_size=32, resize_size=37)
SWEEP = "kind: sweep\ndatasets: [pets]\nimage_size: 32\nspace: {train.lr: {grid: [1.0e-3, 1.0e-2]}}\n"
MILLION = ("lr", "epochs", "batch_size")
JOB = "kind: generate\ndatasets: [pets]\nimage_size: 32\nnum_snapshots: 2\n"


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """Nothing in this file gets as far as starting Ray: every mistake is told before."""

    def refuse(*arguments, **options):
        raise AssertionError("Ray would be started")

    monkeypatch.setattr("ray.init", refuse)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """A folder with a store of two snapshots that differ in the head, an empty one, and a dataset; it stays so."""
    folder = tmp_path_factory.mktemp("cli")
    store = Store.open(folder / "store", create=True)
    blocks = random_tensors("resnet18", 3, 0)
    store.put_snapshot(architecture="resnet18", blocks=blocks, num_classes=3, preprocessing=SMALL, name="base")
    store.put_snapshot(
        architecture="resnet18",
        blocks=[*blocks[:-1], ("head", random_head("resnet18", 3, 1))],
        num_classes=3,
        preprocessing=SMALL,
        base="base",
        retrain_index=0,
        dataset=DatasetRecord(name="pets"),
        metrics={"val_accuracy": 0.75},
        name="tuned",
    )
    make_dataset(folder / "data" / "pets")
    Store.open(folder / "empty-store", create=True)
    weights = {name: tensor for _, block in blocks for name, tensor in block.items()}
    torch.save(weights, folder / "fits.pth")
    torch.save(weights | {"fc.bias": torch.full((3,), torch.nan)}, folder / "nan.pth")
    return folder


@pytest.fixture
def here(shared, tmp_path, monkeypatch) -> Path:
    """An own current folder, with links to the shared store and data."""
    for name in ("store", "data"):
        (tmp_path / name).symlink_to(shared / name)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    (tmp_path / "exponent.yaml").write_text(f"{SWEEP}train:\n  lr: 1e-3\n")
    (tmp_path / "exponent_in_space.yaml").write_text(SWEEP.replace("1.0e-3", "1e-3"))
    (tmp_path / "a-file").write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_dataset(root: Path, num_images: int = 6) -> Path:
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for index in range(num_images):
                colour = (255 * label, 40 * index, 100 + 20 * (split == "val"))
                Image.new("RGB", (40, 40), colour).save(root / split / name / f"{index}.png")
    return root


def listing(folder: Path) -> dict[str, int]:
    """Every path below a folder, and when each file was written; caches, which may come and go, are left out."""
    found = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != ".raysnap"]
        found |= dict.fromkeys((f"{parent}/{name}" for name in folders), 0)
        kept = (Path(parent, name) for name in files if not name.startswith("index.sqlite"))
        found |= {str(path): path.stat().st_mtime_ns for path in kept}
    return found


def run_json(capsys, *arguments: str, exit_code: int = 0) -> dict:
    """The one document that a command prints."""
    assert main([*arguments, "--json"]) == exit_code
    return json.loads(capsys.readouterr().out)


def run_text(capsys, *arguments: str, exit_code: int = 0) -> str:
    assert main(list(arguments)) == exit_code
    out, err = capsys.readouterr()
    assert exit_code or not err
    assert all(line == line.rstrip() for line in out.splitlines())
    return out


def process(*arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "raysnap", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False, **options)


# Mistakes

MISTAKES = [
    (["serch"], "No such command 'serch'. Did you mean 'search'"),
    (["store", "lss"], "No such command 'lss'. Did you mean 'ls'?"),
    (["data", "prepar"], "Did you mean 'prepare'?"),
    (["store"], "Missing command; see `raysnap store --help`"),
    (["generate"], "Missing argument 'CONFIG'; see `raysnap generate --help`"),
    (["search"], "Missing option '--data'; see `raysnap search --help`"),
    (["search", "--dta", "x"], "No such option: --dta"),
    (["store", "ls", "extra"], "unexpected extra argument"),
    (["search", "--data", "pets", "--method", "alsation"], "'alsation' is not one of 'baseline'"),
    (["search", "--data", "pets", "--num-train", "many"], "Invalid value for '--num-train'"),
    (["search", "--data", "pets", "--num-train", "0"], "Invalid value for '--num-train'"),
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
    (["generate", "job.yaml", "architectures=[alexnet]"], "can't split a AlexNet into blocks"),
    (["generate", "job.yaml", "architectures=[vit_b_16]"], "expects 196 patches, found 4"),
    (["generate", "job.yaml", "base.weights=nope"], "base.weights 'nope': expected `random`, a weights name"),
    (["generate", "job.yaml", "base.weights=a-file"], "a-file: expected a file called .safetensors"),
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
    (["bench", "bench.yaml", "where=accuracy > 2"], "found none that fit"),
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
    (["search", "--data", "pets", "--budget", "1"], "--budget 1: resnet18 at 32 px holds"),
    (["data", "check", "nowhere"], "dataset 'nowhere': expected a folder in data or a known name"),
    (["data", "check", "empty"], "dataset empty: expected a folder train/"),
    (["data", "ls", "--data-dir", "a-file"], "data_dir a-file: expected a folder, found a file"),
    (["data", "prepare", "nope"], "dataset 'nope': expected the name of a known dataset"),
    (["data", "prepare", "fashion-mnist"], "dataset 'fashion-mnist': expected --source PATH"),
    (["data", "prepare", "fashion-mnist", "--source", "missing"], "--source missing"),
    (["store", "ls", "--store", "a-file"], "a-file: expected a store's folder, found a file"),
    (["store", "ls", "--store", "data"], "data: expected a model store, found a folder without store.json"),
    (["store", "ls", "--where", "accuracy >"], "not an expression"),
    (["store", "show", "bas"], "no snapshot goes by 'bas'; did you mean 'base'?"),
    (["store", "show", "../../etc/passwd"], "no snapshot goes by '../../etc/passwd'"),
    (["store", "diff", "base", "nope"], "no snapshot goes by 'nope'"),
    (["store", "export", "nope", "--to", "x.pth"], "no snapshot goes by 'nope'"),
    (["store", "export", "base", "--to", "x.zip"], "x.zip: expected a file called .safetensors or .pth"),
    (
        ["store", "add", "missing.pth", "--arch", "resnet18", "--store", "new"],
        "missing.pth: expected a file of weights",
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
    (["store", "add", "fits.pth", "--arch", "resnet18", "--base", "nope"], "no snapshot goes by 'nope'"),
    (["store", "add", "fits.pth", "--arch", "resnet18", "--store", "new", "--base", "x"], "expected a model store"),
    (["store", "add", "nan.pth", "--arch", "resnet18", "--store", "new"], "fc.bias: expected finite weights"),
    (["generate", "job.yaml", "base.weights=nan.pth"], "fc.bias: expected finite weights"),
    (["generate", "job.yaml", "base.weights=fits.pth", "architectures=[resnet34]"], "expected 218 tensors, found 122"),
    (["store", "gc", "--grace", "-1"], "Invalid value for '--grace'"),
    (["store", "verify", "--store", "missing"], "missing: expected a model store, found nothing there"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(one) for one, _ in MISTAKES])
@pytest.mark.parametrize("as_json", [False, True], ids=["", "json"])
def test_a_mistake_is_one_line_on_stderr_exit_2_and_writes_nothing(here, shared, capsys, arguments, message, as_json):
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


def test_debug_shows_the_traceback_wherever_it_stands(here, capsys):
    for arguments in (["--debug", "store", "show", "nope"], ["store", "show", "nope", "--debug"]):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert "Traceback" in err
        assert err.splitlines()[-1].startswith("raysnap: store: no snapshot goes by 'nope'")


def test_what_nobody_foresaw_is_one_line_too(here, capsys, monkeypatch):
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
def test_an_interrupt_is_exit_130_and_says_how_to_go_on(here, capsys, monkeypatch, arguments, hint):
    def interrupt(*given: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "stats", interrupt)
    monkeypatch.setattr("raysnap.config.load.load_config", interrupt)
    assert main(arguments) == 130
    assert capsys.readouterr().err == f"raysnap: interrupted{hint}\n"


# Help


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


def test_listing_a_store_does_without_torch_and_ray(here):
    code = (
        "import sys; from raysnap.cli.app import main; main(['store', 'ls']); main(['store', 'stats']); "
        "sys.exit(str({'torch', 'ray'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


# As a process


def test_a_process_ends_with_the_exit_code_and_keeps_its_streams_apart(here):
    done = process("store", "ls", "--json", cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["snapshots"]) == 2
    failed = process("store", "show", "nope", "--json", cwd=here)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == "raysnap: store: no snapshot goes by 'nope'; `raysnap store ls` lists what is there\n"


def test_a_search_in_a_process_prints_one_document_and_nothing_else(here):
    done = process("search", "--data", "pets", "--json", cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["num_candidates"] == 2


def test_a_reader_that_goes_away_is_not_an_error(here):
    command = f"{sys.executable} -m raysnap data ls --json | head -n 1"
    done = subprocess.run(command, cwd=here, shell=True, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{\n", "")


# The store


def test_store_ls_lists_names_and_figures(here, capsys):
    snapshots = run_json(capsys, "store", "ls")["snapshots"]
    assert {name for one in snapshots for name in one["names"]} == {"base", "tuned"}
    out = run_text(capsys, "store", "ls", "--where", "retrain_index == 0")
    assert "tuned" in out and "0.750" in out and "44.8" in out
    assert "base" not in out


def test_store_show_tells_the_manifest_and_who_shares_its_blocks(here, capsys):
    document = run_json(capsys, "store", "show", "tuned")
    assert (document["names"], document["retrain_index"], len(document["blocks"])) == (["tuned"], 0, 10)
    out = run_text(capsys, "store", "show", document["id"][:8])
    assert "resnet18, 3\u00a0classes" in out and "val_accuracy 0.75" in out
    assert document["shared_with"]["stem"] == document["lineage"]
    blocks = {line.split()[0]: line.split()[-2:] for line in out.splitlines()[-10:]}
    assert (blocks["stem"], blocks["layer4.1"]) == (["1", "base"], ["1", "base"])
    assert blocks["head"][-1] == "0"


def test_store_show_draws_where_a_snapshot_comes_from_and_what_came_of_it(here, capsys):
    assert "└── tuned" in run_text(capsys, "store", "show", "tuned")
    drawn = run_text(capsys, "store", "show", "base")
    assert any(line.startswith("base ") and "← this one" in line for line in drawn.splitlines())
    assert "└── tuned" in drawn


def test_store_diff_says_which_blocks_differ(here, capsys):
    blocks = run_json(capsys, "store", "diff", "base", "tuned")["blocks"]
    assert [block["name"] for block in blocks if not block["equal"]] == ["head"]
    lines = run_text(capsys, "store", "diff", "base", "tuned").splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["same"] * 9 + ["differs"]


def test_store_stats_counts_and_saves(here, capsys):
    stats = run_json(capsys, "store", "stats")
    assert (stats["num_snapshots"], stats["num_blocks"]) == (2, 11)
    assert stats["bytes_on_disk"] < 0.51 * stats["bytes_if_copied"]
    assert "2\u00a0snapshots in 11\u00a0blocks" in run_text(capsys, "store", "stats")


def test_store_export_and_add_bring_back_the_same_snapshot(here, capsys):
    for name in ("w.safetensors", "w.pth"):
        exported = run_json(capsys, "store", "export", "tuned", "--to", name)
        assert exported["weights_path"] == name
        added = run_json(capsys, "store", "add", name, "--arch", "resnet18", "--store", "new", "--name", "back")
        assert set(added) == {"snapshot", "new_blocks", "new_bytes"}
        assert added["snapshot"] == Store.open("store").resolve("tuned")
    assert (added["new_blocks"], added["new_bytes"]) == (0, 0)
    model = get_model("resnet18", weights=None, num_classes=3)
    model.load_state_dict(torch.load("w.pth", weights_only=True), strict=True)
    assert "0\u00a0new blocks" in run_text(capsys, "store", "add", "w.pth", "--arch", "resnet18", "--store", "new")
    assert "w.pth and README.md" in run_text(capsys, "store", "export", "tuned", "--to", "w.pth")


def test_store_add_keeps_what_is_known_of_a_file_and_finds_its_retrain_index(here, capsys):
    store = Store.open("store")
    blocks = [(block.name, store.read_block(block.digest)) for block in store.manifest("base").blocks]
    tensors = {name: tensor for _, block in blocks for name, tensor in block.items()}
    torch.save(tensors | {name: tensor + 1 for name, tensor in blocks[-3][1].items()}, "tuned.pth")
    shutil.copytree("store", "other")
    facts = ("--base", "base", "--dataset", "birds", "--metric", "val_accuracy=0.5", "--metric", "f1=1e-1")
    arguments = ("tuned.pth", "--arch", "resnet18", "--image-size", "112", *facts, "--store", "other")
    added = run_json(capsys, "store", "add", *arguments)
    assert added["new_blocks"] == 1
    manifest = Store.open("other").manifest(added["snapshot"])
    assert (manifest.base, manifest.retrain_index) == (store.resolve("base"), 2)
    assert (manifest.dataset.name, manifest.metrics) == ("birds", {"val_accuracy": 0.5, "f1": 0.1})
    assert (manifest.preprocessing.resize_size, manifest.preprocessing.image_size) == (128, 112)


def test_store_gc_deletes_what_no_snapshot_needs(here, capsys):
    store = Store.open("own", create=True)
    store.put_block(random_head("resnet18", 3, 0))
    assert "0\u00a0blocks deleted (0\u00a0B), 1 kept" in run_text(capsys, "store", "gc", "--store", "own")
    assert run_json(capsys, "store", "gc", "--store", "own", "--grace", "0")["num_blocks_deleted"] == 1


def test_store_verify_names_each_damage_and_exits_3(here, shared, capsys):
    assert run_json(capsys, "store", "verify")["damaged"] == []
    assert run_text(capsys, "store", "verify").startswith("ok; read 2\u00a0snapshots, 11\u00a0blocks")
    shutil.copytree(shared / "store", here / "bad")
    store = Store.open(here / "bad")
    head = store.manifest("tuned").blocks[-1].digest
    path = here / "bad" / "objects" / head[:2] / head
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    (here / "bad" / "refs" / "not a name").touch()
    damaged = run_json(capsys, "store", "verify", "--store", "bad", exit_code=3)["damaged"]
    assert [(one["block"], one["snapshots"]) for one in damaged] == [(head, [store.resolve("tuned")])]
    assert main(["store", "verify", "--store", "bad"]) == 3
    out, err = capsys.readouterr()
    assert out.startswith("damaged: 1\u00a0block and 1\u00a0other file")
    assert f"raysnap: block {head}: its " in err and "refs/not a name: does not belong here" in err
    assert main(["store", "export", "tuned", "--store", "bad", "--to", "x.pth"]) == 3
    assert head in capsys.readouterr().err
    assert not (here / "x.pth").exists()


# Search


def test_search_ranks_every_candidate_with_the_keys_that_scripts_rely_on(here, capsys):
    document = run_json(capsys, "search", "--data", "pets", "--method", "shared", "--num-test", "6")
    assert {
        "method", "proxy", "num_candidates", "ranking", "timings_s", "work", "peak_activation_bytes", "skipped",
    } <= set(document)  # fmt: skip
    assert [entry["rank"] for entry in document["ranking"]] == [1, 2]
    assert {entry["name"] for entry in document["ranking"]} == {"base", "tuned"}
    assert set(document["ranking"][0]) >= {"snapshot", "score", "num_train", "num_test", "tied_with_best"}
    assert set(document["timings_s"]) >= {"total", "plan", "load_blocks", "decode", "inference", "proxy"}
    assert set(document["work"]) >= {"block_item_passes", "flops", "block_bytes_read", "images_decoded"}


def test_search_takes_a_path_and_shows_a_table(here, capsys):
    out = run_text(capsys, "search", "--data", "data/pets", "--method", "baseline", "--where", "retrain_index == 0")
    assert "tuned" in out and "best" in out
    assert "1\u00a0candidate by baseline" in out
    assert "Without a search, the largest pretrained model would be the choice, tuned: rank 1 of 1" in out


def test_search_explains_what_candidates_share_and_what_each_rung_did(here, capsys):
    out = run_text(capsys, "search", "--data", "pets", "--explain", "--feature-cache", "0")
    assert "resnet18 stem … layer4.1" in out and "2\u00a0candidates  100\u00a0% of the compute  → " in out
    assert (
        out.index("What candidates share")
        < out.index("block passes")
        < out.index("largest pretrained model would be the choice, base")
    )


def test_a_second_search_reads_what_the_first_left(here, capsys):
    first, again = (run_json(capsys, "search", "--data", "pets", "--image-size", "24") for _ in range(2))
    assert first["ranking"] == again["ranking"]
    assert first["work"]["block_item_passes"] > 0 == again["work"]["block_item_passes"]


# Jobs that need Ray: what they say before


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


def test_a_dry_run_of_a_sweep_shows_its_points_and_reads_1e_minus_2_in_an_override_as_a_number(here, capsys):
    before = listing(here)
    document = run_json(capsys, "sweep", "sweep.yaml", "--dry-run", "train.optimizer=sgd")
    assert [trial["train"]["lr"] for trial in document["trials"] if trial["role"] == "finetune"] == [1e-3, 1e-2]
    (_, alone) = run_json(capsys, "sweep", "sweep.yaml", "--dry-run", "space={}", "train.lr=1e-2")["trials"]
    assert alone["train"]["lr"] == 0.01
    out = run_text(capsys, "sweep", "sweep.yaml", "--dry-run")
    assert out.splitlines()[:3] == ["trial  lr", "001    0.001", "002    0.01"]
    assert "Nothing was written." in out
    assert listing(here) == before


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"cpus": 3}, "resources.cpus: expected at most the 2 CPUs of this machine, found 1 x 3"),
        ({"num_workers": 3}, "resources.cpus: expected at most the 2 CPUs of this machine, found 3 x 1"),
        ({"gpus": 0.5}, "resources.gpus: expected at most the 0 GPUs of this machine, found 1 x 0.5"),
    ],
)
def test_resources_that_this_machine_lacks_are_refused_at_once(asked, told):
    check_resources(ResourcesConfig(num_workers=2), {"CPU": 2.0})
    with pytest.raises(ConfigError, match=told):
        check_resources(ResourcesConfig(**asked), {"CPU": 2.0})


def test_sigterm_ends_a_run_as_ctrl_c_does_and_is_handled_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interrupted_by_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_was_begun_is_refused_before_ray_starts(here, capsys):
    from raysnap.config.jobs import GenerateConfig
    from raysnap.config.load import load_config

    RunDirectory.open(load_config(here / "job.yaml", [], GenerateConfig), here / "runs/generate", resume=False)
    before = listing(here)
    assert main(["generate", "job.yaml"]) == 2
    assert "already holds a run; add --resume to finish it" in capsys.readouterr().err
    assert main(["generate", "job.yaml", "--resume", "seed=4"]) == 2
    assert "seed: the run was started with 0, found 4" in capsys.readouterr().err
    assert listing(here) == before


# Config, doctor, data, report


def test_config_prints_what_reruns_the_job(here, capsys):
    resolved = run_text(capsys, "config", "job.yaml", "train.lr=1e-3", "run_dir='1e3'")
    (here / "resolved.yaml").write_text(resolved)
    assert run_text(capsys, "config", "resolved.yaml") == resolved
    assert run_json(capsys, "config", "resolved.yaml")["train"]["lr"] == 0.001
    assert run_json(capsys, "config", "resolved.yaml")["run_dir"] == "1e3"


def test_doctor_says_what_there_is_and_what_would_fail(here, capsys, monkeypatch):
    document = run_json(capsys, "doctor")
    assert document["ok"] is True
    assert {"Python", "raysnap", "torch", "ray", "GPUs", "disk", "shared memory"} <= {
        finding["what"] for finding in document["findings"]
    }
    assert "No problems found." in run_text(capsys, "doctor")
    monkeypatch.setattr("raysnap.cli.doctor.MIN_DISK_BYTES", 10**18)
    monkeypatch.setattr("raysnap.cli.doctor.PACKAGES", ("torch", "no_such_package"))
    assert run_json(capsys, "doctor", exit_code=1)["ok"] is False
    out = run_text(capsys, "doctor", exit_code=1)
    assert "free some" in out and "can't be imported" in out and "No problems found" not in out


def test_data_ls_knows_what_is_here_and_where_the_rest_is(here, capsys):
    datasets = {one["name"]: one for one in run_json(capsys, "data", "ls")["datasets"]}
    assert datasets["pets"]["counts"] == {"train": 12, "val": 12, "test": 0}
    assert datasets["shapes-shape-a"]["path"] is None
    out = run_text(capsys, "data", "ls")
    assert "12/12/0" in out and "drawn on first use" in out
    assert not (here / "data" / "shapes-shape-a").exists()


def test_data_check_names_bad_images_and_duplicates(here, capsys):
    assert run_json(capsys, "data", "check", "pets")["ok"] is True
    assert "2\u00a0classes, train/val/test 12/12/0" in run_text(capsys, "data", "check", "data/pets")
    root = make_dataset(here / "own")
    shutil.copy(root / "train" / "cat" / "0.png", root / "val" / "cat" / "copy.png")
    (root / "train" / "dog" / "bad.png").write_bytes(b"no image")
    (root / "train" / "dog" / "notes.txt").touch()
    assert run_json(capsys, "data", "check", "own", exit_code=1)["ok"] is False
    assert main(["data", "check", "own"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("own: 2\u00a0classes, train/val/test 13/13/0; 1\u00a0file ignored\n")
    assert err.count("\n") == 2
    assert "raysnap: own/train/dog/bad.png: expected an image" in err
    assert "raysnap: own: leak between splits, the same bytes in train/cat/0.png, val/cat/copy.png" in err


def test_data_prepare_draws_a_built_in_dataset(here, capsys):
    document = run_json(capsys, "data", "prepare", "shapes-shape-a", "--data-dir", "drawn")
    assert document == {
        "dataset": "shapes-shape-a", "counts": {"train": 400, "val": 100, "test": 100}, "num_classes": 4, "num_bad": 0,
    }  # fmt: skip
    out = run_text(capsys, "data", "prepare", "shapes-shape-a", "--data-dir", "drawn")
    assert out == "drawn/shapes-shape-a: 4\u00a0classes, train/val/test 400/100/100\n"


def test_report_prints_the_path_of_the_page(here, capsys):
    row = {"trial": "a", "role": "finetune", "status": "failed", "error": "it broke", "dataset": "pets"}
    RunDirectory(here).add_row(row)
    assert run_text(capsys, "report", ".", "--out", "page.html") == "page.html\n"
    assert "it broke" in (here / "page.html").read_text()


def test_a_folder_that_is_not_readable_is_told_in_one_line(here, capsys):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (here / "closed").mkdir(mode=0)
    assert main(["store", "ls", "--store", "closed"]) == 2
    assert capsys.readouterr().err.startswith("raysnap: closed: can't be read as a store")


def test_on_a_narrow_terminal_ids_and_figures_stay_whole(here, capsys):
    from rich.console import Console

    from raysnap.cli.store_tables import snapshots_table

    store = Store.open("store")
    console = Console(width=60, file=sys.stdout)
    console.print(snapshots_table(store.summaries()))
    out = capsys.readouterr().out
    assert all(manifest.id[:12] in out for manifest in store.manifests())
    assert "44.8\u00a0MB" in out and "0.750" in out
