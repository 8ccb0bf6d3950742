"""Read a run directory back: its trials, its timed searches, its environment, and their totals.

Rows are read leniently: a field that is missing or no number is unknown, never an error, since runs that went wrong
need a report, too. Only a run directory without any row is refused.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from raysnap.config.choices import Role, Status
from raysnap.config.yaml_files import read_yaml
from raysnap.errors import ConfigError, DataError, UsageError
from raysnap.humanize import plural, shown
from raysnap.runs.json_fields import mapping, read_rows, text
from raysnap.runs.questions import Question, questions_of
from raysnap.runs.search_rows import SearchRow
from raysnap.runs.shortlist import MODEL_NAME, SEARCH_NAME, TRAINING_DIR, Shortlist
from raysnap.runs.trial_rows import TrialRow, latest_trial_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Everything that a run directory records.

    Attributes:
        env: the environment; what the nested `bench` folder adds is under `bench`.
        num_unfinished: planned trials that have no row.
        remarks: sentences about files that could not be read.
        trial_of: trials by the id of their snapshot.
        shortlist: what a finetune chose to start from; None of other runs.
        model_name: the name in the store of the model that a finetune kept; None where it kept none yet.
    """

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
    shortlist: Shortlist | None = None
    model_name: str | None = None

    @property
    def done_trials(self) -> list[TrialRow]:
        """The finished trials, bases included."""
        return [trial for trial in self.trials if trial.is_done]

    @property
    def finetunes(self) -> list[TrialRow]:
        """The trials that started from a base."""
        return [trial for trial in self.trials if trial.role not in (Role.BASE, Role.SYNTHETIC)]

    @property
    def finetune_times_s(self) -> list[tuple[float, float]]:
        """(wall time, overhead) in seconds of each fine-tune that ran without interruption."""
        known = [(trial.wall_s, trial.overhead_s) for trial in self.finetunes]
        return [(wall_s, overhead_s) for wall_s, overhead_s in known if wall_s and overhead_s is not None]

    @property
    def training_share(self) -> float | None:
        """Training's share of the fine-tunes' wall time, starts of actors excluded; None if no time is known."""
        wall_s = math.fsum(wall_s for wall_s, _ in self.finetune_times_s)
        return 1 - math.fsum(overhead_s for _, overhead_s in self.finetune_times_s) / wall_s if wall_s else None

    @property
    def recorded_bytes(self) -> tuple[float, float]:
        """(bytes that the run's snapshots added to the store, bytes of whole copies), as its rows recorded them."""
        known = [(trial.new_bytes, trial.snapshot_bytes) for trial in self.done_trials]
        pairs = [(new, copied) for new, copied in known if new is not None and copied is not None]
        return math.fsum(new for new, _ in pairs), math.fsum(copied for _, copied in pairs)

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """The questions of the finished searches, each with the methods that answered it."""
        return questions_of(self.searches)

    @property
    def is_sweep(self) -> bool:
        """Whether its trials were sampled from a search space."""
        return self.config.get("kind") == "sweep" or any(trial.point for trial in self.trials)


def read_run(run_dir: Path) -> Run:
    """Read a run directory and the `bench` folder nested in it, or searches that `search --json` printed.

    Args:
        run_dir: a run directory; a `.json` file with the output of a search; or a folder of such files.

    Raises:
        UsageError: there is no such folder.
        DataError: it holds no results, or its results can't be read.
    """
    remarks: list[str] = []
    shortlist = Shortlist.read(run_dir)
    if shortlist is not None:
        return _read_finetune(run_dir, shortlist)
    parts = [part for part in (run_dir, run_dir / "bench") if (part / "results.jsonl").is_file()]
    rows = [row for part in parts for row in _read_rows(part / "results.jsonl", remarks)] or _printed_searches(run_dir)
    if not parts and not rows:
        if not run_dir.is_dir():
            found = "a file" if run_dir.exists() else "nothing there"
            raise UsageError(f"{run_dir}: expected a run directory, found {found}")
        raise DataError(f"{run_dir}: expected a run directory with results.jsonl in it, found none; run the job first")
    trials = tuple(latest_trial_rows(rows))
    searches = {(search.cell, search.repeat): search for search in map(SearchRow.read, _rows_with(rows, "method"))}
    planned = _read_rows(run_dir / "trials.jsonl", remarks) if (run_dir / "trials.jsonl").is_file() else []
    planned = [
        row for row in planned if row.get("role") != Role.BASE or row.get("dataset")
    ]  # a base that is only drawn is no trial
    unfinished = {str(row.get("id", row.get("trial"))) for row in planned} - {trial.name for trial in trials}
    unfinished -= {search.cell for search in searches.values()}
    if not trials and not searches and not unfinished:
        raise DataError(f"{run_dir}/results.jsonl: expected a row per trial or search, found none; run the job first")
    config, config_text = _read_config(parts[0]) if parts else (_config_of(searches.values()), "")
    return Run(
        name=shown(run_dir.resolve().name),
        run_dir=run_dir,
        config=config,
        config_text=config_text,
        env=_read_env(parts, remarks) if parts else _env_of(searches.values()),
        trials=trials,
        num_unfinished=len(unfinished),
        searches=tuple(searches.values()),
        remarks=tuple(remarks),
        bench_config_text=_read_config(parts[1])[1] if len(parts) > 1 else "",
        trial_of={trial.snapshot: trial for trial in trials if trial.snapshot},
    )


