"""An architecture's name: its family, its own name there, and the configuration that builds it, as one string.

`resnet18` is torchvision's, `timm/vit_tiny_patch16_224{"img_size":64}` timm's with arguments of `create_model`, and
`hf/vit{"hidden_size":32}` a configuration of transformers. Equal architectures have equal strings, as the configuration
is canonical JSON. Whether a family knows the name is the family's to say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
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

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")


@dataclass(frozen=True)
class Architecture:
    """A family's name for a network, and what its builder is told beside the name.

    Attributes:
        family: `torchvision`, `timm` or `hf`, the library that the network comes from.
        name: torchvision's builder, timm's model or transformers' model type.
        configuration: what the builder is told: values of JSON, only those that differ from its defaults.

    Raises:
        ArchitectureError: the family or the name can't be one, or the configuration is no JSON.
    """

    family: str
    name: str
    configuration: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise _error(f"{self.family}/{self.name}", f"one of the families {', '.join(FAMILIES)}", self.family)
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise _error(str(self.name), "letters, digits, '_', '.' and '-'", str(self.name))
        try:
            plain = json.loads(canonical_json(dict(self.configuration)))
        except (ValueError, TypeError, RecursionError) as error:
            raise _error(self.name, "a configuration of plain JSON", str(error) or type(error).__name__) from None
        if plain and self.family == TORCHVISION:
            raise _error(self.name, "no configuration, as torchvision's names have none", next(iter(plain)))
        object.__setattr__(self, "configuration", plain)  # a private copy: the caller's may change

    def __str__(self) -> str:
        if self.family == TORCHVISION:
            return self.name
        return f"{self.family}/{self.name}{canonical_json(self.configuration).decode() if self.configuration else ''}"


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
    configuration = {}
    if brace:
        try:
            configuration = parse_json((brace + rest).encode())
        except (ValueError, RecursionError) as error:
            reason = str(error) or "JSON that is nested too deeply"
            raise _error(text, "a JSON object after the name", reason) from None
    return Architecture(family, name, configuration)


def shown(text: str) -> str:
    """Return an architecture's string in short, for tables and file names: `hf/vit-1a2b3c`.

    The end stands for the configuration: the first six digits of its BLAKE3. A string of another form is returned as it
    is, so that a name that nobody knows can be shown, too.
    """
    try:
        architecture = parse(text)
    except ArchitectureError:
        return text
    if not architecture.configuration:
        return str(architecture)
    digest = blake3(canonical_json(architecture.configuration)).hexdigest()[:6]
    return f"{architecture.family}/{architecture.name}-{digest}"


def _error(text: str, expected: str, found: str) -> ArchitectureError:
    return ArchitectureError(f"architecture {shown_line(text[:200])!r}: expected {expected}, found {found[:200]!r}")
