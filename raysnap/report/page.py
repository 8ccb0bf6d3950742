"""Write a run directory as one self-contained HTML page, and its tables as CSV and Markdown files beside it.

The page loads nothing: style, script, charts and pictures are inline, and its content security policy forbids the rest.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from raysnap.atomic import write_atomically
from raysnap.config.choices import Role
from raysnap.config.folders import BucketAddress, local_path, store_path
from raysnap.errors import UsageError
from raysnap.humanize import bytes_text, count_text, plural, score_text, seconds_text, share_text, shown
from raysnap.report.data_section import left_out_table
from raysnap.report.finetune_section import finetune_section
from raysnap.report.gpu_section import gpu_section
from raysnap.report.headlines import headline, key_figures, sentences
from raysnap.report.predictions_section import predictions_section
from raysnap.report.ranking_section import ranking_section
from raysnap.report.speed_section import speed_section
from raysnap.report.store_section import store_section
from raysnap.report.sweep_section import sweep_section
from raysnap.report.tables import Chip, Column, DataTable, Row, without_empty
from raysnap.report.thumbnails import dataset_strips
from raysnap.report.training_section import training_section
from raysnap.runs.json_fields import mapping, number
from raysnap.runs.questions import short_dataset
from raysnap.runs.run import Run, read_run
from raysnap.runs.run_copy import RunCopy
from raysnap.runs.store_contents import read_store_contents
from raysnap.runs.trial_rows import TrialRow

OURS = (
    b"""<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src"""
)
"""What the first lines of every report hold, of earlier versions too."""

TEMPLATES_DIR = Path(__file__).resolve().parent / "templates"


@dataclass(frozen=True)
class Report:
    """A run as a page of HTML, and the tables on it."""

    page: str
    tables: tuple[DataTable, ...]


def write_report(run_dir: Path | str, out_path: Path | str | None = None) -> Path:
    """Write the report of a run and return its path.

    >>> str(raysnap.write_report("runs/synthesize"))
    'runs/synthesize/report.html'

    The page's tables are written beside it, into the folder `<its name>_tables`. A reader sees an old file or the whole
    new one, never a part.

    Args:
        run_dir: a run's folder, its address in a bucket, a file with the output of `search --json`, or a folder of such
            files.
        out_path: file to write; by default report.html inside the run directory, or here where that is in a bucket.

    Raises:
        UsageError: `run_dir` does not exist, or the page can't be written or would replace a file that is no report.
        DataError: the run directory holds no results, or they can't be read.
    """
    place = store_path(run_dir)
    if isinstance(place, BucketAddress):
        report, default = _render_from_bucket(place), Path("report.html")
    else:
        report = render(read_run(place))
        default = place / "report.html" if place.is_dir() else place.with_suffix(".html")
    target = local_path(out_path) if out_path else default
    if target.is_dir():
        raise UsageError(f"{target}: expected the name of an HTML file to write, found a folder")
    tables_dir = target.with_name(f"{target.stem}_tables")
    try:
        if target.is_file() and target.stat().st_size and OURS not in _beginning(target):
            raise UsageError(f"{target}: expected a report or no file, found another file; choose another --out")
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


def _render_from_bucket(address: BucketAddress) -> Report:
    with TemporaryDirectory(prefix="raysnap-report-") as folder:
        copy = RunCopy(address)
        if not copy.is_begun():
            raise UsageError(f"{address}: expected a run, found none there")
        run_dir = Path(folder) / address.name
        copy.fetch(run_dir, checkpoints=False)
        return render(read_run(run_dir))


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)


def render(run: Run) -> Report:
    """Return the page and its tables."""
    stores = read_store_contents(run)
    sections = {
        "finetune": finetune_section(run),
        "rankings": ranking_section(run, stores[0]),
        "speed": speed_section(run),
        "shows_speed": run.shortlist is None,
        "sweep": sweep_section(run),
        "predictions": predictions_section(run),
        "left_out": left_out_table(run),
        "store": store_section(run, stores) if run.config or run.trials else None,
        "gpus": gpu_section(run),
        "failures": _failures_table(run),
        "trials": _trials_table(run),
    }
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            **sections,
            run=run,
            facts=_facts(run),
            headline=headline(run),
            sentences=sentences(run, stores[0]),
            key_figures=key_figures(run, stores[0]),
            training=training_section(run, stores[0]),
            strips=dataset_strips(run),
            environment=_environment_facts(run),
            **_script(),
        )
    )
    return Report(shown(page), tuple(table for table in _tables_in(sections) if table.rows))


def _tables_in(value: Any) -> list[DataTable]:
    """Return every table of the sections, in order, each once."""
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
    """Return when and on which CPU the run ran, for the line above the headline."""
    started, cpu = run.env.get("started") or run.env.get("finished"), run.env.get("cpu")
    when = [f"{started[:16].replace('T', ' ')} UTC"] if isinstance(started, str) and started else []
    return [*when, *([cpu] if isinstance(cpu, str) and cpu else [])]


def _trials_table(run: Run) -> DataTable | None:
    rows = [_trial_row(trial) for trial in run.trials]
    columns = [
        Column("trial", "trial", "name"),
        Column("dataset", "fine-tuned on", "name"),
        Column("architecture", "architecture"),
        Column("retrain_index", "r", "count", "retrain index r: number of blocks retrained below the head"),
        Column("num_blocks", "of", "count", "number of blocks below the head"),
        Column("val_accuracy", "val acc.", "score"),
        Column("test_accuracy", "test acc.", "score"),
        Column("train_s", "training", "seconds"),
        Column("total_s", "total", "seconds", "training and everything else"),
        Column("new_bytes", "added", "bytes", "size of the blocks that the trial added to the store"),
        Column("status", "status"),
    ]
    statuses = tuple(Counter(trial.status for trial in run.trials).items())
    shown = without_empty(columns, rows)
    return DataTable("trials", "All trials", shown, tuple(rows), None, statuses, is_filtered=True) if rows else None


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
    chips: dict[str, tuple[Chip, ...]] = {"dataset": (("base", ""),)} if trial.role == Role.BASE else {}
    hints = {"dataset": trial.dataset} if trial.dataset else {}
    css = "has-failed" if trial.has_failed else ""
    return Row(values, chips, {}, hints, css, {"data-trial": trial.name, "data-status": trial.status})


def _failures_table(run: Run) -> DataTable | None:
    """Return everything that failed: trials, searches, and candidates that a search skipped."""
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
    columns = (
        Column("what", "what"),
        Column("name", "name", "name"),
        Column("status", "status"),
        Column("reason", "reason", "name"),
    )
    return DataTable("failures", "Failures", columns, tuple(rows)) if rows else None


def _failure(what: str, name: str, status: str, reason: str) -> Row:
    return Row({"what": what, "name": name, "status": status, "reason": reason}, css="has-failed")


def _environment_facts(run: Run) -> list[tuple[str, str]]:
    """Return (name, value) of the machine and the software of the run."""
    env = run.env
    machines = mapping(env.get("machines") or mapping(env.get("bench")).get("machines")).values()
    rows = [
        ("started", env.get("started")),
        ("finished", env.get("finished")),
        ("wall time", seconds_text(number(env.get("wall_s"))) if number(env.get("wall_s")) is not None else None),
        ("seed", env.get("seed")),
        *_machine_facts(env, ""),
    ]
    for index, machine in enumerate(machines, start=1):
        suffix = f", machine {index}" if len(machines) > 1 else ""
        rows += _machine_facts(mapping(machine), suffix)
    return list(dict.fromkeys((name, str(value)) for name, value in rows if value not in (None, "")))


def _machine_facts(machine: dict[str, Any], suffix: str) -> Sequence[tuple[str, Any]]:
    gpus, memory_bytes = machine.get("gpus"), number(machine.get("memory_bytes"))
    return [
        (f"host{suffix}", machine.get("hostname")),
        (f"commit{suffix}", machine.get("commit")),
        (f"platform{suffix}", machine.get("platform")),
        (f"CPU{suffix}", machine.get("cpu")),
        (f"CPU cores{suffix}", machine.get("num_cpus")),
        (f"memory{suffix}", bytes_text(memory_bytes) if memory_bytes else None),
        (f"GPUs{suffix}", ", ".join(map(str, gpus)) or "none" if isinstance(gpus, list) else None),
        *((f"{name}{suffix}", machine.get(name)) for name in ("raysnap", "python", "torch", "torchvision", "ray")),
    ]
