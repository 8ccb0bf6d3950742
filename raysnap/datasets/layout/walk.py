"""Every file below a folder: items by folder, and what else there is, each with the reason why it is not an item.

Items are images or texts, whichever is asked for; what is said of images below is true of texts as well.

Links are followed at every level, as torchvision follows them; one that leads back to a folder that contains it is
left out, and named.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from raysnap.datasets.layout.account import LeftOut
from raysnap.datasets.layout.suffixes import Kind, suffixes_of, why_no_item
from raysnap.errors import DataError

CACHE_NAME = ".raysnap"  # of what raysnap itself keeps in a dataset's folder
RECORD_NAMES = frozenset(("dataset.json", "classes.json"))
MAX_DEPTH = 48
MAX_FOLDERS_BEFORE_AN_IMAGE = 20_000
MAX_FOLDERS_BY_LINKS = 100_000

# Left behind by macOS, Synology, QNAP, Windows, file systems and Python; in lower case. So is what begins with a dot.
_SYSTEM_NAMES = frozenset((
    "__macosx", "icon\r", "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin",
    "system volume information", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini",
    "lost+found", "__pycache__",
))  # fmt: skip


@dataclass(frozen=True)
class Folder:
    """A folder that was walked; system folders are left out.

    Attributes:
        path: below the walked folder, with `/`; empty for that folder itself.
        images: names of the images in it, sorted.
        folders: the folders in it, sorted by name.
        num_images: images anywhere below it.
    """

    path: str
    images: tuple[str, ...]
    folders: tuple[Folder, ...]
    num_images: int

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def filled(self) -> tuple[Folder, ...]:
        """The folders in it with images anywhere below them."""
        return tuple(folder for folder in self.folders if folder.num_images)

    def image_paths(self) -> list[str]:
        """Return the path of every image below it, sorted part by part."""
        paths = [join(self.path, name) for name in self.images]
        for folder in self.folders:
            paths += folder.image_paths()
        return sorted(paths, key=lambda path: path.split("/"))


def walk(root: Path, kind: Kind = "images") -> tuple[Folder, list[LeftOut]]:
    """Return the folder with all items of a kind below it, and all other files, sorted by path.

    Raises:
        DataError: a folder can't be listed, or it is far too large for a dataset.
    """
    walker = _Walker(root, kind)
    folder = walker.read("", (_identity(root),))
    return folder, sorted(walker.left_out)


def is_system(name: str) -> bool:
    """Return whether a file or folder of this name was left behind by an operating system or a file manager."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def join(folder: str, name: str) -> str:
    """Return the path of what is in a folder."""
    return f"{folder}/{name}" if folder else name


class _Walker:
    def __init__(self, root: Path, kind: Kind):
        self.left_out: list[LeftOut] = []
        self._root = root
        self._kind = kind
        self._suffixes = suffixes_of(kind)
        self._num_folders = 0
        self._num_by_links = 0
        self._has_image = False

    def read(self, path: str, ancestors: tuple[tuple[int, int], ...], *, by_link: bool = False) -> Folder:
        """Walk the folder at `path`; `ancestors` identify it and all that contain it."""
        self._check_size(by_link=by_link)
        images: list[str] = []
        folders: list[Folder] = []
        for entry in self._entries(path):
            place = join(path, entry.name)
            if is_system(entry.name):
                self._leave_system(entry, place, is_own=not path and entry.name == CACHE_NAME)
            elif _is_dir(entry):
                folder = self._enter(entry, place, ancestors, by_link=by_link)
                folders += [] if folder is None else [folder]
            elif os.path.splitext(entry.name)[1].lower() in self._suffixes and _is_file(entry):  # noqa: PTH122 - fast
                images.append(entry.name)
            else:
                self.left_out.append(_why_left_out(entry, place, self._kind))
        self._has_image = self._has_image or bool(images)
        return Folder(path, tuple(images), tuple(folders), len(images) + sum(one.num_images for one in folders))

    def _entries(self, path: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self._root / path) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{self._root / path}: can't be listed: {error.strerror}; check its permissions") from None

    def _enter(
        self, entry: os.DirEntry[str], place: str, ancestors: tuple[tuple[int, int], ...], *, by_link: bool
    ) -> Folder | None:
        identity = _identity(Path(entry.path))
        if identity in ancestors:
            self.left_out.append(LeftOut(place, "a link to a folder that contains it"))
            return None
        if len(ancestors) > MAX_DEPTH:
            reason = f"more than {MAX_DEPTH} folders deep"
            self.left_out.append(LeftOut(place, reason, _count_files(entry.path)))
            return None
        return self.read(place, (*ancestors, identity), by_link=by_link or entry.is_symlink())

    def _leave_system(self, entry: os.DirEntry[str], place: str, *, is_own: bool) -> None:
        if is_own:
            return
        is_folder = _is_dir(entry) and not entry.is_symlink()
        num_files = _count_files(entry.path) if is_folder else 1
        if num_files:
            kind = "folder" if is_folder else "file"
            self.left_out.append(LeftOut(place, f"a hidden or system {kind}", num_files, is_expected=True))

    def _check_size(self, *, by_link: bool) -> None:
        self._num_folders += 1
        self._num_by_links += by_link
        if self._num_folders > MAX_FOLDERS_BEFORE_AN_IMAGE and not self._has_image:
            found = f"no image in {MAX_FOLDERS_BEFORE_AN_IMAGE:,} folders"
        elif self._num_by_links > MAX_FOLDERS_BY_LINKS:
            found = f"links that lead to more than {MAX_FOLDERS_BY_LINKS:,} folders"
        else:
            return
        raise DataError(f"dataset {self._root}: expected a folder of images, found {found}; pass the dataset's folder")


def _identity(folder: Path) -> tuple[int, int]:
    try:
        facts = folder.stat()
    except OSError as error:
        raise DataError(f"{folder}: can't be opened: {error.strerror}; check its permissions") from None
    return facts.st_dev, facts.st_ino


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _why_left_out(entry: os.DirEntry[str], place: str, kind: Kind) -> LeftOut:
    if not _is_file(entry):
        return LeftOut(place, "a link that leads nowhere" if entry.is_symlink() else "a pipe, socket or device")
    if place in RECORD_NAMES:
        return LeftOut(place, "a record of raysnap", is_expected=True)
    reason, is_expected = why_no_item(os.path.splitext(entry.name)[1].lower(), kind)  # noqa: PTH122 - fast
    return LeftOut(place, reason, is_expected=is_expected)


def _count_files(folder: str) -> int:
    """Return how many files are anywhere below a folder, links not followed; what can't be listed counts nothing."""
    return sum(len(names) for _, _, names in os.walk(folder))
