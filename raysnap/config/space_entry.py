"""The values of one key of a sweep's space: a grid, a choice or a distribution, unconditional or not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field, model_validator

from raysnap.config.strict import Config, Section
from raysnap.humanize import suggest


class TruncatedNormal(Section):
    """A normal distribution truncated at both ends."""

    mean: float = Field(description="Mean before truncation.")
    deviation: float = Field(gt=0, description="Standard deviation before truncation.")
    low: float = Field(description="The smallest value.")
    high: float = Field(description="The largest value.")

    @model_validator(mode="after")
    def _mean_is_inside(self) -> TruncatedNormal:
        if not self.low < self.mean < self.high:
            raise ValueError(f"expected low < mean < high, found {self.low:g}, {self.mean:g}, {self.high:g}")
        return self


Options = tuple[Any, ...] | dict[str, Any]
"""Values to try, or a mapping from labels to values."""


class SpaceEntry(Config):
    """Values for one key of a sweep: exactly one of a grid, a choice or a distribution."""

    grid: Options | None = Field(None, description="Every value, in every combination with the other grids.")
    choice: Options | None = Field(None, description="One of these values, drawn at random.")
    uniform: tuple[float, float] | None = Field(None, description="A number drawn uniformly from [low, high].")
    loguniform: tuple[float, float] | None = Field(
        None, description="A number from [low, high] whose logarithm is drawn uniformly."
    )
    randint: tuple[int, int] | None = Field(
        None, description="A whole number drawn uniformly from low to high, both included."
    )
    truncated_normal: TruncatedNormal | None = Field(
        None, description="A number drawn from a truncated normal distribution."
    )
    when: dict[str, Any] = Field(
        {}, description="Apply the entry only where each of these keys has this value, or one of these values."
    )

    @model_validator(mode="before")
    @classmethod
    def _check_kind(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"expected one of {', '.join(KINDS_OF_ENTRY)} with its values, found {value!r}")
        for key in value:
            if key not in (*KINDS_OF_ENTRY, "when"):
                raise ValueError(f"unknown kind {key!r}{suggest(key, KINDS_OF_ENTRY)}")
        given = [kind for kind in KINDS_OF_ENTRY if value.get(kind) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"expected exactly one of {', '.join(KINDS_OF_ENTRY)}, found {found}")
        return value

    @model_validator(mode="after")
    def _check_values(self) -> SpaceEntry:
        if self.options is not None and not self.options:
            raise ValueError(f"`{self.kind}` is empty: expected at least one value")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"`{self.kind}`: expected [low, high] with low < high, found {list(self.bounds)}")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError(f"`loguniform`: expected numbers above 0, found {self.loguniform[0]:g}")
        return self

    @property
    def kind(self) -> str:
        """The kind of entry, one of `KINDS_OF_ENTRY`."""
        return next(kind for kind in KINDS_OF_ENTRY if getattr(self, kind) is not None)

    @property
    def options(self) -> dict[str | int, Any] | None:
        """The values of a grid or a choice by label, or by position where they have none; None for a distribution."""
        given = self.grid if self.grid is not None else self.choice
        if given is None:
            return None
        labelled: Iterable[tuple[str | int, Any]] = given.items() if isinstance(given, dict) else enumerate(given)
        return dict(labelled)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The lowest and highest value of a distribution; None for a grid or a choice."""
        normal = self.truncated_normal
        return (normal.low, normal.high) if normal else self.uniform or self.loguniform or self.randint

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and highest value of what is known to be a distribution."""
        assert self.bounds is not None
        return self.bounds


KINDS_OF_ENTRY = ("grid", "choice", "uniform", "loguniform", "randint", "truncated_normal")
