"""Keep a search's answer beside the dataset, for a process that asks the same question again.

Cached features spare a later search its forward passes, but not the import of torch, which takes longer than all else
that it then does. An answer is found by a digest of all that it depends on: the options, the snapshots and records, the
dataset's files, this build of raysnap and the libraries that compute, and what they compute on. Where any of that has
changed, the search runs.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from blake3 import blake3
from pydantic import TypeAdapter

from raysnap.atomic import write_atomically
from raysnap.datasets.disk_cache import DiskCache, mark_used
from raysnap.search.engine.items import DrawnItems
from raysnap.search.engine.setup import Setup
from raysnap.search.narrowing import Field
from raysnap.search.plan.tree import Candidate
from raysnap.search.result import SearchResult
from raysnap.system import cache_place, cpu_name, num_cpus, package_version, utc_timestamp

FORMAT = 1
BUDGET_BYTES = 2**24  # of all answers about one dataset
# What computes features and scores.
LIBRARIES = ("torch", "torchvision", "timm", "transformers", "numpy", "scipy")
# Beginnings of the environment variables that change how these compute, and on what.
VARIABLES = ("ATEN_", "CUDA_", "DNNL_", "MKL_", "NVIDIA_", "OMP_", "ONEDNN_", "PYTORCH_", "RAYSNAP_", "TORCH_")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerFile:
    """Where the answer to one question is kept, or will be: a digest of the answer, and the answer as JSON.

    Attributes:
        path: its name is a digest of the question.
    """

    path: Path

    @classmethod
    def of(cls, setup: Setup, field: Field, candidates: Sequence[Candidate], drawn: DrawnItems) -> AnswerFile | None:
        """Return the file of a question; None where nothing is to be kept, or the answer depends on the time it takes.

        Args:
            candidates: those of the first round, on which the later ones depend.
        """
        options = setup.options
        if not options.feature_cache_bytes or options.time_budget_s is not None:
            return None
        facts = (
            FORMAT,
            _describe_build(),
            _describe_machine(),
            str(setup.store),
            options.model_dump_json(exclude={"feature_cache_bytes"}),
            field.summaries,
            candidates,
            # Places by records depend on the lineages of all snapshots.
            field.records and (field.records.digests_R32.tobytes(), field.store.lineages()),
            [getattr(drawn.dataset, name) for name in ("name", "digest", "classes", "notes", "left_out")],
            [(str(item.path), item.label) for item in (*drawn.train, *drawn.test)],
            [cache.directory.name for cache in drawn.caches.values()],  # digests of all files' sizes and times
        )
        name = blake3(repr(facts).encode(errors="surrogateescape")).hexdigest()[:32]
        return cls(cache_place(drawn.dataset.root, "answers") / name)

    def read(self) -> SearchResult | None:
        """Return the answer, whose work and times are those of the search that found it; None where there is none."""
        try:
            digest, _, content = self.path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("the answer kept in %s can't be read: %s", self.path, error)
            return None
        if digest.decode("ascii", "replace") != blake3(content).hexdigest():
            log.warning("the answer kept in %s is damaged; the search runs again", self.path)
            self.path.unlink(missing_ok=True)
            return None
        with suppress(OSError):
            mark_used(self.path)
        return TypeAdapter(SearchResult).validate_python(json.loads(content))

    def keep(self, result: SearchResult) -> None:
        """Keep an answer, unless a snapshot was skipped, which may run next time; a full disk costs time, nothing else.

        The least recently used answers make room for it.
        """
        if result.skipped:
            return
        content = json.dumps(asdict(replace(result, answered=utc_timestamp())))
        document = f"{blake3(content.encode()).hexdigest()}\n{content}"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if DiskCache((self.path.parent,), BUDGET_BYTES).make_room(self.path.parent, len(document)):
                write_atomically(self.path, document)
        except OSError as error:
            log.warning("the answer can't be kept: %s", error)


def _describe_build() -> tuple[object, ...]:
    """Return what tells this build from others: files of raysnap with their lengths and times, and versions."""
    root = Path(__file__).resolve().parents[1]
    files = [
        (str(path), stat.st_size, stat.st_mtime_ns) for path in sorted(root.rglob("*.py")) for stat in [path.stat()]
    ]
    return files, [package_version(library) for library in LIBRARIES]


def _describe_machine() -> tuple[object, ...]:
    """Return what scores are computed on, and what the environment says of that."""
    gpus = sorted(path.read_text() for path in Path("/proc/driver/nvidia/gpus").glob("*/information"))
    variables = sorted((name, value) for name, value in os.environ.items() if name.startswith(VARIABLES))
    return platform.machine(), cpu_name(), num_cpus(), gpus, variables
