"""How commands print: JSON, tables and failures."""

import json
import math

import pytest

from raysnap.cli.console import print_failures, print_json, print_result, simple_table


def test_json_has_null_in_place_of_nan_and_infinity(capsys):
    print_json({"a": [math.nan, math.inf, 1.5], 2: None})
    assert json.loads(capsys.readouterr().out) == {"a": [None, None, 1.5], "2": None}


def test_failures_are_one_line_each_on_stderr(capsys):
    print_failures([{"trial": "a", "error": "it broke"}, {"trial": "b", "error": "so did it"}])
    assert capsys.readouterr() == ("", "raysnap: a: it broke\nraysnap: b: so did it\n")


def test_unknown_values_of_a_table_are_dashes(capsys):
    print_result(simple_table(["name", "n"], [("a", None), ("b", 3)], numeric=["n"]))
    assert capsys.readouterr().out.splitlines() == ["name  n", "a     –", "b     3"]


@pytest.mark.parametrize("text", ["[bold]x[/bold]", "[/nothing]"])
def test_markup_in_values_is_printed_as_it_is(capsys, text):
    print_result(simple_table(["name"], [(text,)]))
    assert text in capsys.readouterr().out
