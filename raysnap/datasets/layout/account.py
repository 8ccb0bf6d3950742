"""The account of a dataset: how many files were read, and which were not, with the reason for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raysnap.datasets.layout.suffixes import Kind
from raysnap.humanize import count_text, plural

MAX_REASONS = 4  # told in words; JSON has all
MAX_FILES = 3  # named of one reason


@dataclass(frozen=True, order=True, slots=True)
class LeftOut:
    """A file that is not read as part of a dataset, or a folder with all files below it.

    Attributes:
        path: below the dataset's folder, with `/`.
        num_files: how many files it stands for.
        is_expected: whether nobody misses it: what systems leave behind, lists, notes.
    """

    path: str
    reason: str
    num_files: int = 1
    is_expected: bool = False


@dataclass(frozen=True)
class Account:
    """What was read of a dataset, and what was not.

    Attributes:
        num_images: images per split, bad ones too.
        num_left_out: files that are not part of the dataset; with the images, all files of its folder.
        left_out: each of them with the reason; system folders as one.
        bad: images that could not be read, as far as they were used, each with its file and the reason.
        notes: how the folder was understood, where it could be understood otherwise.
        kind: what its items are; the other names say images of texts, too.
    """

    dataset: str
    num_images: dict[str, int]
    num_left_out: int
    left_out: tuple[LeftOut, ...]
    bad: tuple[str, ...]
    notes: tuple[str, ...]
    kind: Kind = "images"

    def lines(self) -> list[str]:
        """Return what a person should know, a line each: how it was read, what is left out or bad; often nothing."""
        return account_lines(asdict(self))


def account_lines(account: Mapping[str, Any]) -> list[str]:
    """Return the lines of an account that was written as plain values, as `Account.lines` does."""
    name, bad = account["dataset"], account["bad"]
    noun = account.get("kind", "images")[:-1]  # runs of raysnap 0.1 don't say it
    num_images = sum(account["num_images"].values())
    by_reason: dict[str, list[Mapping[str, Any]]] = {}
    for one in account["left_out"]:
        if not one["is_expected"]:
            by_reason.setdefault(one["reason"], []).append(one)
    lines = [f"{name}: {note}" for note in account["notes"]]
    for reason, files in list(by_reason.items())[:MAX_REASONS]:
        num_files = plural(sum(one["num_files"] for one in files), "file")
        lines.append(f"{name}: {num_files} left out, {reason}: {_first(one['path'] for one in files)}")
    if len(by_reason) > MAX_REASONS:
        rest = [one for files in list(by_reason.values())[MAX_REASONS:] for one in files]
        num_files = plural(sum(one["num_files"] for one in rest), "file")
        lines.append(f"{name}: {num_files} left out for other reasons; --json and the report list all")
    if bad:
        lines.append(f"{name}: {plural(len(bad), f'bad {noun}')} of {count_text(num_images)}: {_first(bad, '; ')}")
    if lines:
        num_left_out = plural(account["num_left_out"], "file")
        lines.append(f"{name}: {plural(num_images, noun)} read ({_splits(account)}), {num_left_out} left out in all")
    return lines


def _first(listed: Iterable[str] | Sequence[str], separator: str = ", ") -> str:
    """Return the first few, and how many more there are."""
    texts = list(listed)
    more = f" and {count_text(len(texts) - MAX_FILES)} more" if len(texts) > MAX_FILES else ""
    return f"{separator.join(texts[:MAX_FILES])}{more}"


def _splits(account: Mapping[str, Any]) -> str:
    return ", ".join(f"{split} {count_text(count)}" for split, count in account["num_images"].items())
