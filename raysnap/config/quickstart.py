"""Configuration of the quickstart: a population and its timed searches in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from raysnap.config.bench import BenchConfig
from raysnap.config.folders import folder_fault
from raysnap.config.jobs import GenerateConfig
from raysnap.config.strict import Section
from raysnap.errors import ConfigError, UsageError


class QuickstartConfig(Section):
    """Both jobs on the built-in data: generate a population, then time searches of it.

    >>> from pathlib import Path
    >>> job = raysnap.load_config("configs/quickstart.yaml", [], raysnap.QuickstartConfig)
    >>> str(job.inside(Path("first")).generate.store)
    'first/store'
    """

    kind: Literal["quickstart"] = "quickstart"
    generate: GenerateConfig
    bench: BenchConfig

    def inside(self, directory: Path) -> QuickstartConfig:
        """Return the job with every folder inside `directory`; both halves share one store and its data.

        Raises:
            ConfigError: the configuration names a folder itself.
            UsageError: the directory is not one for a job.
        """
        fault = folder_fault(directory)
        if fault is not None:
            raise UsageError(f"--dir {directory}: {fault}")
        for half in ("generate", "bench"):
            for key in ("store", "data_dir", "run_dir"):
                if key in getattr(self, half).model_fields_set:
                    raise ConfigError(
                        f"{half}.{key}: a quickstart keeps everything in one folder; choose it with --dir"
                    )
        if self.bench.groups:
            raise ConfigError("bench.groups: a quickstart times one grid; run the groups with `raysnap bench`")
        store, data_dir, run_dir = directory / "store", directory / "data", directory / "run"
        return self.model_copy(
            update={
                "generate": self.generate.model_copy(update={"store": store, "data_dir": data_dir, "run_dir": run_dir}),
                "bench": self.bench.model_copy(
                    update={"store": (store,), "data_dir": data_dir, "run_dir": run_dir / "bench"}
                ),
            }
        )
