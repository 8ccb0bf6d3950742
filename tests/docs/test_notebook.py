"""The notebook in docs/ runs from its first cell to its last, on the Ray that is up."""

import ast
import json
from pathlib import Path

import pytest

import raysnap
from raysnap.config.parts import ShapesConfig
from tests.support import ROOT
from tests.support.search_stores import put, variant

NOTEBOOK = ROOT / "docs" / "from_data_to_model.ipynb"
SMALL = "mobilenet_v3_small"


@pytest.fixture
def quickstart_folder(tmp_path, monkeypatch) -> Path:
    """Enter a folder in which `quickstart/` has the store and the dataset that the notebook asks for, both small."""
    folder = tmp_path / "quickstart"
    store = raysnap.Store.open(folder / "store", create=True)
    for seed, retrain_index in ((0, 0), (1, 1)):
        put(store, f"start-{seed}", variant(SMALL, seed, retrain_index), SMALL)
    sizes = ShapesConfig(image_size=36, num_train=240, num_val=16, num_test=16)  # enough for 75 steps in 5 epochs
    raysnap.open_dataset("shapes-orientation-b", folder / "data", sizes)
    monkeypatch.chdir(tmp_path)
    return folder


def run_cell(source: str, namespace: dict[str, object]) -> object:
    """Run a cell as a notebook does, and return the value of the expression that it ends with."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, NOTEBOOK.name, "exec"), namespace)
    return eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), namespace) if last else None


def test_the_notebook_goes_from_a_dataset_to_predictions(ray_local, quickstart_folder):
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    namespace: dict[str, object] = {}
    _, ranking, starts, probabilities = (run_cell(source, namespace) for source in sources)
    assert sorted(ranking["name"]) == ["start-0", "start-1"]
    assert (ranking["low"] <= ranking["score"]).all() and (ranking["score"] <= ranking["high"]).all()
    assert sorted(starts["name"]) == ["start-0", "start-1"] and starts["val_accuracy"].notna().all()
    assert set(probabilities.index) == set(namespace["dataset"].classes)
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-5)


def test_the_notebook_is_kept_without_outputs():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
