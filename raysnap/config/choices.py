"""The closed choices that configurations, the command line and a run's rows share."""

from enum import StrEnum
from typing import Literal

Method = Literal["baseline", "shift", "alsatian", "shared", "nested"]
AskedMethod = Literal["auto", Method]
Proxy = Literal["linear", "sgd_linear", "knn", "hscore", "logme"]
TRANSFERABILITY: tuple[Proxy, ...] = ("hscore", "logme")  # scores that need no items of their own to test on
StopReason = Literal["tolerance", "no_gain", "all_items", "time_budget"]
Precision = Literal["auto", "float32", "fast_float32", "bfloat16", "float16"]
TrackerName = Literal["mlflow", "wandb"]
Preset = Literal["quick", "good", "best"]  # how much a finetune tries
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
ClassLevel = Literal["outer", "inner"]  # which of two levels of folders names an image's class
UsageAxis = Literal["lineage", "dataset", "architecture", "age"]
# Decoded images, tokens of texts, what searches compute and what they answer, outputs of frozen blocks; and blocks of
# stores in buckets.
CacheKind = Literal["pixels", "tokens", "features", "answers", "prefixes", "blocks"]


class Status(StrEnum):
    """How a trial or a timed search ended, as its row says."""

    DONE = "done"
    STOPPED = "stopped"  # by a scheduler or a time budget
    FAILED = "failed"
    OUT_OF_MEMORY = "oom"
    DIVERGED = "diverged"
    UNKNOWN = "unknown"  # read from a row that doesn't say; never written


class Role(StrEnum):
    """What a trial's snapshot is for."""

    BASE = "base"
    FINETUNE = "finetune"
    SYNTHETIC = "synthetic"
