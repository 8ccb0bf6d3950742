"""YAML without its ambiguities, written so that it reads back equal, and `key=value` overrides."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from raysnap.errors import ConfigError

MAX_CONFIG_BYTES = 100_000  # a second's worth of PyYAML
_NUMBER_OR_TEXT = "!number-or-text"
# Numbers of YAML 1.1 that are text, or other numbers, in YAML 1.2: base 8 and 60, underscores.
_AMBIGUOUS = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|[0-9]*_[0-9_.]*|0b[01_]+)")


def to_yaml(value: Any) -> str:
    """Return the plain value as YAML that `read_yaml` reads back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that raysnap rejects."""

    def __init__(self, problem: str, place: yaml.Node | yaml.Event):
        mark = place.start_mark
        super().__init__(problem=problem, problem_mark=mark if isinstance(mark, yaml.Mark) else None)


class _Loader(yaml.SafeLoader):
    """Read YAML and JSON: `1e-3` is a number, a date is text; repeated keys and aliases are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _Refused("expected text as a key, found a list or a mapping", key_node)
            if key_node.value in seen:
                raise _Refused(f"the key {key_node.value!r} appears twice", key_node)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs leave its result out
            raise _Refused("aliases (*name) are not supported", event)
        return super().compose_node(parent, index)

    def construct_number(self, node: yaml.ScalarNode) -> float:
        return self.construct_yaml_float(node)


class _FileLoader(_Loader):
    """Read files, which other tools read too: refuse `1e-3`, text in YAML 1.1 and a number in YAML 1.2."""

    def refuse_number_or_text(self, node: yaml.ScalarNode) -> None:
        number = yaml.safe_dump(float(node.value)).split()[0]
        raise _Refused(f"YAML reads {node.value} as text: write {number}, or quotes if text is meant", node)


class _Dumper(yaml.SafeDumper):
    """Write what `_Loader` reads back: text that looks like a number is quoted, odd line ends are escaped."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        is_odd = any(line_end in text for line_end in "\x85\u2028\u2029")
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if is_odd else None)


_Dumper.add_representer(str, _Dumper.represent_text)


for _side in (_Loader, _Dumper):
    _side.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _side.add_implicit_resolver(
        _NUMBER_OR_TEXT, re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
    )
_Loader.add_constructor(_NUMBER_OR_TEXT, _Loader.construct_number)
_FileLoader.add_constructor(_NUMBER_OR_TEXT, _FileLoader.refuse_number_or_text)

# What PyYAML raises: for `!!int ""`, `!!bool x` and the like not only YAMLError.
_NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)


def _parse(text: str, where: str, loader: type[_Loader]) -> Any:
    """Return the value that a YAML text holds.

    Raises:
        ConfigError: it is not YAML; the message starts with `where`.
    """
    try:
        return yaml.load(text, Loader=loader)
    except _NOT_YAML as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or (str(error).splitlines() or ["a value can't be read"])[0]
        if problem.startswith("but "):
            problem = f"{getattr(error, 'context', '')} {problem}"
        fault = "" if isinstance(error, _Refused) else "not valid YAML: "
        raise ConfigError(f"{where}{line}: {fault}{problem}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, too large, not YAML or not a mapping.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read as a configuration file: {error.strerror}") from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: expected at most {MAX_CONFIG_BYTES} bytes, found more")
    try:
        document = _parse(raw.decode("utf-8"), str(path), _FileLoader)
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: expected UTF-8 text, found other bytes") from None
    if not isinstance(document, dict):
        found = "nothing" if document is None else type(document).__name__
        raise ConfigError(f"{path}: expected `key: value` lines, found {found}")
    return document


def apply_overrides(document: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return a copy of `document` with each `dotted.key=value` set; values are read as YAML or JSON.

    Raises:
        ConfigError: an override is not of that form or its value is not YAML.
    """
    result: dict[str, Any] = _copy(document)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", key):
            raise ConfigError(f"{override!r}: expected key=value, for example train.epochs=3")
        *parents, last = key.split(".")
        target = result
        for parent in parents:
            child = target.get(parent)
            target[parent] = child if isinstance(child, dict) else {}
            target = target[parent]
        target[last] = _read_value(value, f"{key}=")
    return result


def _read_value(text: str, where: str) -> Any:
    """Return the value that the text of an override says; text that YAML would change is taken as it is.

    Where a file has comments, anchors, folded lines and numbers in base 8 and 60, a command line has text.
    """
    value = _parse(text, where, _Loader)
    root = yaml.compose(text, Loader=_Loader)
    is_plain = isinstance(root, yaml.ScalarNode) and root.style is None
    if root is None and text.strip():
        return text
    if is_plain and value is not None and (isinstance(value, str) or _AMBIGUOUS.fullmatch(text.strip())):
        return text
    rest = text[root.end_mark.index :].strip() if root is not None and root.end_mark is not None else ""
    if rest.startswith("#"):
        raise ConfigError(f"{where}: expected a value, found {rest!r} after it; quote the whole if it is text")
    return value


def _copy(value: Any) -> Any:
    return {key: _copy(child) for key, child in value.items()} if isinstance(value, dict) else value
