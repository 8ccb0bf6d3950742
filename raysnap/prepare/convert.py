"""Turn the published files of named datasets into folders of images or texts: `data prepare`.

`layouts` maps each source to a plan and `source_tree` reads it; here the source is found, checked against the published
facts, and written once, as a whole, with a `dataset.json` that says what it was made from.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from raysnap.config.parts import ShapesConfig
from raysnap.datasets.dataset import BUILT_IN, Dataset, open_dataset, read_folder
from raysnap.datasets.image_file import DECODING_ERRORS, readable_formats
from raysnap.datasets.image_folder import FolderWriter, class_slug, new_folder, read_record
from raysnap.datasets.layout.account import Account, LeftOut
from raysnap.datasets.layout.splits import SPLITS
from raysnap.datasets.layout.suffixes import Kind, image_suffixes
from raysnap.datasets.published import SOURCES, DatasetSource
from raysnap.datasets.splits import check_classes
from raysnap.datasets.text.text_file import decode
from raysnap.errors import DataError
from raysnap.humanize import suggest
from raysnap.prepare.archives import checked_name
from raysnap.prepare.layouts import LAYOUTS, Plan
from raysnap.prepare.source_tree import Tree, archive_stem, base_name, is_archive_name, list_files

CONVERTER_VERSION = 2
MAX_BAD_FRACTION = 0.001
ALLOW_HINT = "download it again, or pass --allow-other-counts if that is intended"

_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2", "HEIF": "heic"}  # others: the format's name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrepareResult:
    """A prepared dataset, its images per split, and how many bad images of the source were left out.

    Attributes:
        account: what was read of the source, and what was not; None where nothing has to be said of a published one.
    """

    dataset: Dataset
    counts: dict[str, int]
    num_classes: int
    num_bad: int
    account: Account | None = None


def prepare_dataset(
    name: str,
    source: Path | None,
    data_dir: Path,
    shapes: ShapesConfig | None = None,
    *,
    allow_other_counts: bool = False,
    max_bad: int | None = None,
) -> PrepareResult:
    """Make the dataset `data_dir/<name>` from the files at `source`, unless it was made from them before.

    Digests decide that, which takes as long as reading the source once. Images of an unpacked folder on the same file
    system are hard-linked: they take no space, but editing one in place edits both.

    Args:
        name: a named dataset or a `shapes` task, which is drawn and has no source.
        source: a published archive, a folder with the published files, or one into which they were unpacked.
        data_dir: the folder in which the dataset's folder is created.
        shapes: how a `shapes` task is drawn.
        allow_other_counts: accept a source whose counts or digests differ from the published ones, and record how.
        max_bad: how many bad images may be left out; None is one in a thousand, but at least one.

    Raises:
        DataError: the name is unknown; files are missing, malformed, hostile or not the published ones; too many
            images are bad; or another dataset is in the way.
    """
    if name in BUILT_IN:
        if source is not None:
            raise DataError(f"dataset {name!r}: expected no --source, found {source}; raysnap makes this dataset")
        return result_of(open_dataset(name, data_dir, shapes))
    _refuse_unknown(name)
    if source is None:
        raise DataError(f"dataset {name!r}: expected --source PATH; get the files from {SOURCES[name]}")
    if not source.exists():
        raise DataError(f"--source {source}: expected the files of {name}, found no such file or folder")
    return _convert(name, open_tree(name, source), data_dir / name, allow_other_counts, max_bad)


def _convert(name: str, tree: Tree, root: Path, is_other_allowed: bool, max_bad: int | None) -> PrepareResult:
    plan, wanted = (None, frozenset[str]()) if tree.folder is None else _plan(name, tree)
    files = tree.records(wanted, _published_names(SOURCES[name]))
    notes = _refuse_other_digests(name, files, is_other_allowed)
    if root.exists():
        refuse_other_source(root, files)
        log.info("%s was already made from these files", root)
        return _published_result(root)
    if plan is None:
        plan, _ = _plan(name, tree)
    notes += _refuse_other_counts(name, plan, is_other_allowed)
    with new_folder(root, _record(name, files, plan, notes)) as folder:
        with warnings.catch_warnings():  # of Pillow, about odd files
            warnings.simplefilter("ignore")
            write_images(folder, tree, plan, max_bad)
        check_folder(folder, root, ("val", "test"))
    return _published_result(root)


def open_tree(name: str, source: Path) -> Tree:
    """Open the files at `source`: one archive, several that belong together, or what was unpacked from them.

    Raises:
        DataError: no files of that dataset are found.
    """
    published, layout = SOURCES[name], LAYOUTS[name]
    names = _published_names(published)
    stems = {archive_stem(each) for each in (*names, *layout.nested) if is_archive_name(each)}
    if source.is_file():
        if source.name in names and len(published.files) > 1:
            beside = [each for each in sorted(names) if (source.parent / each).is_file()]
            archives = tuple(source.parent / each for each in beside if is_archive_name(each))
            chosen = tuple(each for each in beside if not is_archive_name(each))
            return Tree(str(source.parent), source.parent, chosen, archives, layout.nested)
        if is_archive_name(source.name):
            return Tree(str(source), archives=(source,), nested=layout.nested)
        raise DataError(
            f"--source {source}: expected a folder or one of {', '.join(sorted(names))}, found another file"
        )
    where = f"--source {source}"
    found = list_files(source, Tree(where).limits)
    if layout.is_unpacked(found):
        return Tree(where, source)
    archives = tuple(
        source / each for each in found if is_archive_name(each) and archive_stem(base_name(each)) in stems
    )
    if len(archives) > 1 and len(published.files) == 1:
        listing = ", ".join(path.name for path in archives)
        raise DataError(f"{where}: expected one archive of {name}, found {listing}; pass the one to use")
    if not archives:
        expected = ", ".join(file.name for file in published.files)
        raise DataError(
            f"{where}: expected {expected}, or a folder into which that was unpacked, found neither; "
            f"get the files from {published}"
        )
    is_alone = len(published.files) == 1
    return Tree(where, None if is_alone else source, None, archives, layout.nested)


def _plan(name: str, tree: Tree) -> tuple[Plan, frozenset[str]]:
    """Return the plan for a source, and the names of the files that matter for it."""
    survey = tree.survey(LAYOUTS[name].metadata)
    plan = LAYOUTS[name].plan(survey)
    if not plan.targets:
        raise DataError(f"{tree.where}: expected the images of {name}, found none; get them from {SOURCES[name]}")
    places: dict[tuple[str, str, str], str] = {}
    for image, target in plan.targets.items():
        place = (
            target.split,
            checked_name(class_slug(target.class_name), tree.where).casefold(),
            checked_name(target.file_name, tree.where).casefold(),
        )
        if places.setdefault(place, image) != image:
            raise DataError(f"{tree.where}: expected a unique name for {image!a}, found {places[place]!a} too")
    return plan, frozenset((*plan.targets, *survey.contents))


def write_images(folder: FolderWriter, tree: Tree, plan: Plan, max_bad: int | None) -> None:
    """Write the images of the plan and leave out bad ones; raise DataError for more than `max_bad` of them."""
    if max_bad is None:
        max_bad = max(1, int(MAX_BAD_FRACTION * len(plan.targets)))
    bad: list[str] = []
    for image, content, path in _contents(tree, plan):
        if (fault := _fault_of(content, plan.kind)) is not None:
            bad.append(f"{ascii(image)[1:-1]}: {fault}")
            log.warning("%s: leaving out %s", tree.where, bad[-1])
            if len(bad) > max_bad:
                raise DataError(
                    f"{tree.where}: expected at most {max_bad} of {len(plan.targets)} {plan.kind} to be bad, found "
                    f"more: {'; '.join(bad[:3])}; download the dataset again"
                )
            continue
        target = plan.targets[image]
        file_name = _with_suffix(target.file_name, content) if plan.kind == "images" else target.file_name
        folder.add_image(target.split, target.class_name, file_name, content, target.original, path)
    folder.details = {"class_counts": folder.counts_per_class(), "bad_images": bad}


def _contents(tree: Tree, plan: Plan) -> Iterator[tuple[str, bytes, Path | None]]:
    if plan.render is None:
        yield from tree.read(plan.targets)
    else:
        yield from ((name, content, None) for name, content in plan.render(plan.targets))


def _fault_of(content: bytes, kind: Kind) -> str | None:
    """Say why the bytes are no image or text; None where they are, as far as that shows without decoding an image."""
    if kind == "images":
        return _image_fault(content)
    try:
        decode(content)
    except DataError as error:
        return str(error)
    return None


def _image_fault(content: bytes) -> str | None:
    """Say why the bytes are not an image; None where they begin like one, whatever their name says."""
    try:
        Image.open(io.BytesIO(content), formats=readable_formats()).close()
    except DECODING_ERRORS as error:
        if not content:
            return "an empty file"
        return "an unknown file format" if isinstance(error, UnidentifiedImageError) else ascii(str(error))[1:-1]
    return None


def _with_suffix(file_name: str, content: bytes) -> str:
    """Return the name of an image's file, with the suffix that its content asks for where it has none of an image."""
    if Path(file_name).suffix.lower() in image_suffixes():
        return file_name
    with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
        return f"{file_name}.{_SUFFIXES.get(image.format or '', (image.format or '').lower())}"


