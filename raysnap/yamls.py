"""YAML as people expect it, read with care and written so that it reads back; `key=value` overrides."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from raysnap.errors import ConfigError

MAX_CONFIG_BYTES = 100_000  # a second's worth of PyYAML


def to_yaml(value: Any) -> str:
    """The plain value as YAML that `read_yaml` reads back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: `1e-3` is a number, a date is text, a key stands once, aliases don't multiply."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key has to be a word, found a list or a mapping", key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} stands twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node, index: object) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not supported", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back: text that looks like a number is quoted, odd line ends are escaped."""

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
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
    )

# Besides YAMLError, what PyYAML's constructors let through for `!!int ""`, `!!bool x` and the like.
_NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)


def parse_yaml(text: str, where: str) -> Any:
    """The value that a text stands for.

    Raises:
        ConfigError: it is not YAML; `where` says whose it is.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except _NOT_YAML as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or (str(error).splitlines() or ["a value can't be read"])[0]
        if problem.startswith("but "):
            problem = f"{error.context} {problem}"
        raise ConfigError(f"{where}{line}: not valid YAML: {problem}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

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
        document = parse_yaml(raw.decode("utf-8"), str(path))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: expected UTF-8 text, found other bytes") from None
    if not isinstance(document, dict):
        found = "nothing" if document is None else type(document).__name__
        raise ConfigError(f"{path}: expected `key: value` lines, found {found}")
    return document


def apply_overrides(document: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A copy of `document` with each `dotted.key=value` set; values are read as YAML."""
    result = _copy(document)
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
        target[last] = parse_yaml(value, f"{key}=")
    return result


def _copy(value: Any) -> Any:
    return {key: _copy(child) for key, child in value.items()} if isinstance(value, dict) else value
