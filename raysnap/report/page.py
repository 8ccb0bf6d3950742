"""A run directory as one self-contained HTML page, and its tables as CSV and Markdown files beside it.

The page loads nothing: style, script, charts and pictures are inline, and its content security policy forbids the rest.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from raysnap.atomic import write_atomically
from raysnap.config.choices import Role
from raysnap.errors import UsageError
from raysnap.humanize import bytes_text, count_text, plural, score_text, seconds_text, share_text
from raysnap.report import headlines as summary
from raysnap.report.search_section import search_section
from raysnap.report.store_section import store_section
from raysnap.report.sweep_section import predictions_section, sweep_section
from raysnap.report.tables import Column, DataTable, Row, without_empty
from raysnap.report.thumbnails import strips
from raysnap.report.training_section import training_section
from raysnap.runs.json_fields import mapping, number
from raysnap.runs.questions import short_dataset
from raysnap.runs.run import Run, read_run
from raysnap.runs.store_contents import read_holdings
from raysnap.runs.trial_rows import TrialRow

TEMPLATES_DIR = Path(__file__).resolve().parent / "templates"


@dataclass(frozen=True)
class Report:
    """A run as a page of HTML, and the tables that stand in it."""

    page: str
    tables: tuple[DataTable, ...]


def write_report(run_dir: Path, out_path: Path | None = None) -> Path:
    """The path of the page that shows `run_dir`: `out_path`, or report.html inside the run directory.

    The page's tables are written beside it, into the folder `<its name>_tables`. A reader sees an old file or the whole
    new one, never a part.

    Args:
        run_dir: a run's folder; or what `search --json` printed, as a file or a folder of such files.
        out_path: where to.

    Raises:
        UsageError: `run_dir` is no folder, or the page can't be written.
        DataError: the run directory holds no results, or broken ones.
    """
    report = render(read_run(run_dir))
    target = out_path or (run_dir / "report.html" if run_dir.is_dir() else run_dir.with_suffix(".html"))
    if target.is_dir():
        raise UsageError(f"{target}: expected the name of an HTML file to write, found a folder")
    tables_dir = target.with_name(f"{target.stem}_tables")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if report.tables:
            tables_dir.mkdir(exist_ok=True)
        for table in report.tables:
            write_atomically(tables_dir / f"{table.name}.csv", table.to_csv())
            write_atomically(tables_dir / f"{table.name}.md", table.to_markdown())
        write_atomically(target, report.page)
    except OSError as error:
        raise UsageError(f"{target}: the report can't be written: {error.strerror or error}") from None
    return target


def render(run: Run) -> Report:
    """The page as HTML, and its tables."""
    holdings = read_holdings(run)
    searches, sweep, seen = search_section(run, holdings[0]), sweep_section(run), predictions_section(run)
    store = store_section(run, holdings) if run.config or run.trials else None
    trials, failures = _trials_table(run), _failures_table(run)
    sections = {"searches": searches, "sweep": sweep, "predictions": seen, "store": store}
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            **sections,
            run=run,
            facts=_facts(run),
            headline=summary.headline(run),
            sentences=summary.sentences(run, holdings[0]),
            key_figures=summary.key_figures(run, holdings[0]),
            training=training_section(run, holdings[0]),
            strips=strips(run),
            failures=failures,
            trials=trials,
            environment=_environment_facts(run),
            **_script(),
        )
    )
    found = [*_tables_in(sections), trials, failures]
    return Report(page, tuple(table for table in found if table is not None and table.rows))


def _tables_in(value: Any) -> list[DataTable]:
    """Every table of the sections, in order, each once."""
    if isinstance(value, DataTable):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [table for child in children for table in _tables_in(child)]
    return list({table.name: table for table in found}.values())


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES_DIR),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        bytes=bytes_text,
        count=count_text,
        score=score_text,
        share=share_text,
        plural=plural,
    )
    return environment


def _script() -> dict[str, Any]:
    script = (TEMPLATES_DIR / "report.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"script": Markup(script), "script_digest": digest}


def _facts(run: Run) -> list[str]:
    """When and on what the run ran, for the line above the headline."""
    started, cpu = run.env.get("started"), run.env.get("cpu")
    when = [f"{started[:16].replace('T', ' ')} UTC"] if isinstance(started, str) and started else []
    return [*when, *([cpu] if isinstance(cpu, str) and cpu else [])]


def _trials_table(run: Run) -> DataTable | None:
    rows = [_trial_row(trial) for trial in run.trials]
    columns = [
        Column("trial", "trial", "name"),
        Column("dataset", "fine-tuned on", "name"),
        Column("architecture", "architecture"),
        Column("retrain_index", "r", "count", "retrain index: blocks retrained below the head"),
        Column("num_blocks", "of", "count", "blocks below the head"),
        Column("val_accuracy", "val acc.", "score"),
        Column("test_accuracy", "test acc.", "score"),
        Column("train_s", "trained", "seconds"),
        Column("total_s", "total", "seconds"),
        Column("new_bytes", "new bytes", "bytes", "bytes of blocks the store did not have yet"),
        Column("status", "status"),
    ]
    names = dict.fromkeys(trial.status for trial in run.trials)
    statuses = tuple((name, sum(trial.status == name for trial in run.trials)) for name in names)
    columns = without_empty(columns, rows)
    return DataTable("trials", "Every trial", columns, tuple(rows), None, statuses, True) if rows else None


def _trial_row(trial: TrialRow) -> Row:
    values = {
        "trial": trial.name,
        "dataset": short_dataset(trial.dataset) if trial.dataset else None,
        "architecture": trial.architecture,
        "retrain_index": trial.retrain_index,
        "num_blocks": trial.num_blocks,
        "val_accuracy": trial.val_accuracy,
        "test_accuracy": trial.test_accuracy,
        "train_s": trial.train_s,
        "total_s": trial.total_s,
        "new_bytes": trial.new_bytes,
        "status": trial.status,
    }
    chips = {"dataset": (("base", ""),)} if trial.role == Role.BASE else {}
    hints = {"dataset": trial.dataset} if trial.dataset else {}
    css = "has-failed" if trial.has_failed else ""
    return Row(values, chips, {}, hints, css, {"data-trial": trial.name, "data-status": trial.status})


def _failures_table(run: Run) -> DataTable | None:
    """Everything that went wrong: trials, searches, and candidates that a search skipped."""
    rows = [
        _failure("trial", trial.name, trial.status, trial.error or "no reason was recorded")
        for trial in run.trials
        if trial.has_failed
    ]
    skipped: dict[tuple[str, str], list[str]] = {}
    for search in run.searches:
        if not search.is_done:
            error = search.error or "no reason was recorded"
            rows.append(_failure("search", f"{search.cell}, run {search.repeat + 1}", search.status, error))
        for snapshot, error in search.skipped:
            skipped.setdefault((snapshot, error), []).append(search.method)
    for (snapshot, error), methods in skipped.items():
        trial = run.trial_of.get(snapshot)
        name = f"{trial.name if trial else snapshot[:12]} ({', '.join(dict.fromkeys(methods))})"
        rows.append(_failure("candidate", name, "skipped", error))
    columns = (Column("what", "what"), Column("name", "name", "name"), Column("status", "status"))
    columns = (*columns, Column("reason", "reason", "name"))
    return DataTable("failures", "What went wrong", columns, tuple(rows)) if rows else None


def _failure(what: str, name: str, status: str, reason: str) -> Row:
    return Row({"what": what, "name": name, "status": status, "reason": reason}, css="has-failed")


def _environment_facts(run: Run) -> list[tuple[str, str]]:
    """(name, value) of what the run ran on and with."""
    env = run.env
    machines = [
        mapping(one) for one in mapping(env.get("machines") or mapping(env.get("bench")).get("machines")).values()
    ]
    rows = [
        ("started", env.get("started")),
        ("finished", env.get("finished")),
        ("wall time", seconds_text(number(env.get("wall_s"))) if number(env.get("wall_s")) is not None else None),
        ("seed", env.get("seed")),
        *_machine_facts(env, ""),
    ]
    for place, machine in enumerate(machines, start=1):
        rows += _machine_facts(machine, f", machine {place}" if len(machines) > 1 else "")
    return list(dict.fromkeys((name, str(value)) for name, value in rows if value not in (None, "")))


def _machine_facts(machine: dict[str, Any], which: str) -> Sequence[tuple[str, Any]]:
    gpus, memory_bytes = machine.get("gpus"), number(machine.get("memory_bytes"))
    return [
        (f"host{which}", machine.get("hostname")),
        (f"commit{which}", machine.get("commit")),
        (f"platform{which}", machine.get("platform")),
        (f"CPU{which}", machine.get("cpu")),
        (f"CPU cores{which}", machine.get("num_cpus")),
        (f"memory{which}", bytes_text(memory_bytes) if memory_bytes else None),
        (f"GPUs{which}", ", ".join(map(str, gpus)) or "none" if isinstance(gpus, list) else None),
        *((f"{name}{which}", machine.get(name)) for name in ("raysnap", "python", "torch", "torchvision", "ray")),
    ]
