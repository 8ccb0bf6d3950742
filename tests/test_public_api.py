"""The public API: `raysnap.__all__` says what it is, every name has an example that runs, and importing it is cheap.

The examples run in a folder with a small store, two run directories, a dataset and raysnap's configurations.
"""

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import raysnap
from raysnap.config.parts import ShapesConfig
from tests.support import ROOT

DATASET = "shapes-shape-a"
SIZES = {"image_size": 36, "num_train": 16, "num_val": 8, "num_test": 8}
ON_RAY = ("finetune", "generate", "run_bench", "sweep")
DOCUMENTED = [name for name in raysnap.__all__ if name != "__version__"]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """Make the folder that the examples run in."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recipe = {"architectures": ["mobilenet_v3_small"], "num_snapshots": 3, "num_classes": 4, "image_size": 32}
        retrain = {"distribution": "fixed", "values": [1]}
        made = raysnap.synthesize(raysnap.SynthesizeConfig(**recipe, retrain=retrain))
        raysnap.Store.open("store").set_ref("base", made.snapshots[0])
        raysnap.open_dataset(DATASET, "data", ShapesConfig(**SIZES))
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


@pytest.fixture
def doctest_namespace(workplace, monkeypatch) -> dict[str, object]:
    """Return what an example finds: raysnap, in the folder made for it."""
    monkeypatch.chdir(workplace)
    return {"raysnap": raysnap}


def run_examples(documented: object, name: str, namespace: dict[str, object]) -> int:
    """Run every example in the docstrings of an object and its methods, and return how many lines ran."""
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(optionflags=FLAGS)
    report: list[str] = []
    for test in finder.find(documented, name, globs=dict(namespace)):
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
    return runner.tries


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if name not in ON_RAY])
def test_every_public_name_has_an_example_that_runs(doctest_namespace, name):
    assert run_examples(getattr(raysnap, name), name, doctest_namespace)


def test_the_example_of_the_package_runs(doctest_namespace):
    test = doctest.DocTestParser().get_doctest(raysnap.__doc__, doctest_namespace, "raysnap", raysnap.__file__, 0)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    runner.run(test, out=report.append)
    assert runner.tries and not runner.failures, "".join(report)


# After the others, as what it makes stays in the store.
@pytest.mark.parametrize("name", ON_RAY)
def test_every_job_on_ray_has_an_example_that_runs(ray_local, doctest_namespace, name):
    assert run_examples(getattr(raysnap, name), name, doctest_namespace)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_public_name_has_a_docstring_of_its_own(name):
    documented = getattr(raysnap, name)
    assert documented.__doc__ and inspect.getdoc(documented)
    if inspect.isclass(documented):
        assert documented.__doc__ not in {base.__doc__ for base in documented.__mro__[1:]}


@pytest.mark.parametrize("name", raysnap.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(raysnap, name) is not None


def test_nothing_else_is_offered():
    assert dir(raysnap) == sorted(raysnap.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        raysnap.nonsense  # noqa: B018 - the access is the test


def test_importing_raysnap_imports_neither_torch_nor_ray():
    code = "import sys, raysnap; raysnap.ConfigError; print(sorted({'torch', 'ray', 'pydantic'} & sys.modules.keys()))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


def test_search_is_imported_without_torch():
    code = (
        "import sys, raysnap; from raysnap.search import search; "
        "assert search is raysnap.rank_snapshots and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_unknown_names_of_the_configuration_package_are_refused():
    import raysnap.config

    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        raysnap.config.nonsense  # noqa: B018 - the access is the test
    assert raysnap.config.GenerateConfig is raysnap.GenerateConfig
