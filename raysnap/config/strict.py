"""What every part of a configuration is: frozen, strict about its keys, and wary of a yes where a number belongs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationInfo,
    field_validator,
)


class Config(BaseModel):
    """A frozen part of a configuration that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Section(Config):
    """A part that people write: a yes or no stands only where one is asked for, never for 1 or 0."""

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        found = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, bool)]
        if found and cls.model_fields[info.field_name].annotation not in (bool, bool | None):
            raise ValueError(f"found a yes or no ({str(found[0]).lower()}), which does not belong here; quote text")
        return value


def refuse_repeated(name: str, values: tuple[Any, ...]) -> None:
    """Passes when no value of the key `name` stands twice.

    Raises:
        ValueError: one does.
    """
    repeated = next((value for number, value in enumerate(values) if value in values[:number]), None)
    if repeated is not None:
        raise ValueError(
            f"`{name}` lists {repeated if isinstance(repeated, int | float | tuple) else str(repeated)!r} twice"
        )


def dotted_keys(model: type[Config], prefix: str = "") -> Iterator[str]:
    """All keys of a model and of the models in it, dotted."""
    for name in model.model_fields:
        yield prefix + name
        nested = model_at(model, name)
        if nested:
            yield from dotted_keys(nested, f"{prefix}{name}.")


def model_at(model: type[Config], name: str) -> type[Config] | None:
    """The model that the field `name` holds, through `| None`; None for a field that holds none."""
    field = model.model_fields.get(name)
    candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, Config)), None)