def _read_finetune(run_dir: Path, shortlist: Shortlist) -> Run:
    """Return a finetune's run: the sweep that trained, with the search that chose what it starts from."""
    training = read_run(run_dir / TRAINING_DIR)
    rows = _printed_searches(run_dir / SEARCH_NAME)
    searches = tuple(SearchRow.read(row) for row in rows)
    config, config_text = _read_config(run_dir)
    return replace(
        training,
        name=shown(run_dir.resolve().name),
        searches=searches,
        shortlist=shortlist,
        model_name=_model_name(run_dir),
        config=training.config | {key: config[key] for key in ("dataset", "name", "preset") if key in config},
        config_text=config_text,
    )


def _model_name(run_dir: Path) -> str | None:
    """Return the name of the model that a finetune kept; None where that can't be read."""
    try:
        return text(mapping(json.loads((run_dir / MODEL_NAME).read_text("utf-8"))).get("name"))
    except (OSError, ValueError, RecursionError):
        return None


def _printed_searches(path: Path) -> list[dict[str, Any]]:
    """Return rows made of the documents of `search --json` in a file or folder; none if it holds none."""
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


def _config_of(searches: Iterable[SearchRow]) -> dict[str, Any]:
    """Return what printed searches say of their store and the folder of their dataset, where all say the same."""
    asked = [mapping(search.search.get("asked")) for search in searches]
    found = {(text(one.get("store")), text(one.get("data"))) for one in asked}
    store, data = found.pop() if len(found) == 1 else (None, None)
    return {"store": store, "data": data, "data_dir": str(Path(data).parent)} if store and data else {}


def _env_of(searches: Iterable[SearchRow]) -> dict[str, Any]:
    """Return the environment of printed searches, where they ran in one."""
    found = [mapping(mapping(search.search.get("asked")).get("environment")) for search in searches]
    return found[0] if len(found) == 1 else {}


def _rows_with(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return [row for row in rows if row.get(key) is not None]


def _read_rows(path: Path, remarks: list[str]) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines; lines that a crash cut off are left out with a remark."""
    try:
        rows = read_rows(path)
        num_lines = sum(bool(line.strip()) for line in path.read_bytes().splitlines())
    except (OSError, RecursionError) as error:
        raise DataError(f"{path}: expected a file of JSON lines, found one that can't be read: {error}") from None
    if num_lines > len(rows):
        num_torn = num_lines - len(rows)
        were = "was" if num_torn == 1 else "were"
        remarks.append(
            f"{plural(num_torn, 'line')} of {path.name} can't be read and {were} left out, perhaps cut off by a crash."
        )
    return [_cleaned(row) for row in rows]


def _read_config(part: Path) -> tuple[dict[str, Any], str]:
    try:
        config = read_yaml(part / "config.yaml")
    except ConfigError as error:
        logger.warning("the configuration is left out of the report: %s", error)
        return {}, ""
    return _cleaned(config), shown((part / "config.yaml").read_text("utf-8"))


def _read_env(parts: list[Path], remarks: list[str]) -> dict[str, Any]:
    """Return the environment of the run; what a nested part adds is under `bench`."""
    found = []
    for part in parts:
        try:
            env = json.loads((part / "env.json").read_text("utf-8"))
        except FileNotFoundError:
            env = {}
        except (OSError, ValueError) as error:
            remarks.append(f"env.json can't be read and was left out: {shown(str(error))}")
            env = {}
        found.append(_cleaned(env) if isinstance(env, dict) else {})
    return found[0] | ({"bench": found[1]} if len(found) > 1 else {})


def _cleaned(value: Any) -> Any:
    """Return the JSON value with all text fit for UTF-8 and XML."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {shown(str(key)): _cleaned(child) for key, child in value.items()}
    return [_cleaned(child) for child in value] if isinstance(value, list) else value
