"""A run directory read back: its trials, its timed searches, its environment, and what they add up to.

Rows are read leniently: a field that is missing or no number is unknown, never an error, since a report must
also stand for a run that went wrong. Only a run directory without any row is refused.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from raysnap.config.choices import Role, Status
from raysnap.config.yaml_files import read_yaml
from raysnap.errors import ConfigError, DataError, UsageError
from raysnap.humanize import clean, plural
from raysnap.runs.json_fields import mapping, text
from raysnap.runs.questions import Question, questions_of
from raysnap.runs.rows import read_rows
from raysnap.runs.search_rows import SearchRow
from raysnap.runs.trial_rows import TrialRow, latest_trial_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Everything a run directory says."""

    name: str
    run_dir: Path
    config: dict[str, Any]
    config_text: str
    env: dict[str, Any]
    trials: tuple[TrialRow, ...]
    num_unfinished: int
    searches: tuple[SearchRow, ...]
    remarks: tuple[str, ...] = ()
    bench_config_text: str = ""
    trial_of: dict[str, TrialRow] = field(default_factory=dict)

    @property
    def done_trials(self) -> list[TrialRow]:
        """The trials that ran to their end, bases too."""
        return [trial for trial in self.trials if trial.is_done]

    @property
    def finetunes(self) -> list[TrialRow]:
        """The trials that started from a base."""
        return [trial for trial in self.trials if trial.role not in (Role.BASE, Role.SYNTHETIC)]

    @property
    def timed_trials(self) -> list[TrialRow]:
        """The fine-tunes that went from start to end in one run, so that their wall time is known."""
        return [trial for trial in self.finetunes if trial.wall_s and trial.overhead_s is not None]

    @property
    def training_share(self) -> float | None:
        """Time in training over the wall time of the fine-tunes, starts of actors left out; None without any."""
        wall_s = math.fsum(trial.wall_s for trial in self.timed_trials)
        return 1 - math.fsum(trial.overhead_s for trial in self.timed_trials) / wall_s if wall_s else None

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """What the finished searches were asked, each with the methods that answered."""
        return questions_of(self.searches)

    @property
    def is_sweep(self) -> bool:
        """Whether its trials differ in what a search space says."""
        return self.config.get("kind") == "sweep" or any(trial.point for trial in self.trials)


def read_run(run_dir: Path) -> Run:
    """What `run_dir`, and the `bench` folder nested in it, hold; or the searches that `search --json` printed.

    Those are told by a file ending in `.json`, or by a folder of such files that is no run directory.

    Raises:
        UsageError: there is no such folder.
        DataError: it holds no results, or results that can't be read.
    """
    remarks: list[str] = []
    parts = [part for part in (run_dir, run_dir / "bench") if (part / "results.jsonl").is_file()]
    rows = [row for part in parts for row in _read_rows(part / "results.jsonl", remarks)] or _printed_searches(run_dir)
    if not parts and not rows:
        if not run_dir.is_dir():
            found = "a file" if run_dir.exists() else "nothing there"
            raise UsageError(f"{run_dir}: expected a run directory, found {found}")
        raise DataError(f"{run_dir}: expected a run directory with results.jsonl in it, found none; run the job first")
    trials = tuple(latest_trial_rows(rows))
    searches = {(one.cell, one.repeat): one for one in map(SearchRow.read, _rows_with(rows, "method"))}
    planned = _read_rows(run_dir / "trials.jsonl", remarks) if (run_dir / "trials.jsonl").is_file() else []
    planned = [row for row in planned if row.get("role") != Role.BASE or row.get("dataset")]  # a drawn base is no trial
    unfinished = {str(row.get("id", row.get("trial"))) for row in planned} - {trial.name for trial in trials}
    unfinished -= {one.cell for one in searches.values()}
    if not trials and not searches and not unfinished:
        raise DataError(f"{run_dir}/results.jsonl: expected a row per trial or search, found none; run the job first")
    config, config_text = _read_config(parts[0]) if parts else ({}, "")
    return Run(
        name=clean(run_dir.resolve().name),
        run_dir=run_dir,
        config=config,
        config_text=config_text,
        env=_read_env(parts, remarks) if parts else {},
        trials=trials,
        num_unfinished=len(unfinished),
        searches=tuple(searches.values()),
        remarks=tuple(remarks),
        bench_config_text=_read_config(parts[1])[1] if len(parts) > 1 else "",
        trial_of={trial.snapshot: trial for trial in trials if trial.snapshot},
    )


def _printed_searches(path: Path) -> list[dict[str, Any]]:
    """Rows made of the documents of `search --json` in the file or folder `path`; none where there is none."""
    files = (
        sorted(path.glob("*.json")) if path.is_dir() else [path] if path.suffix == ".json" and path.is_file() else []
    )
    rows = []
    for file in files:
        try:
            document = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if "ranking" in mapping(document) and text(document.get("method")):
            facts = {"cell": file.stem, "method": document["method"], "status": Status.DONE}
            rows.append(_cleaned(facts | {"search": document}))
    return rows


def _rows_with(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return [row for row in rows if row.get(key) is not None]


def _read_rows(path: Path, remarks: list[str]) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; what a crash tore is left out with a remark."""
    try:
        rows = read_rows(path)
        num_lines = sum(bool(line.strip()) for line in path.read_bytes().splitlines())
    except (OSError, RecursionError) as error:
        raise DataError(f"{path}: expected a file of JSON lines, found one that can't be read: {error}") from None
    if num_lines > len(rows):
        torn = plural(num_lines - len(rows), "line")
        remarks.append(f"{torn} of {path.name} can't be read, perhaps cut off by a crash, and left out.")
    return [_cleaned(row) for row in rows]


def _read_config(part: Path) -> tuple[dict[str, Any], str]:
    try:
        config = read_yaml(part / "config.yaml")
    except ConfigError as error:
        logger.warning("the report goes without the configuration: %s", error)
        return {}, ""
    return _cleaned(config), clean((part / "config.yaml").read_text("utf-8"))


def _read_env(parts: list[Path], remarks: list[str]) -> dict[str, Any]:
    """The environment of the run; what a nested part adds is kept under `bench`."""
    found = []
    for part in parts:
        try:
            env = json.loads((part / "env.json").read_text("utf-8"))
        except FileNotFoundError:
            env = {}
        except (OSError, ValueError) as error:
            remarks.append(f"env.json is unreadable and left out: {clean(str(error))}")
            env = {}
        found.append(_cleaned(env) if isinstance(env, dict) else {})
    return found[0] | ({"bench": found[1]} if len(found) > 1 else {})


def _cleaned(value: Any) -> Any:
    """The JSON value with all text fit for UTF-8 and XML."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(key)): _cleaned(child) for key, child in value.items()}
    return [_cleaned(child) for child in value] if isinstance(value, list) else value
