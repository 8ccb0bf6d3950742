"""Named datasets from the files their makers publish, as image folders: `data prepare`.

`CONVERTERS` maps a dataset's name to the function that lists its images; writing, digests and idempotence are the
same for all of them.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import io
import logging
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from raysnap.config import ShapesConfig
from raysnap.data import NAMED_DATASETS, SPLITS, Dataset, open_dataset, read_folder
from raysnap.errors import DataError
from raysnap.imagefolder import new_folder, read_record
from raysnap.shapes import TASKS

CONVERTER_VERSION = 1
MAX_IDX_BYTES = 1 << 30
IDX_IMAGES_MAGIC = 0x00000803
IDX_LABELS_MAGIC = 0x00000801

log = logging.getLogger(__name__)


class SourceImage(NamedTuple):
    """One image as its source has it, ready to be written."""

    split: str
    class_name: str
    file_name: str
    content: bytes


@dataclass(frozen=True)
class Converter:
    """How one named dataset is read: the files it needs, its licence note, and its images."""

    find_files: Callable[[Path], list[Path]]
    images: Callable[[list[Path]], Iterator[SourceImage]]
    licence: str


@dataclass(frozen=True)
class PrepareResult:
    """A prepared dataset, its images per split, and how many images of the source were bad and left out."""

    dataset: Dataset
    counts: dict[str, int]
    num_classes: int
    num_bad: int


def prepare_dataset(
    name: str, source: Path | None, data_dir: Path, shapes: ShapesConfig | None = None
) -> PrepareResult:
    """The dataset `data_dir/<name>`, made from the files at `source` unless it was made from them before.

    Args:
        name: a named dataset or a `shapes` task; a task is drawn and has no source.
        source: a folder that holds the published files, or one of them.
        data_dir: where the dataset's folder goes.
        shapes: how large a `shapes` task is drawn.

    Raises:
        DataError: unknown or not yet convertible, files missing or malformed, or another dataset is in the way.
    """
    if name in TASKS:
        if source is not None:
            raise DataError(f"dataset {name!r}: expected no --source, found {source}; raysnap draws it itself")
        return _result(open_dataset(name, data_dir, shapes), num_bad=0)
    converter = _converter(name)
    if source is None:
        raise DataError(f"dataset {name!r}: expected --source PATH; get the files from {NAMED_DATASETS[name]}")
    if not source.exists():
        raise DataError(f"--source {source}: expected the files of {name}, found nothing there")
    files = converter.find_files(source)
    record = {
        "name": name,
        "source": NAMED_DATASETS[name],
        "files": [_file_record(path) for path in files],
        "licence": converter.licence,
        "converter_version": CONVERTER_VERSION,
    }
    root = data_dir / name
    if root.exists():
        _refuse_other_source(root, record)
        log.info("%s was made from these files before", root)
    else:
        with new_folder(root, record) as folder:
            for image in converter.images(files):
                folder.add_image(*image)
    return _result(read_folder(root), num_bad=0)


def _result(dataset: Dataset, num_bad: int) -> PrepareResult:
    counts = {split: len(dataset.splits.get(split, ())) for split in SPLITS}
    return PrepareResult(dataset, counts, len(dataset.classes), num_bad)


def _converter(name: str) -> Converter:
    if name in CONVERTERS:
        return CONVERTERS[name]
    if name in NAMED_DATASETS:
        raise DataError(
            f"dataset {name!r}: raysnap can't convert this one yet (it converts {', '.join(CONVERTERS)}); "
            f"put its images in DATA_DIR/{name}/{{train,val,test}}/<class>/ yourself and the name works everywhere"
        )
    near = difflib.get_close_matches(name, [*NAMED_DATASETS, *TASKS], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "`raysnap data ls` lists the names"
    raise DataError(f"dataset {name!r}: expected the name of a known dataset, found another; {hint}")


def _file_record(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "name": path.name,
            "num_bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _refuse_other_source(root: Path, record: dict[str, Any]) -> None:
    found = read_record(root) if root.is_dir() else None
    if found is None:
        raise DataError(f"{root}: expected nothing or what raysnap made there, found something else; move it away")
    for key in ("files", "converter_version"):
        if found.get(key) != record[key]:
            raise DataError(
                f"{root}: expected the dataset made from these files, found one with other {key} in dataset.json; "
                f"delete that folder to have it made anew"
            )


FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_MNIST_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def _find_fashion_mnist(source: Path) -> list[Path]:
    """The four IDX files, packed or not, in a folder, in its `FashionMNIST/raw`, or beside the one that is named."""
    wanted = [name for names in FASHION_MNIST_FILES.values() for name in names]
    if source.is_file() and source.name.removesuffix(".gz") not in wanted:
        raise DataError(f"--source {source}: expected a folder or one of {', '.join(wanted)}, found another file")
    folder = source if source.is_dir() else source.parent
    places = (folder, folder / "raw", folder / "FashionMNIST" / "raw")
    files = []
    for name in wanted:
        candidates = [place / f"{name}{suffix}" for place in places for suffix in ("", ".gz")]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise DataError(
                f"--source {source}: expected {', '.join(wanted)} (each with .gz or without), found no {name}; "
                f"get the files from {NAMED_DATASETS['fashion-mnist']}"
            )
        files.append(path)
    return files


def _fashion_mnist_images(files: list[Path]) -> Iterator[SourceImage]:
    for split, images_path, labels_path in (("train", *files[:2]), ("test", *files[2:])):
        images_NHW = read_idx(images_path, IDX_IMAGES_MAGIC)
        labels_N = read_idx(labels_path, IDX_LABELS_MAGIC)
        if len(images_NHW) != len(labels_N):
            raise DataError(
                f"{labels_path}: expected {len(images_NHW)} labels as {images_path.name} has images, "
                f"found {len(labels_N)}; get both files from one place"
            )
        if labels_N.size and labels_N.max() >= len(FASHION_MNIST_CLASSES):
            raise DataError(
                f"{labels_path}: expected labels 0 to {len(FASHION_MNIST_CLASSES) - 1}, found {labels_N.max()}; "
                f"is it another dataset's?"
            )
        for index, (image_HW, label) in enumerate(zip(images_NHW, labels_N.tolist(), strict=True)):
            buffer = io.BytesIO()
            Image.fromarray(image_HW).save(buffer, "PNG")
            yield SourceImage(split, FASHION_MNIST_CLASSES[label], f"{index:05d}.png", buffer.getvalue())


def read_idx(path: Path, magic: int) -> np.ndarray:
    """The uint8 array of an IDX file, gzip-packed or not (http://yann.lecun.com/exdb/mnist, "file formats").

    Raises:
        DataError: it can't be read, is not that kind of IDX file, or is shorter or longer than its header says.
    """
    num_dimensions = magic & 0xFF
    header_bytes = 4 * (1 + num_dimensions)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            header = file.read(header_bytes)
            if len(header) < header_bytes or struct.unpack(">I", header[:4])[0] != magic:
                raise DataError(
                    f"{path}: expected an IDX file that begins with {magic:08x}, found {header[:4].hex() or 'nothing'}"
                )
            shape = struct.unpack(f">{num_dimensions}I", header[4:])
            num_bytes = int(np.prod([int(length) for length in shape], dtype=object))
            if num_bytes > MAX_IDX_BYTES:
                raise DataError(
                    f"{path}: expected at most {MAX_IDX_BYTES} bytes of content, found {num_bytes} announced"
                )
            content = file.read(num_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: can't be read as an IDX file: {reason}; get it anew") from None
    if len(content) != num_bytes:
        found = "more" if len(content) > num_bytes else len(content)
        raise DataError(f"{path}: expected {num_bytes} bytes after the header, found {found}; get it anew")
    return np.frombuffer(content, np.uint8).reshape(shape)


CONVERTERS: dict[str, Converter] = {
    "fashion-mnist": Converter(_find_fashion_mnist, _fashion_mnist_images, "Fashion-MNIST by Zalando SE: MIT licence."),
}
