"""The files of small stores, for the store's tests."""

from pathlib import Path

from raysnap.store.store import Store


def object_path(store: Store, digest: str) -> Path:
    return store.path / "objects" / digest[:2] / digest


def content(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in the folder, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
