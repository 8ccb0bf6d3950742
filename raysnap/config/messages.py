"""Validation errors as people read them: where, what was expected, what was found."""

from __future__ import annotations

import re
import reprlib
from typing import Any

from pydantic import ValidationError

from raysnap.config.strict import Config, dotted_keys, model_at
from raysnap.humanize import suggest

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "tuple_type": "a list",
    "too_short": "at least {min_length} in the list",
    "string_too_short": "at least {min_length} character",
    "model_type": "`key: value` lines",
    "dict_type": "`key: value` lines",
    "string_pattern_mismatch": "a name of lower-case letters, digits and underscores that begins with a letter",
    "invalid_key": "text as a key",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
}


def describe_faults(error: ValidationError, model: type[Config], document: dict[str, Any]) -> str:
    """Describe the first fault of a document that doesn't fit the model, and up to two more.

    A wrong kind comes first: the other faults follow from it.
    """
    found = sorted(error.errors(include_url=False), key=lambda fault: fault["loc"] != ("kind",))
    inner = {fault["loc"][:depth] for fault in found for depth in range(1, len(fault["loc"]))}
    faults = [describe_error(dict(fault), model, document) for fault in found if fault["loc"] not in inner]
    more = f" (and {len(faults) - 1} more: {'; '.join(faults[1:3])})" if len(faults) > 1 else ""
    return f"{faults[0]}{more}"


def describe_error(fault: dict[str, Any], model: type[Config], document: dict[str, Any]) -> str:
    """Describe one fault of a configuration as `key.path: expected …, found …`."""
    path = _written_path(fault["loc"], document)
    where = f"{path}: " if path else ""
    context, found = fault.get("ctx", {}), reprlib.repr(fault["input"])
    match fault["type"]:
        case "extra_forbidden":
            return f"{where}unknown key{_nearest_key(model, fault['loc'])}"
        case "missing":
            return f"{where}missing, and it has no default"
        case "value_error":
            return f"{where}{fault['msg'].removeprefix('Value error, ')}"
        case "literal_error":
            hint = suggest(fault["input"], re.findall(r"'([^']+)'", context["expected"]))
            return f"{where}expected {context['expected']}, found {found}{hint}"
    known = _EXPECTED.get(fault["type"])
    expected = known.format(**context) if known else fault["msg"].removeprefix("Input should be ")
    hint = "; quote it if text is meant" if fault["type"] in ("path_type", "string_type") else ""
    return f"{where}expected {expected}, found {found}{hint}"


def _written_path(loc: tuple[str | int, ...], document: Any) -> str:
    """Return the dotted path of a fault as the user wrote it: without an index where one value was given for a list."""
    parts = []
    for part in loc:
        is_there = isinstance(document, list) or (isinstance(document, dict) and part in document)
        document = document[part] if is_there else None
        if is_there or not isinstance(part, int):
            parts.append(str(part))
    return ".".join(parts)


def _nearest_key(model: type[Config], loc: tuple[str | int, ...]) -> str:
    """Suggest the key that was meant at `loc`: one of similar spelling there, or one of that name further down."""
    *parents, word = (str(part) for part in loc)
    nested: type[Config] | None = model
    for part in parents:  # a name in a mapping of models, such as a group's, stays with its model
        nested = nested and (model_at(nested, part) if part in nested.model_fields else nested)
    near = suggest(word, nested.model_fields if nested else ())
    below = sorted((key for key in dotted_keys(model) if key.endswith(f".{word}")), key=len)
    return near or (f"; did you mean {below[0]!r}?" if below else "")