def result_of(dataset: Dataset) -> PrepareResult:
    """Return a prepared dataset with its counts."""
    counts = {split: len(dataset.splits.get(split, ())) for split in SPLITS}
    bad = (read_record(dataset.root) or {}).get("bad_images", [])
    return PrepareResult(dataset, counts, len(dataset.classes), len(bad))


def _published_result(root: Path) -> PrepareResult:
    """Return a dataset that was made from published files, with what of them was left out."""
    result = result_of(read_folder(root))
    record = read_record(root) or {}
    left_out = tuple(LeftOut(**one) for one in record.get("left_out", ()))
    if not left_out:
        return result
    counts = {split: count for split, count in result.counts.items() if count}
    num_left_out = sum(one.num_files for one in left_out)
    bad = tuple(record.get("bad_images", ()))
    account = Account(result.dataset.name, counts, num_left_out, left_out, bad, (), result.dataset.kind)
    return replace(result, account=account)


def _refuse_unknown(name: str) -> None:
    if name not in LAYOUTS:
        hint = suggest(name, [*SOURCES, *BUILT_IN]) or "; `raysnap data ls` lists the names"
        raise DataError(f"dataset {name!r}: expected the name of a known dataset, found an unknown one{hint}")


def _published_names(source: DatasetSource) -> frozenset[str]:
    """Return the names of the published files, and those of gzipped single files without `.gz` too."""
    names = [file.name for file in (*source.files, *source.variants)]
    return frozenset((*names, *(name.removesuffix(".gz") for name in names if not is_archive_name(name))))


