"""An architecture's name: its family, its own name there, and the configuration that builds it, as one string.

`resnet18` is torchvision's, `timm/vit_tiny_patch16_224{"img_size":64}` timm's with arguments of `create_model`, and
`hf/vit{"hidden_size":32}` a configuration of transformers. Equal architectures have equal strings, as the configuration
is canonical JSON. Whether a family knows the name is the family's to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from blake3 import blake3

from raysnap.canonical_json import canonical_json, parse_json
from raysnap.errors import ArchitectureError
from raysnap.humanize import shown_line

TORCHVISION: Final = "torchvision"
TIMM: Final = "timm"
HF: Final = "hf"
FAMILIES: Final = (TORCHVISION, TIMM, HF)

MAX_CHARACTERS = 65_536

_PACKAGES = {HF: "transformers"}  # where the package is called otherwise than the family
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_NUM_SHOWN_DIGITS = 6


@dataclass(frozen=True)
class Architecture:
    """A family's name for a network, and what its builder is told beside the name.

    Attributes:
        family: `torchvision`, `timm` or `hf`, the library that the network comes from.
        name: torchvision's builder, timm's model or transformers' model type.
        configuration: what the builder is told, as canonical JSON; empty where that is nothing.

    Raises:
        ArchitectureError: the family or the name can't be one, or the configuration is no canonical JSON object.
    """

    family: str
    name: str
    configuration: str = ""

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise _error(f"{self.family}/{self.name}", f"one of the families {', '.join(FAMILIES)}", self.family)
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise _error(str(self.name), "letters, digits, '_', '.' and '-'", str(self.name))
        if self.configuration and self.family == TORCHVISION:
            raise _error(self.name, "no configuration, as torchvision's names have none", self.configuration)
        if self.configuration != _canonical(self.name, self.configuration):
            raise _error(self.name, "a configuration in canonical JSON", self.configuration)

    def __str__(self) -> str:
        return self.name if self.family == TORCHVISION else f"{self.family}/{self.name}{self.configuration}"

    @property
    def options(self) -> dict[str, Any]:
        """The configuration as a new dictionary."""
        return dict(parse_json(self.configuration.encode())) if self.configuration else {}

    @property
    def shown(self) -> str:
        """The short form for tables and file names: a configuration is the first digits of its BLAKE3."""
        if not self.configuration:
            return str(self)
        digest = blake3(self.configuration.encode()).hexdigest()[:_NUM_SHOWN_DIGITS]
        return f"{self.family}/{self.name}-{digest}"


def parse(text: str) -> Architecture:
    """Return the architecture that a string names, however its JSON is spelled; `str` of it is canonical.

    Raises:
        ArchitectureError: the string has not the form of an architecture's name.
    """
    if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
        raise _error(str(text), f"a name of at most {MAX_CHARACTERS:,} characters", f"{len(str(text)):,} characters")
    front, brace, rest = text.partition("{")
    family, slash, name = front.strip().partition("/")
    if not slash:
        family, name = TORCHVISION, family
    return Architecture(family, name, _canonical(text, brace + rest))


def architecture(family: str, name: str, options: Mapping[str, Any]) -> Architecture:
    """Return the architecture of this name whose builder is told these things.

    Raises:
        ArchitectureError: the name can't be one, or the options are no plain JSON.
    """
    try:
        text = canonical_json(dict(options)).decode() if options else ""
    except (ValueError, TypeError, RecursionError) as error:
        raise _error(name, "a configuration of plain JSON", str(error) or type(error).__name__) from None
    return Architecture(family, name, text)


def package_of(family: str) -> str:
    """Return the name of the package that a family's models come from."""
    return _PACKAGES.get(family, family)


def shown(text: str) -> str:
    """Return an architecture's string in short: `hf/vit-1a2b3c`; a string of another form is returned as it is."""
    try:
        return parse(text).shown
    except ArchitectureError:
        return text


def label(text: str) -> str:
    """Return an architecture's string as part of a file's name: `hf-vit-1a2b3c`."""
    return shown(text).replace("/", "-")


def _canonical(text: str, configuration: str) -> str:
    """Return a configuration in canonical JSON, empty where it says nothing."""
    if not configuration:
        return ""
    try:
        options = parse_json(configuration.encode())
        return canonical_json(options).decode() if options else ""
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "JSON that is nested too deeply"
        raise _error(text, "a JSON object after the name", reason) from None


def _error(text: str, expected: str, found: str) -> ArchitectureError:
    return ArchitectureError(f"architecture {shown_line(text[:200])!r}: expected {expected}, found {found[:200]!r}")
