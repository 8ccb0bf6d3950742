"""The base classes of configurations: frozen, strict about keys, and without booleans where numbers belong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationInfo,
    field_validator,
)

from raysnap.humanize import parse_bytes


class Config(BaseModel):
    """A frozen part of a configuration that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Section(Config):
    """A part that people write; a boolean is refused except where one is expected, so that `yes` is never 1.

    Numbers of bytes may have a unit: `prefix_cache_bytes: 3GiB`.
    """

    @field_validator("*", mode="before")
    @classmethod
    def _read_bytes(cls, value: Any, info: ValidationInfo) -> Any:
        if not (info.field_name or "").endswith("_bytes"):
            return value
        if isinstance(value, list | tuple):
            return [parse_bytes(item) if isinstance(item, str) else item for item in value]
        return parse_bytes(value) if isinstance(value, str) else value

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_stray_boolean(cls, value: Any, info: ValidationInfo) -> Any:
        booleans = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, bool)]
        annotation = cls.model_fields[info.field_name].annotation if info.field_name else None
        if booleans and annotation is not bool and annotation != bool | None:
            raise ValueError(
                f"found the boolean {str(booleans[0]).lower()}, as YAML reads yes, no, on and off; quote it if text is "
                "meant"
            )
        return value


def refuse_repeated(name: str, values: tuple[Any, ...]) -> None:
    """Check that no value of the key `name` is repeated.

    Raises:
        ValueError: one is.
    """
    repeated = next((value for number, value in enumerate(values) if value in values[:number]), None)
    if repeated is not None:
        raise ValueError(
            f"`{name}` lists {repeated if isinstance(repeated, int | float | tuple) else str(repeated)!r} twice"
        )


def dotted_keys(model: type[Config], prefix: str = "") -> Iterator[str]:
    """Yield the keys of a model and of the models in it, dotted."""
    for name in model.model_fields:
        yield prefix + name
        nested = model_at(model, name)
        if nested:
            yield from dotted_keys(nested, f"{prefix}{name}.")


def model_at(model: type[Config], name: str) -> type[Config] | None:
    """Return the model that the field `name` holds, or holds unless None; None for other fields."""
    field = model.model_fields.get(name)
    candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
    return next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, Config)), None)
