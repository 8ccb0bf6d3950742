"""How publishers lay out the named datasets: from file names and lists to a place for each image.

Each layout is a function from a survey of the source (`source_tree`) to a plan: which file becomes which image of which
class and split. Nothing is written or decoded here, so that a plan can be checked first.

torchvision has readers for five of the layouts. They need an unpacked tree, do not check the lists against it, and one
deletes files of the archive. Here archives and folders are read the same way.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3
from PIL import Image

from raysnap.datasets.layout.account import LeftOut
from raysnap.datasets.layout.recognise import UNLABELLED
from raysnap.datasets.layout.suffixes import Kind, image_suffixes
from raysnap.errors import DataError
from raysnap.prepare.idx_files import IDX_IMAGES_MAGIC, IDX_LABELS_MAGIC, read_idx
from raysnap.prepare.mat_files import read_mat
from raysnap.prepare.source_tree import Survey, base_name

CALTECH_TRAIN_IMAGES_PER_CLASS = 30
CALTECH_SPLIT_SEED = "raysnap 1"

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_MNIST_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
IMAGEWOOF_CLASSES = {
    "n02086240": "Shih-Tzu", "n02087394": "Rhodesian ridgeback", "n02088364": "Beagle",
    "n02089973": "English foxhound", "n02093754": "Border terrier", "n02096294": "Australian terrier",
    "n02099601": "Golden retriever", "n02105641": "Old English sheepdog", "n02111889": "Samoyed", "n02115641": "Dingo",
}  # fmt: skip
IMAGENETTE_CLASSES = {
    "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player", "n03000684": "chain saw",
    "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck", "n03425413": "gas pump",
    "n03445777": "golf ball", "n03888257": "parachute",
}  # fmt: skip


class Target(NamedTuple):
    """The place of one image in the dataset; `original` is what the source calls its class."""

    split: str
    class_name: str
    original: str
    file_name: str


@dataclass(frozen=True)
class Plan:
    """What a source becomes.

    Attributes:
        targets: each image's place, by its name in the source.
        missing: images that a list names but the source lacks.
        split_note: where the splits come from.
        render: draws the images of these names where the source has no image files; yields names and contents.
        kind: what the items are; they are called images below.
        left_out: what of the source is no part of the dataset, where that is to be known.
    """

    targets: dict[str, Target]
    split_note: str
    missing: tuple[str, ...] = ()
    render: Callable[[Collection[str]], Iterator[tuple[str, bytes]]] | None = None
    kind: Kind = "images"
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Layout:
    """How one dataset's source is read.

    Attributes:
        plan: the function from a survey to a plan.
        metadata: names of the files whose contents the plan needs.
        signs: for each form the source may have, patterns of names that together show that it is unpacked.
        nested: names of archives within the archive that hold the images.
    """

    plan: Callable[[Survey], Plan]
    metadata: frozenset[str]
    signs: tuple[tuple[str, ...], ...]
    nested: frozenset[str] = frozenset()

    def is_unpacked(self, names: Collection[str]) -> bool:
        """Return whether `names` hold all that the plan needs, so that no archive has to be opened."""
        return any(
            all(any(pattern.search(name) for name in names) for pattern in map(re.compile, form)) for form in self.signs
        )


def plan_cub(survey: Survey) -> Plan:
    """Plan CUB-200-2011: four lists joined by image id, never by line."""
    root = _root_of(survey, "train_test_split.txt")
    classes = _numbered_lines(survey, f"{root}classes.txt")
    images = _numbered_lines(survey, f"{root}images.txt")
    labels = _numbered_lines(survey, f"{root}image_class_labels.txt")
    is_train = _numbered_lines(survey, f"{root}train_test_split.txt")
    for list_name, ids in (("image_class_labels.txt", labels), ("train_test_split.txt", is_train)):
        if odd := sorted(ids.keys() ^ images.keys()):
            place = "images.txt" if odd[0] in ids else list_name
            raise _fault(survey, f"{root}{list_name}", "the image ids of images.txt", f"id {odd[0]!a} not in {place}")
    targets: dict[str, Target] = {}
    for image_id, path in images.items():
        if labels[image_id] not in classes:
            found = f"{labels[image_id]!a} for image {image_id}"
            raise _fault(survey, f"{root}image_class_labels.txt", f"labels 1 to {len(classes)}", found)
        if is_train[image_id] not in ("0", "1"):
            raise _fault(survey, f"{root}train_test_split.txt", "0 or 1", f"{is_train[image_id]!a}")
        class_name = classes[labels[image_id]]
        if path.split("/")[0] != class_name:
            raise _fault(survey, f"{root}images.txt", f"image {image_id} in {class_name!a}", f"{path!a}")
        split = "train" if is_train[image_id] == "1" else "test"
        _place(survey, targets, f"{root}images/{path}", Target(split, class_name, class_name, base_name(path)))
    return _finish_plan(survey, targets, "official: train_test_split.txt")


def plan_food(survey: Survey) -> Plan:
    """Plan Food-101: `meta/train.json` and `meta/test.json` list image ids per class."""
    root = _root_of(survey, "meta/train.json")
    targets: dict[str, Target] = {}
    for split in ("train", "test"):
        name = f"{root}meta/{split}.json"
        try:
            listed = json.loads(_content(survey, name))
        except (ValueError, RecursionError) as error:
            raise _fault(survey, name, "JSON", f"{error}") from None
        if not isinstance(listed, dict) or not all(
            isinstance(ids, list) and all(isinstance(image_id, str) for image_id in ids) for ids in listed.values()
        ):
            raise _fault(survey, name, "an object of lists of image ids, one per class", "another JSON document")
        for class_name, ids in listed.items():
            for image_id in ids:
                if image_id.split("/")[0] != class_name:
                    raise _fault(survey, name, f"images of {class_name!a}", f"{image_id!a}")
                target = Target(split, class_name, class_name, f"{base_name(image_id)}.jpg")
                _place(survey, targets, f"{root}images/{image_id}.jpg", target)
    return _finish_plan(survey, targets, "official: meta/train.json and meta/test.json")


def plan_imagewoof(survey: Survey) -> Plan:
    """Plan Imagewoof: `train` and `val` with a folder per WordNet id; the csv of noisy labels is ignored."""
    return _plan_class_folders(survey, {"train": "train", "val": "val"}, IMAGEWOOF_CLASSES)


def plan_imagenette(survey: Survey) -> Plan:
    """Plan Imagenette, which is laid out like Imagewoof."""
    return _plan_class_folders(survey, {"train": "train", "val": "val"}, IMAGENETTE_CLASSES)


def plan_inaturalist(survey: Survey) -> Plan:
    """Plan iNaturalist 12K: `train` and `val` with a folder per class; its val is the test split by convention."""
    plan = _plan_class_folders(survey, {"train": "train", "val": "test"})
    return Plan(plan.targets, "the publisher's val is test, as is usual; val is a stratified fifth of train")


def plan_cars(survey: Survey) -> Plan:
    """Plan Stanford Cars: MATLAB lists with flat folders, or the bundle with a folder per class."""
    if not _named(survey, "cars_train_annos.mat") and _split_roots(survey):
        return _plan_class_folders(survey, {"train": "train", "test": "test"})
    classes = _texts(survey, "cars_meta.mat", "class_names")
    targets: dict[str, Target] = {}
    for split, list_name in (("train", "cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        folder = _flat_folder(survey, f"cars_{split}")
        for annotation in _variable(survey, list_name, "annotations"):
            try:
                file_name, (label,) = annotation["fname"], annotation["class"]
                if not isinstance(file_name, str):
                    raise TypeError
            except (ValueError, TypeError, KeyError):
                expected = "annotations with fname and class (devkit's cars_test_annos.mat has no class)"
                raise _fault(survey, list_name, expected, "one without") from None
            if label not in range(1, len(classes) + 1):
                raise _fault(survey, list_name, f"classes 1 to {len(classes)}", f"{label!a} for {file_name!a}")
            class_name = classes[int(label) - 1]
            _place(survey, targets, f"{folder}{file_name}", Target(split, class_name, class_name, base_name(file_name)))
    return _finish_plan(survey, targets, "official: cars_train_annos.mat and cars_test_annos_withlabels.mat")


def plan_dogs(survey: Survey) -> Plan:
    """Plan Stanford Dogs: MATLAB lists of paths; the class is what follows the first `-` of the folder's name."""
    root = _folder_of(survey, "Images")
    targets: dict[str, Target] = {}
    folder_of_label: dict[int, str] = {}
    for split in ("train", "test"):
        name = f"{split}_list.mat"
        paths, labels = _texts(survey, name, "file_list"), _variable(survey, name, "labels")
        if len(paths) != len(labels):
            raise _fault(survey, name, f"{len(paths)} labels as there are files", f"{len(labels)}")
        for path, label in zip(paths, labels, strict=True):
            folder, _, breed = path.split("/")[0].partition("-")
            original = path.split("/")[0]
            if not folder or not breed or "/" not in path or label not in range(1, 121):
                raise _fault(survey, name, "paths WNID-BREED/FILE with labels 1 to 120", f"{path!a} with {label!a}")
            if folder_of_label.setdefault(label, original) != original:
                raise _fault(survey, name, f"label {label} for {folder_of_label[label]!a} alone", f"{path!a}")
            _place(survey, targets, f"{root}{path}", Target(split, breed, original, base_name(path)))
    return _finish_plan(survey, targets, "official: train_list.mat and test_list.mat")


