"""Mutants fit the code and the tests as they are: who renames a line or a test of theirs is stopped here."""

import dataclasses

import pytest

from tests.support import ROOT
from tests.support.developer_tools import load_tool

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
