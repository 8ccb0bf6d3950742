"""A grid of timed searches: axes of one or more values, and how each combination is timed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from raysnap.config.choices import Method, Precision, Proxy
from raysnap.config.folders import AnyStore, NameOrFolder, StorePath
from raysnap.config.parts import ShapesConfig
from raysnap.config.search_options import DEFAULT_TOLERANCE, Count, EdgePx, SearchOptions, Tolerance
from raysnap.config.strict import Section, refuse_repeated

Value = TypeVar("Value")


def _single_or_list(values: tuple[Any, ...]) -> Any:
    plain = [str(value) if isinstance(value, Path) else value for value in values]
    return plain[0] if len(plain) == 1 else plain


# A list, or a single value, which is read as a list of one and written as itself.
Axis: TypeAlias = Annotated[
    tuple[Value, ...],
    BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,)),
    Field(min_length=1),
    PlainSerializer(_single_or_list),
]
Text: TypeAlias = Annotated[str, Field(min_length=1)]


class BenchGrid(Section):
    """A grid of timed searches; an axis is one value or a list, and every combination is a cell."""

    title: str | None = Field(None, description="What the grid shows, as the title of its part of the report.")
    store: Axis[AnyStore] = Field(
        (Path("store"),), description="Model stores, folders or addresses, or names of `synthetic_sets`; an axis."
    )
    datasets: Axis[NameOrFolder] = Field((), description="Dataset names or paths of ImageFolders; an axis.")
    where: Axis[Text | None] = Field(
        (None,), description="Which snapshots are candidates, e.g. `architecture == 'resnet18'`; an axis."
    )
    num_train: Axis[Count | None] = Field(
        (None,), description="Training items to fit probes on, null is all; an axis that is paired with `num_test`."
    )
    num_test: Axis[Count | None] = Field(
        (None,), description="Items to score on, null is all; one value for all of `num_train`, or one for each."
    )
    image_size: Axis[EdgePx] = Field(
        (224,), description="Edge of the square input image, in pixels, or tokens of a text; an axis."
    )
    budget_bytes: Axis[Count | None] = Field(
        (None,), description="Bound on the activations held, null is no limit; an axis."
    )
    cache: Axis[Literal["warm", "cold"]] = Field(
        ("warm",),
        description="Whether files are in the page cache (warm) or evicted from it (cold) before a run; an axis.",
    )
    proxies: Axis[Proxy] = Field(
        ("linear",),
        description="Scores that predict fine-tuned accuracy; an axis. `sgd_linear` is the published one and diverges "
        "on features of large norm.",
    )
    methods: Axis[Method] = Field(
        ("baseline", "shift", "alsatian", "shared"), description="How a search spreads items over candidates; an axis."
    )
    tolerance: Tolerance = Field(
        DEFAULT_TOLERANCE, description="Accuracy on new items that the answer of `nested` may lose."
    )
    precision: Precision = Field(
        "auto",
        description="Number format of the blocks; auto is bfloat16 where the hardware supports it, float16 on older "
        "GPUs, else fast_float32, which on a CPU takes fewer products than torch's own float32 and differs by 1e-5.",
    )
    io_limit_mib_per_s: float | None = Field(
        None, gt=0, le=1e6, description="Limit on the rate at which block files are read, in MiB/s; null is no limit."
    )
    detail: Literal["end_to_end", "rungs", "steps", "step_details"] = Field(
        "steps",
        description="What a row breaks its time down by: nothing, rungs, rungs and stages, or single block reads too.",
    )
    repeats: int = Field(3, ge=1, le=1000, description="Timed runs of each cell.")
    num_warmups: int = Field(
        1, ge=0, le=100, description="Untimed runs of each cell before the timed ones, in the same process."
    )

    @property
    def item_counts(self) -> tuple[tuple[int | None, int | None], ...]:
        """The pairs of `num_train` and `num_test`; None is all items."""
        num_pairs = max(len(self.num_train), len(self.num_test))
        spread = (axis if len(axis) == num_pairs else axis * num_pairs for axis in (self.num_train, self.num_test))
        return tuple(zip(*spread, strict=True))

    def questions(
        self, *, seed: int, data_dir: Path, shapes: ShapesConfig | None
    ) -> Iterator[tuple[tuple[StorePath, str, str], SearchOptions]]:
        """Yield each store, dataset and page cache state with the options of a search, question by question."""
        combinations = itertools.product(
            self.store,
            self.datasets,
            self.where,
            self.item_counts,
            self.image_size,
            self.budget_bytes,
            self.proxies,
            self.methods,
            self.cache,
        )
        for store, data, where, (num_train, num_test), image_size, budget_bytes, proxy, method, cache in combinations:
            options = SearchOptions(
                method=method,
                proxy=proxy,
                tolerance=self.tolerance,
                num_train=num_train,
                num_test=num_test,
                image_size=image_size,
                budget_bytes=budget_bytes,
                where=where,
                max_candidates=None,  # methods are compared on all candidates
                seed=seed,
                data_dir=data_dir,
                shapes=shapes,
                precision=self.precision,
            )
            yield (store, data, cache), options

    @model_validator(mode="after")
    def _check_axes(self) -> BenchGrid:
        for name in ("store", "where", "image_size", "budget_bytes", "cache", "datasets", "methods", "proxies"):
            refuse_repeated(name, getattr(self, name))
        if 1 not in (len(self.num_train), len(self.num_test)) and len(self.num_train) != len(self.num_test):
            raise ValueError(
                f"`num_train` and `num_test` are paired: expected lists of equal length, found "
                f"{len(self.num_train)} and {len(self.num_test)}"
            )
        refuse_repeated("num_train and num_test", self.item_counts)
        return self
