"""finetune, recommend and predict: what they print, and what they refuse before torch is imported."""

import json
import subprocess
import sys

import pytest

from raysnap.cli.app import main
from raysnap.cli.finetuning import plan
from raysnap.cli.finetuning.tables import metrics_line
from raysnap.errors import ArchitectureError
from raysnap.models.block_facts import block_shapes
from raysnap.store.store import Store
from tests.support.cli_commands import listing, make_dataset, run_json, run_text
from tests.support.search_stores import put, variant
from tests.support.start_records import record

SMALL = "mobilenet_v3_small"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return a folder with a store of two snapshots and a dataset, and stand in it."""
    monkeypatch.chdir(tmp_path)
    store = Store.open(tmp_path / "store", create=True)
    for seed, name in enumerate(("first", "second")):
        put(store, name, variant(SMALL, seed, 0, base_seed=seed), SMALL)
    make_dataset(tmp_path / "photos")
    return tmp_path


def test_a_dry_run_says_what_a_finetune_takes_and_writes_nothing(place, capsys):
    before = listing(place)
    out = run_text(capsys, "finetune", "--data", "photos", "--dry-run", "--time-budget", "20m")
    assert (
        "Search: up to 2\u00a0candidates" in out
        and "2\u00a0starts × 4\u00a0recipes, up to 200\u00a0epochs in batches of 16" in out
    )
    assert "of which the search takes at most 5\u00a0min\u00a000\u00a0s" in out and "Nothing was written." in out
    document = run_json(capsys, "finetune", "--data", "photos", "--from", "first", "--dry-run", "train.epochs=3")
    assert (document["num_candidates"], document["starts"]) == (0, ["first"])
    assert {trial["train"]["epochs"] for trial in document["trials"]} == {3} and len(document["trials"]) == 4
    assert listing(place) == before


def test_a_dry_run_leaves_out_what_no_search_can_run(place, capsys, monkeypatch):
    put(Store.open("store"), "odd", variant("resnet18", 0, 0), "resnet18")

    def shapes(architecture, image_size):
        if architecture == "resnet18":
            raise ArchitectureError("its forward takes another path")
        return block_shapes(architecture, image_size)

    monkeypatch.setattr(plan, "block_shapes", shapes)
    document = run_json(capsys, "finetune", "--data", "photos", "--dry-run")
    assert document["num_candidates"] == 2 and sorted(document["starts"]) == ["first", "second"]
    assert main(["finetune", "--data", "photos", "--dry-run", "--where", "name == 'odd'"]) == 2
    assert "found none that can run" in capsys.readouterr().err


def test_a_file_and_overrides_change_the_job(place, capsys):
    (place / "mine.yaml").write_text("space: {train.lr: {grid: [0.1, 0.2]}}\nsearch: {num_test: 5}\n")
    document = run_json(
        capsys, "finetune", "--data", "photos", "--config", "mine.yaml", "--dry-run", "--preset", "quick", "shortlist=1"
    )
    assert [trial["train"]["lr"] for trial in document["trials"]] == [0.1, 0.2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "--data", "phtos"], "dataset 'phtos'"),
        (["search", "--data", "photos", "--store", "stor"], "expected a model store"),
        (["search", "--data", "photos", "--where", "acuracy > 1"], "did you mean 'accuracy'?"),
        (["finetune", "--data", "phtos"], "dataset 'phtos'"),
        (["finetune", "--data", "photos", "--from", "frst"], "did you mean 'first'?"),
        (["finetune", "--data", "photos", "train.epoch=3"], "did you mean 'epochs'?"),
        (["finetune", "--data", "photos", "space.dataset.grid=[a, b]"], "the search chooses the starts"),
        (["recommend", "--data", "phtos"], "dataset 'phtos'"),
        (["predict", "--data", "photos", "--model", "frst"], "did you mean 'first'?"),
        (["predict", "--data", "phtos", "--model", "first"], "dataset 'phtos'"),
        (["predict", "--data", "photos/vl", "--model", "first"], "expected a folder of images, found nothing"),
    ],
)
def test_mistakes_are_told(place, capsys, arguments, message):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_mistakes_are_told_before_torch_is_imported(place):
    code = (
        "import sys; from raysnap.cli.app import main\n"
        "for words in (['search', '--data', 'x'], ['finetune', '--data', 'x'], ['recommend', '--data', 'x'],\n"
        "              ['predict', '--data', 'x', '--model', 'first']):\n"
        "    assert main(words) == 2\n"
        "print(sorted({'torch', 'ray'} & sys.modules.keys()))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=place)
    assert finished.stdout.strip() == "[]", finished.stderr


def test_a_recommendation_goes_on_to_a_finetune(place, capsys):
    assert "no records of fine-tunes on other datasets" in run_text(capsys, "recommend", "--data", "photos")
    store = Store.open(place / "store")
    for name, accuracy in (("first", 0.1), ("second", 0.9)):
        one = record(name, "pets", accuracy)
        start = one.start.model_copy(update={"snapshot": store.refs()[name], "architecture": SMALL})
        store.put_record(one.model_copy(update={"start": start}))
    out = run_text(capsys, "recommend", "--data", "photos")
    best = store.refs()["second"][:12]
    assert out.splitlines()[1].split()[:2] == ["1", "second"]
    assert f"raysnap finetune --data photos --store store --from {best}" in out
    assert run_json(capsys, "recommend", "--data", "photos")["num_records"] == 2


def test_predictions_are_printed_written_and_judged(place, capsys):
    assert len(run_text(capsys, "predict", "--data", "photos/val", "--model", "first").splitlines()) == 13
    document = run_json(capsys, "predict", "--data", "photos/val", "--model", "first", "--out", "out/p.csv")
    assert (document["num_images"], document["out"]) == (12, "out/p.csv")
    assert len((place / "out/p.csv").read_text().splitlines()) == 13
    assert main(["predict", "--data", "photos", "--model", "first", "--evaluate"]) == 2
    assert "expected a test split" in capsys.readouterr().err
    (place / "photos/val/cat/0.png").write_bytes(b"no image")
    assert main(["predict", "--data", "photos/val", "--model", "first", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["num_bad"] == 1


def test_predict_takes_the_name_of_a_dataset(place, capsys):
    make_dataset(place / "data/pets", num_images=3)
    lines = run_text(capsys, "predict", "--data", "pets", "--model", "first").splitlines()
    assert len(lines) == 13 and lines[1].startswith("train/cat/0.png,")


def test_metrics_leave_out_top_5_of_few_classes():
    metrics = {"accuracy": 0.5, "top5_accuracy": 1.0}
    assert metrics_line(metrics, 8, 4) == "8\u00a0test items: accuracy 0.500"
    assert metrics_line(metrics, 8, 6).endswith("top5 accuracy 1.000")
