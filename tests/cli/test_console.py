"""How commands print: JSON, tables and failures."""

import json
import logging
import math

import pytest
from rich.text import Text
from rich.tree import Tree

from raysnap.cli.app import main
from raysnap.cli.console import print_failures, print_json, print_result, simple_table
from raysnap.humanize import shown


def test_json_has_null_in_place_of_nan_and_infinity(capsys):
    print_json({"a": [math.nan, math.inf, 1.5], 2: None})
    assert json.loads(capsys.readouterr().out) == {"a": [None, None, 1.5], "2": None}


def test_failures_are_one_line_each_on_stderr(capsys):
    print_failures([{"trial": "a", "error": "it broke"}, {"trial": "b", "error": "so did it"}])
    assert capsys.readouterr() == ("", "raysnap: a: it broke\nraysnap: b: so did it\n")


def test_unknown_values_of_a_table_are_dashes(capsys):
    print_result(simple_table(["name", "n"], [("a", None), ("b", 3)], numeric=["n"]))
    assert capsys.readouterr().out.splitlines() == ["name  n", "a     –", "b     3"]


FORGED = "a\x1b[2K\rraysnap: all is well\u202e\x9b1m\x07"
VISIBLE = r"a\x1b[2K\rraysnap: all is well\u202e\x9b1m\x07"


def test_names_in_results_act_on_no_terminal(capsys):
    print_result(simple_table(["name", FORGED], [(FORGED, "b\nc")]))
    print_result(Text(FORGED))
    tree = Tree(FORGED)
    tree.add(Text(FORGED))
    print_result(tree)
    print_result(f"Read {FORGED}\nand no more")
    out = capsys.readouterr().out
    assert shown(out) == out
    assert out.count(VISIBLE) == 4
    assert out.count(r"a\x1b[2K") == 6  # of what it is given as Text, rich itself drops a few
    assert r"b\nc" in out
    assert f"Read {VISIBLE}\nand no more\n" in out


def test_what_errors_and_logs_quote_stays_in_its_line(capsys, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    assert main(["config", f"{FORGED}\nraysnap: x.yaml"]) == 2
    assert main([f"{FORGED}"]) == 2
    print_failures([{"file": FORGED, "error": "no\nimage \udcff"}])
    logging.getLogger("raysnap").warning("%s is\nleft out", FORGED)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(rf"raysnap: {VISIBLE}\nraysnap: x.yaml")
    assert VISIBLE.replace("\\", "") in lines[1].replace("\\", "")
    assert lines[2:] == [rf"raysnap: {VISIBLE}: no\nimage \udcff", rf"raysnap: {VISIBLE} is\nleft out"]


@pytest.mark.parametrize("text", ["[bold]x[/bold]", "[/nothing]"])
def test_markup_in_values_is_printed_as_it_is(capsys, text):
    print_result(simple_table(["name"], [(text,)]))
    assert text in capsys.readouterr().out