def _refuse_other_digests(name: str, files: list[dict[str, Any]], is_allowed: bool) -> list[str]:
    """Return notes on what differs from the published digests; raise DataError unless that is allowed."""
    published = {file.name: file.digest for file in (*SOURCES[name].files, *SOURCES[name].variants) if file.digest}
    notes = []
    for file in files:
        algorithm, _, expected = published.get(file["name"], "").partition(":")
        if expected and file[algorithm] != expected:
            note = f"{file['name']}: expected {algorithm} {expected} as published, found {file[algorithm]}"
            if not is_allowed:
                raise DataError(f"{note}; {ALLOW_HINT}")
            notes.append(note)
    return notes


def _refuse_other_counts(name: str, plan: Plan, is_allowed: bool) -> list[str]:
    """Return notes on what differs from the published counts; raise DataError unless that is allowed."""
    notes = []
    if plan.missing:
        num_listed = len(plan.missing) + len(plan.targets)
        listing = ", ".join(map(ascii, plan.missing[:3])) + (", …" if len(plan.missing) > 3 else "")
        notes.append(f"expected {num_listed} listed images, found {len(plan.missing)} of them missing: {listing}")
    source = SOURCES[name]
    classes = {target.class_name for target in plan.targets.values()}
    if len(classes) != source.num_classes:
        notes.append(f"expected {source.num_classes} classes, found {len(classes)}")
    found = {split: Counter[str]() for split in source.counts}
    for target in plan.targets.values():
        found.setdefault(target.split, Counter())[target.class_name] += 1
    for split, expected in source.counts.items():
        if found[split].total() != expected:
            notes.append(
                f"{split}: expected {expected:,} images, found {found[split].total():,}"
                + _uneven_classes(found[split], sorted(classes), expected, source.num_classes)
            )
    if notes and not is_allowed:
        raise DataError(f"dataset {name!r}: {'; '.join(notes)}; {ALLOW_HINT}")
    return notes


def _uneven_classes(found: Counter[str], classes: list[str], expected: int, num_classes: int) -> str:
    """List the classes with too few or too many images, in a split in which all should have equally many."""
    if expected % num_classes:
        return ""
    per_class = expected // num_classes
    odd = [f"{name} has {found[name]}" for name in classes if found[name] != per_class]
    return f" ({per_class} of each class; {', '.join(odd[:3])}{', …' if len(odd) > 3 else ''})" if odd else ""


def _record(name: str, files: list[dict[str, Any]], plan: Plan, notes: list[str]) -> dict[str, Any]:
    source = SOURCES[name]
    return {
        "name": name,
        "title": source.title,
        "page": source.page,
        "files": files,
        "licence": source.licence,
        "overlap_with_imagenet": source.overlap,
        "splits": plan.split_note,
        "differences": notes,
        "left_out": [asdict(one) for one in plan.left_out],
        "converter_version": CONVERTER_VERSION,
    }


def check_folder(folder: FolderWriter, root: Path, splits: Sequence[str] = ()) -> None:
    """Check that models can be trained on the folder, and evaluated on `splits`, before it becomes visible."""
    try:
        check_classes(read_folder(folder.partial_dir), splits)
    except DataError as error:
        raise DataError(str(error).replace(str(folder.partial_dir), str(root))) from None


def refuse_other_source(root: Path, files: list[dict[str, Any]]) -> None:
    """Refuse a folder that was not made from these files."""
    found = read_record(root) if root.is_dir() else None
    if found is None:
        raise DataError(f"{root}: expected no folder or one that raysnap made, found something else; move it away")
    for key, expected in (("files", files), ("converter_version", CONVERTER_VERSION)):
        if found.get(key) != expected:
            raise DataError(
                f"{root}: expected the dataset made from these files, found one with other {key} in dataset.json; "
                f"delete that folder to make it again"
            )
