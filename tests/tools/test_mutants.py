"""Mutants fit the code and the tests as they are: who renames a line or a test of theirs is stopped here."""

import dataclasses
import importlib.util
import sys
from types import ModuleType

import pytest

from tests.support import ROOT


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tool  # where dataclasses look for the module of their annotations
    spec.loader.exec_module(tool)
    return tool


mutants = load_tool("mutants")


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_the_line_of_a_mutant_occurs_once_and_its_test_exists(mutant):
    assert mutants.misfit(mutant) is None


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_other_code_that_still_compiles(mutant):
    assert mutant.new != mutant.old
    text = (ROOT / "raysnap" / mutant.file).read_text(encoding="utf-8")
    compile(text.replace(mutant.old, mutant.new), mutant.file, "exec")


def test_names_of_mutants_are_unique():
    names = [mutant.name for mutant in mutants.MUTANTS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"old": "no such line"}, "expected the line 'no such line' once, found it 0 times"),
        ({"old": "\n"}, "once, found it"),
        ({"file": "nothing.py"}, "expected a file raysnap/nothing.py"),
        ({"test": "store/test_nothing.py::test_x"}, "expected a test test_x, found none"),
        ({"test": "store/test_store.py::test_nothing[a]"}, "expected a test test_nothing, found none"),
    ],
)
def test_what_no_longer_fits_is_named(changes, fault):
    mutant = dataclasses.replace(mutants.MUTANTS[0], **changes)
    assert fault in mutants.misfit(mutant)
