"""What one key of a sweep's space is tried with: a grid, a choice, or a distribution, perhaps on a condition."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from raysnap.config.strict import Config, Section
from raysnap.humanize import suggest


class TruncatedNormal(Section):
    """A normal distribution that is cut off at both ends."""

    mean: float = Field(description="Its mean before it is cut.")
    deviation: float = Field(gt=0, description="Its standard deviation before it is cut.")
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
    """What one key of a sweep is tried with: exactly one of a grid, a choice or a distribution."""

    grid: Options | None = Field(None, description="Every value, with every combination of the other grids.")
    choice: Options | None = Field(None, description="One value by chance.")
    uniform: tuple[float, float] | None = Field(None, description="A number between two.")
    loguniform: tuple[float, float] | None = Field(None, description="A number between two, even in its logarithm.")
    randint: tuple[int, int] | None = Field(None, description="A whole number between two, both included.")
    truncated_normal: TruncatedNormal | None = Field(None, description="A number from a truncated normal.")
    when: dict[str, Any] = Field(
        {}, description="Holds only where these keys have this value, or one of these; else the key keeps its own."
    )

    @model_validator(mode="before")
    @classmethod
    def _names_one_kind(cls, value: Any) -> Any:
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
    def _has_something_to_try(self) -> SpaceEntry:
        if self.options is not None and not self.options:
            raise ValueError(f"`{self.kind}` is empty: expected at least one value")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"`{self.kind}`: expected [low, high] with low < high, found {list(self.bounds)}")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError(f"`loguniform`: expected numbers above 0, found {self.loguniform[0]:g}")
        return self

    @property
    def kind(self) -> str:
        """Which of the kinds it is."""
        return next(kind for kind in KINDS_OF_ENTRY if getattr(self, kind) is not None)

    @property
    def options(self) -> dict[str | int, Any] | None:
        """The values of a grid or a choice by their labels, or by their places where they have none."""
        given = self.grid if self.grid is not None else self.choice
        return given if given is None or isinstance(given, dict) else dict(enumerate(given))

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The ends of a range of numbers."""
        normal = self.truncated_normal
        return (normal.low, normal.high) if normal else self.uniform or self.loguniform or self.randint


KINDS_OF_ENTRY = ("grid", "choice", "uniform", "loguniform", "randint", "truncated_normal")
