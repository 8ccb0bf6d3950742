"""Tables of a report as files."""

import re

import pytest

from raysnap.report.page import write_report
from tests.support.report_pages import render, some_trials, tables
from tests.support.report_runs import (
    bench_run,
    trial,
    write_run,
)


def test_every_table_is_written_as_csv_and_markdown(tmp_path):
    run_dir = bench_run(tmp_path / "run")
    page, written = render(run_dir), tables(run_dir)
    shown = {value.removeprefix("table-") for tag, key, value in page.attributes if (tag, key) == ("table", "id")}
    assert shown == written.keys()
    header, *rows = written["timings_01"]
    assert dict(zip(header, rows[0], strict=True))["median_s"] == "8.08"
    lines = (run_dir / "report_tables" / "timings_01.md").read_text("utf-8").splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert len([line for line in lines if line.startswith("|")]) == 2 + len(rows)


def test_tables_are_written_beside_the_page(tmp_path):
    run_dir = write_run(tmp_path / "run", some_trials())
    write_report(run_dir, tmp_path / "shown" / "first.html")
    assert not (run_dir / "report_tables").exists()
    assert (tmp_path / "shown" / "first_tables" / "trials.csv").is_file()


@pytest.mark.parametrize(
    "name", ["=HYPERLINK(1)", "+1", "-1", "@x", "a|b", "`c`", "<b>d</b>", "[e](f)", "g\nh", 'i"j,k']
)
def test_hostile_text_is_no_formula_and_no_markup(tmp_path, name):
    run_dir = write_run(tmp_path / "run", [trial(1, name=name), trial(2)])
    write_report(run_dir)
    (header, first, _), markdown = tables(run_dir)["trials"], (run_dir / "report_tables" / "trials.md").read_text()
    assert dict(zip(header, first, strict=True))["trial"].split() == (f"'{name}" if name[0] in "=+-@" else name).split()
    row = next(line for line in markdown.splitlines() if line.startswith("|") and "resnet18" in line)
    assert not re.search(r"(?<!\\)[`\[<]", row)
    assert len(re.findall(r"(?<!\\)\|", row)) == len(header) + 1
