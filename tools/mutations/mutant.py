"""One protection and what switches it off."""

from __future__ import annotations

from dataclasses import dataclass

NOT_RAISED = "DID NOT RAISE"
OTHER_WORDS = rf"Regex pattern did not match|Regex: |{NOT_RAISED}"


@dataclass(frozen=True)
class Mutant:
    """One protection: where it is, what replaces it, the test that needs it and how that test must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str
    reason: str
