"""What the stages of a job that fine-tunes share: its plan, its places, and the clock of its stages."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from raysnap.cluster.places import JobFolder, check_places, marked, store_places
from raysnap.config.jobs import TrialsConfig
from raysnap.datasets.layout.account import Account
from raysnap.planning.generate import TrialsPlan
from raysnap.progress import OnProgress
from raysnap.runs.run_directory import RunDirectory, lock_run
from raysnap.runs.run_lock import RunLock
from raysnap.store.store import Store
from raysnap.system import utc_timestamp


@dataclass
class StageClock:
    """When a job started, and the seconds that each of its stages took."""

    started: str = field(default_factory=utc_timestamp)
    started_s: float = field(default_factory=time.perf_counter)
    stages_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of the job."""
        started_s = time.perf_counter()
        yield
        self.stages_s[name] = time.perf_counter() - started_s


@dataclass(frozen=True)
class Job:
    """A job that fine-tunes, checked and opened; no other process writes to its run directory.

    Attributes:
        metric: what a sweep compares its trials by, which its rows and predictions are kept for; None elsewhere.
        mark: a file in the run directory by which trials know that they see the same one.
    """

    config: TrialsConfig
    plan: TrialsPlan
    store: Store
    run_dir: RunDirectory
    on_progress: OnProgress
    metric: str | None = None
    mark: Path | None = None
    clock: StageClock = field(default_factory=StageClock)

    @classmethod
    @contextmanager
    def open(
        cls,
        config: TrialsConfig,
        plan: TrialsPlan,
        *,
        resume: bool,
        on_progress: OnProgress,
        lock: RunLock | None = None,
        metric: str | None = None,
    ) -> Iterator[Job]:
        """Open the job's store and run directory until the block ends, and create them where they are missing.

        Args:
            lock: what holds the run directory already.

        Raises:
            RaysnapError: the run directory holds another run, another process writes to it, a node of the cluster
                doesn't see the job's folders, or the store can't be opened.
        """
        with lock_run(config, config.run_dir, resume=resume, lock=lock) as held:
            check_places(_places(config, plan))
            store = Store.open(config.store, create=True)
            run_dir = RunDirectory.open(config, held, resume=resume)
            try:
                with marked(config.run_dir / "ray") as mark:
                    yield cls(config, plan, store, run_dir, on_progress, metric, mark)
            finally:
                run_dir.close()

    def write_env(self, *, is_over: bool, data: Sequence[Account] = ()) -> None:
        """Write what the job runs on and, once known, what was read of its datasets and how long its stages took."""
        wall_s = time.perf_counter() - self.clock.started_s if is_over else None
        stages_s = self.clock.stages_s if is_over else {}
        accounts = [asdict(account) for account in data]
        self.run_dir.write_env(self.config.seed, self.clock.started, wall_s, stages_s, data=accounts)


def _places(config: TrialsConfig, plan: TrialsPlan) -> list[JobFolder]:
    """Return the folders of a job, as all nodes must see them."""
    found = {name: folder for name, folder in plan.datasets.items() if folder is not None}
    return [
        JobFolder("run_dir", config.run_dir, "shared"),
        *store_places("store", config.store, "locked"),
        *([JobFolder("data_dir", config.data_dir, "shared")] if len(found) < len(plan.datasets) else []),
        *(JobFolder(f"dataset {name!r}", folder, "read") for name, folder in found.items()),
    ]