def plan_fashion_mnist(survey: Survey) -> Plan:
    """Plan Fashion-MNIST: four IDX files; each image becomes a PNG, numbered as in its file."""
    targets: dict[str, Target] = {}
    arrays: dict[str, np.ndarray] = {}
    for split, names in FASHION_MNIST_FILES.items():
        images_name, labels_name = (_idx_name(survey, name) for name in names)
        images_NHW = read_idx(survey.contents[images_name], f"{survey.where}: {images_name}", IDX_IMAGES_MAGIC)
        labels_N = read_idx(survey.contents[labels_name], f"{survey.where}: {labels_name}", IDX_LABELS_MAGIC)
        if len(images_NHW) != len(labels_N):
            expected = f"{len(images_NHW)} labels as {images_name} has images"
            raise _fault(survey, labels_name, expected, f"{len(labels_N)}")
        if labels_N.size and labels_N.max() >= len(FASHION_MNIST_CLASSES):
            expected = f"labels 0 to {len(FASHION_MNIST_CLASSES) - 1}"
            raise _fault(survey, labels_name, expected, f"{labels_N.max()}")
        arrays[split] = images_NHW
        for index, label in enumerate(labels_N.tolist()):
            name = FASHION_MNIST_CLASSES[label]
            targets[f"{split}/{index}"] = Target(split, name, name, f"{index:05d}.png")

    def render(wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        for name in wanted:
            split, index = name.split("/")
            buffer = io.BytesIO()
            Image.fromarray(arrays[split][int(index)]).save(buffer, "PNG")
            yield name, buffer.getvalue()

    return Plan(targets, "official: train-*, t10k-*", render=render)


def plan_caltech(survey: Survey) -> Plan:
    """Plan Caltech-101: without an official split, 30 images per class, picked by a seeded digest, are train."""
    root = _folder_of(survey, "101_ObjectCategories")
    by_class: dict[str, list[str]] = defaultdict(list)
    for name in survey.names:
        parts = name.removeprefix(root).split("/")
        if name.startswith(root) and len(parts) == 2 and parts[0] != "BACKGROUND_Google" and _is_image(name):
            by_class[parts[0]].append(name)
    targets: dict[str, Target] = {}
    for class_name, names in by_class.items():
        num_train = min(CALTECH_TRAIN_IMAGES_PER_CLASS, len(names) - 1)
        order = sorted(names, key=lambda name: blake3(_seeded(name.removeprefix(root))).digest())
        for index, name in enumerate(order):
            split = "train" if index < num_train else "test"
            _place(survey, targets, name, Target(split, class_name, class_name, base_name(name)))
    note = f"none official: {CALTECH_TRAIN_IMAGES_PER_CLASS} of each class, drawn from a seed, are train, the rest test"
    return Plan(dict(sorted(targets.items())), note)


def plan_imdb(survey: Survey) -> Plan:
    """Plan the reviews of aclImdb: `train` and `test` with `neg` and `pos`; `unsup`, without labels, is left out."""
    pattern = re.compile(rf"(?:^|/)(train|test)/(neg|pos|{'|'.join(UNLABELLED)})/([^/]+\.txt)$")
    targets: dict[str, Target] = {}
    unlabelled: Counter[str] = Counter()
    for name in survey.names:
        if (match := pattern.search(name)) is None:
            continue
        split, class_name, file_name = match.groups()
        if class_name in UNLABELLED:
            unlabelled[f"{split}/{class_name}"] += 1
        else:
            _place(survey, targets, name, Target(split, class_name, class_name, file_name))
    left_out = tuple(LeftOut(path, "texts without a label", num) for path, num in sorted(unlabelled.items()))
    return Plan(targets, "official: the publisher's folders", kind="texts", left_out=left_out)


def _seeded(name: str) -> bytes:
    return f"{CALTECH_SPLIT_SEED}\0{name}".encode(errors="surrogateescape")


def _plan_class_folders(survey: Survey, splits: dict[str, str], class_names: dict[str, str] | None = None) -> Plan:
    """Plan a source with a folder per split and class; `splits` maps its splits to the dataset's."""
    roots = _split_roots(survey)
    if len(roots) != 1:
        found = f"{len(roots)} of them: {', '.join(map(ascii, roots[:3]))}" if roots else "none"
        raise DataError(f"{survey.where}: expected one folder with train/<class>/<image>, found {found}")
    targets: dict[str, Target] = {}
    for name in survey.names:
        split, _, rest = name.removeprefix(roots[0]).partition("/")
        parts = rest.split("/")
        if not name.startswith(roots[0]) or split not in splits or len(parts) != 2 or not _is_image(name):
            continue
        if class_names is not None and parts[0] not in class_names:
            raise _fault(survey, name, f"a folder of {', '.join(class_names)}", f"{parts[0]!a}")
        class_name = class_names[parts[0]] if class_names else parts[0]
        _place(survey, targets, name, Target(splits[split], class_name, parts[0], parts[1]))
    missing = set(splits.values()) - {target.split for target in targets.values()}
    if missing:
        expected = " and ".join(f"{roots[0]}{split}/<class>/<image>" for split in splits)
        raise DataError(f"{survey.where}: expected {expected}, found no images for {', '.join(sorted(missing))}")
    return Plan(targets, "official: the publisher's folders")


def _place(survey: Survey, targets: dict[str, Target], name: str, target: Target) -> None:
    if name in targets:
        found = f"it in {targets[name].split} and again in {target.split}"
        raise _fault(survey, name, "each image listed once", found)
    targets[name] = target


def _finish_plan(survey: Survey, targets: dict[str, Target], split_note: str) -> Plan:
    there = set(survey.names)
    return Plan(
        {name: target for name, target in targets.items() if name in there},
        split_note,
        tuple(name for name in targets if name not in there),
    )


def _root_of(survey: Survey, anchor: str) -> str:
    """Return what precedes `anchor` in the one name that ends in it: nothing, or folders with a final `/`."""
    found = [name for name in survey.names if name == anchor or name.endswith(f"/{anchor}")]
    if len(found) != 1:
        listing = f"{len(found)}: {', '.join(map(ascii, found[:3]))}" if found else "none"
        raise DataError(f"{survey.where}: expected one {anchor}, found {listing}; pass the dataset's archive or folder")
    return found[0].removesuffix(anchor)


def _folder_of(survey: Survey, folder: str) -> str:
    """Return the path of the one folder of that name, with a final `/`."""
    pattern = re.compile(rf"^(?:.*?/)?{re.escape(folder)}/")
    found = sorted({match[0] for name in survey.names if (match := pattern.match(name))})
    if len(found) != 1:
        listing = f"{len(found)}: {', '.join(map(ascii, found[:3]))}" if found else "none"
        raise DataError(f"{survey.where}: expected one folder {folder}/ with the images, found {listing}")
    return found[0]


def _flat_folder(survey: Survey, folder: str) -> str:
    """Return the path of the folder of that name that holds images; bundles nest it in one of the same name."""
    pattern = re.compile(rf"^((?:.*/)?{re.escape(folder)}/)[^/]+$")
    found = sorted({match[1] for name in survey.names if (match := pattern.match(name)) and _is_image(name)})
    if len(found) != 1:
        listing = f"{len(found)}: {', '.join(map(ascii, found[:3]))}" if found else "none"
        raise DataError(f"{survey.where}: expected one folder {folder}/ with the images, found {listing}")
    return found[0]


def _split_roots(survey: Survey) -> list[str]:
    pattern = re.compile(r"^((?:.*/)?)train/[^/]+/[^/]+$")
    return sorted({match[1] for name in survey.names if (match := pattern.match(name)) and _is_image(name)})


def _named(survey: Survey, wanted: str) -> list[str]:
    return [name for name in survey.contents if base_name(name) == wanted]


def _variable(survey: Survey, list_name: str, variable: str) -> Any:
    found = _named(survey, list_name)
    if len(found) != 1:
        hint = "" if list_name != "cars_test_annos_withlabels.mat" else (
            " (the labels of the test images, a file beside devkit/; devkit's cars_test_annos.mat has none)"
        )  # fmt: skip
        raise DataError(f"{survey.where}: expected one {list_name}{hint}, found {len(found) or 'none'}")
    return read_mat(survey.contents[found[0]], f"{survey.where}: {found[0]}", variable)


def _texts(survey: Survey, list_name: str, variable: str) -> list[str]:
    values = _variable(survey, list_name, variable)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise _fault(survey, list_name, f"texts in {variable}", "something else")
    return values


def _idx_name(survey: Survey, wanted: str) -> str:
    """Return the name of the IDX file, unpacked rather than packed where there are both, as torchvision leaves them."""
    found = [*_named(survey, wanted), *_named(survey, f"{wanted}.gz")]
    if not found:
        names = ", ".join(name for names in FASHION_MNIST_FILES.values() for name in names)
        raise DataError(f"{survey.where}: expected {names} (each with .gz or without), found no {wanted}")
    return found[0]


def _numbered_lines(survey: Survey, name: str) -> dict[str, str]:
    """Return the values of a list's lines "NUMBER VALUE" by number."""
    lines: dict[str, str] = {}
    for line_index, line in enumerate(_content(survey, name).splitlines(), 1):
        if not line.strip():
            continue
        number, _, value = line.strip().partition(" ")
        if not number.isdecimal() or not value:
            raise _fault(survey, name, f'"NUMBER VALUE" in line {line_index}', f"{line[:80]!a}")
        if number in lines:
            raise _fault(survey, name, "each number once", f"{number} again in line {line_index}")
        lines[number] = value.strip()
    return lines


def _content(survey: Survey, name: str) -> str:
    if name not in survey.contents:
        raise DataError(f"{survey.where}: expected {name}, found none; download the dataset again")
    try:
        return survey.contents[name].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _fault(survey, name, "UTF-8 text", f"{error.reason} at byte {error.start}") from None


def _is_image(name: str) -> bool:
    return "." + name.rsplit(".", 1)[-1].lower() in image_suffixes()


def _fault(survey: Survey, name: str, expected: str, found: str) -> DataError:
    return DataError(f"{survey.where}: {name}: expected {expected}, found {found}; download the dataset again")


CLASS_FOLDERS = r"(^|/)train/[^/]+/[^/]+$"

LAYOUTS: dict[str, Layout] = {
    "cub-birds-200": Layout(
        plan_cub,
        frozenset(("classes.txt", "images.txt", "image_class_labels.txt", "train_test_split.txt")),
        signs=((r"(^|/)train_test_split\.txt$", r"(^|/)images/"),),
    ),
    "food-101": Layout(
        plan_food, frozenset(("train.json", "test.json")), signs=((r"(^|/)meta/train\.json$", r"(^|/)images/"),)
    ),
    "image-woof": Layout(plan_imagewoof, frozenset(), signs=((CLASS_FOLDERS,),)),
    "imagenette": Layout(plan_imagenette, frozenset(), signs=((CLASS_FOLDERS,),)),
    "stanford-cars": Layout(
        plan_cars,
        frozenset(("cars_train_annos.mat", "cars_test_annos_withlabels.mat", "cars_meta.mat")),
        signs=((r"(^|/)cars_train_annos\.mat$", r"(^|/)cars_train/", r"(^|/)cars_test/"), (CLASS_FOLDERS,)),
    ),
    "stanford-dogs": Layout(
        plan_dogs,
        frozenset(("train_list.mat", "test_list.mat")),
        signs=((r"(^|/)train_list\.mat$", r"(^|/)Images/"),),
    ),
    "fashion-mnist": Layout(
        plan_fashion_mnist,
        frozenset(
            f"{name}{suffix}" for names in FASHION_MNIST_FILES.values() for name in names for suffix in ("", ".gz")
        ),
        signs=((r"(^|/)train-labels-idx1-ubyte(\.gz)?$",),),
    ),
    "inaturalist-12k": Layout(plan_inaturalist, frozenset(), signs=((CLASS_FOLDERS,),)),
    "imdb": Layout(plan_imdb, frozenset(), signs=((r"(^|/)train/neg/[^/]+\.txt$", r"(^|/)train/pos/[^/]+\.txt$"),)),
    "caltech-101": Layout(
        plan_caltech,
        frozenset(),
        signs=((r"(^|/)101_ObjectCategories/",),),
        nested=frozenset(("101_ObjectCategories.tar.gz",)),
    ),
}
