"""Tiny sources of exactly the shape in which the nine named datasets are published."""

import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

NUM_TRAIN, NUM_TEST = 30, 10
Files = dict[str, bytes]


def jpeg(number: int = 0, mode: str = "RGB", form: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(buffer, form)
    return buffer.getvalue()


def mat(do_compression: bool = True, **variables) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, variables, do_compression=do_compression)
    return buffer.getvalue()


def cells(names: list[str]) -> np.ndarray:
    array = np.empty((len(names), 1), dtype=object)
    array[:, 0] = names
    return array


def cub() -> Files:
    top, classes = "CUB_200_2011", ("001.Black_footed_Albatross", "002.Laysan_Albatross")
    images, labels, splits, boxes, files = [], [], [], [], {"attributes.txt": b"1 has_bill_shape::curved\n"}
    for index in range(10):
        name = f"{classes[index % 2]}/Bird_{index:04d}_{796111 + index}.jpg"
        images.append(f"{index + 1} {name}")
        labels.append(f"{index + 1} {index % 2 + 1}")
        splits.append(f"{index + 1} {int(index < 6)}")
        boxes.append(f"{index + 1} 60.0 27.0 325.0 304.0")
        files[f"{top}/images/{name}"] = jpeg(index, "L" if index == 3 else "RGB")
    lists = {
        "README": "read me",
        "classes.txt": "\n".join(f"{number} {name}" for number, name in enumerate(classes, 1)),
        "images.txt": "\n".join(images),
        "image_class_labels.txt": "\n".join(labels),
        "train_test_split.txt": "\n".join(splits),
        "bounding_boxes.txt": "\n".join(boxes),
        "parts/parts.txt": "1 back",
        "attributes/image_attribute_labels.txt": "1 1 0 3 27.7080",
    }
    return files | {f"{top}/{name}": f"{text}\n".encode() for name, text in lists.items()}


def food() -> Files:
    files, listed = {}, {"train": {}, "test": {}}
    for class_index, name in enumerate(("apple_pie", "baby_back_ribs", "baklava")):
        for index in range(5):
            image_id = f"{name}/{1005649 + 10 * index + class_index}"
            files[f"food-101/images/{image_id}.jpg"] = jpeg(index)
            listed["train" if index < 3 else "test"].setdefault(name, []).append(image_id)
    for split, ids in listed.items():
        files[f"food-101/meta/{split}.json"] = json.dumps(ids).encode()
        text = "\n".join(image_id for by_class in ids.values() for image_id in by_class)
        files[f"food-101/meta/{split}.txt"] = text.encode()
    return files | {
        "food-101/meta/classes.txt": b"apple_pie\n",
        "food-101/README.txt": b"",
        "food-101/license_agreement.txt": b"",
    }


def class_folders(top: str, splits: tuple[str, str], classes: tuple[str, ...], suffix: str) -> Files:
    return {
        f"{top}/{split}/{name}/{name}_{index}{suffix}": jpeg(index)
        for split, num_images in zip(splits, (3, 2), strict=True)
        for name in classes
        for index in range(num_images)
    }


def woof() -> Files:
    files = class_folders("imagewoof2-160", ("train", "val"), ("n02086240", "n02105641", "n02115641"), ".JPEG")
    return files | {"imagewoof2-160/noisy_imagewoof.csv": b"path,noisy_labels_0,is_valid\n"}


def imagenette() -> Files:
    files = class_folders("imagenette2", ("train", "val"), ("n01440764", "n03028079"), ".JPEG")
    return files | {"imagenette2/noisy_imagenette.csv": b"path\n", "imagenette2/.DS_Store": b"x"}


def inaturalist() -> Files:
    files = class_folders("inaturalist_12K", ("train", "val"), ("Amphibia", "Aves", "Plantae"), ".jpg")
    junk = ("inaturalist_12K/.DS_Store", "inaturalist_12K/train/.DS_Store", "inaturalist_12K/train/Aves/._Aves_0.jpg",
            "__MACOSX/inaturalist_12K/train/Aves/._Aves_0.jpg", "inaturalist_12K/val/Aves/Thumbs.db")  # fmt: skip
    return files | dict.fromkeys(junk, b"junk")


CAR_CLASSES = ("AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012")


def cars_bundle() -> Files:
    classes = tuple(name.replace("/", "-") for name in CAR_CLASSES)
    return class_folders("car_data/car_data", ("train", "test"), classes, ".jpg") | {
        "anno_train.csv": b"",
        "names.csv": b"",
    }


def cars_lists(labels: tuple[int, ...] = (1, 2), do_compression: bool = True) -> Files:
    """Return the four lists; images 1 to 6 are train, 1 to 4 test, of class 1 and 2 by turns."""

    def annotations(num_images: int, with_class: bool) -> np.ndarray:
        box = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")]
        rows = np.empty((1, num_images), dtype=[*box, *([("class", object)] if with_class else []), ("fname", object)])
        for index in range(num_images):
            label = [np.uint8(labels[index % len(labels)])] if with_class else []
            rows[0, index] = (*[np.uint16(9)] * 4, *label, f"{index + 1:05d}.jpg")
        return rows

    names = np.empty((1, 2), dtype=object)
    names[0, :] = CAR_CLASSES
    return {
        "devkit/cars_meta.mat": mat(do_compression, class_names=names),
        "devkit/cars_train_annos.mat": mat(do_compression, annotations=annotations(6, True)),
        "devkit/cars_test_annos.mat": mat(do_compression, annotations=annotations(4, False)),
        "devkit/README.txt": b"",
        "cars_test_annos_withlabels.mat": mat(do_compression, annotations=annotations(4, True)),
    }


def cars() -> Files:
    images = {
        f"cars_{split}/{index:05d}.jpg": jpeg(index)
        for split, n in (("train", 6), ("test", 4))
        for index in range(1, n + 1)
    }
    return cars_lists() | images


def dogs() -> Files:
    folders = ("n02085620-Chihuahua", "n02099429-curly-coated_retriever")
    files = {
        f"Images/{folder}/{folder.split('-')[0]}_{index}.jpg": jpeg(index, "RGBA", "PNG") if index == 0 else jpeg(index)
        for folder in folders
        for index in range(5)
    }
    paths = [name.removeprefix("Images/") for name in files]
    train = [path for path in paths if int(path[-5]) < 3]
    test = [path for path in paths if int(path[-5]) >= 3]
    for list_name, listed in (("train_list", train), ("test_list", test), ("file_list", paths)):
        files[f"{list_name}.mat"] = mat(
            file_list=cells(listed),
            annotation_list=cells([path.removesuffix(".jpg") for path in listed]),
            labels=np.array([[folders.index(path.split("/")[0]) + 1] for path in listed], dtype=np.uint8),
        )
    return files


def caltech() -> Files:
    """Return the images only, as they are in the tar file within the zip file; 33, 34 and 5 of a class."""
    counts = {"accordion": 33, "Faces_easy": 34, "BACKGROUND_Google": 5}
    files = {
        f"101_ObjectCategories/{name}/image_{index:04d}.jpg": jpeg(index % 7, "L" if index == 2 else "RGB")
        for name, num_images in counts.items()
        for index in range(1, num_images + 1)
    }
    return files | {"101_ObjectCategories/BACKGROUND_Google/tmp": b"no image"}


def caltech_zip() -> Files:
    return {
        "caltech-101/101_ObjectCategories.tar.gz": tar_bytes(caltech(), "gz"),
        "caltech-101/Annotations.tar": tar_bytes({"Annotations/accordion/annotation_0001.mat": b"x"}),
        "caltech-101/show_annotation.m": b"",
        "__MACOSX/caltech-101/._show_annotation.m": b"",
    }


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def fashion_mnist_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, num_images in (("train", NUM_TRAIN), ("t10k", NUM_TEST)):
        arrays[f"{prefix}-images-idx3-ubyte"] = rng.integers(0, 256, (num_images, 28, 28), dtype=np.uint8)
        arrays[f"{prefix}-labels-idx1-ubyte"] = (np.arange(num_images) % 10).astype(np.uint8)
    return arrays


def fashion_mnist(packed: bool = True, **changed: bytes) -> Files:
    contents = {
        name: changed.get(name.replace("-", "_"), idx_bytes(array)) for name, array in fashion_mnist_arrays().items()
    }
    return {f"{name}.gz": gzip.compress(content) for name, content in contents.items()} if packed else contents


def tar_bytes(files: Mapping[str, bytes], packing: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{packing}") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zip_bytes(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def pack(name: str, files: Mapping[str, bytes]) -> bytes:
    if name.endswith(".zip"):
        return zip_bytes(files)
    return tar_bytes(files, "gz" if name.endswith("gz") else "")


def below(files: Files, *tops: str) -> Files:
    return {name: content for name, content in files.items() if name.startswith(tops)}


def imdb() -> Files:
    top, files = (
        "aclImdb",
        {"aclImdb/README": b"read me", "aclImdb/imdbEr.txt": b"0.1\n", "aclImdb/imdb.vocab": b"the\n"},
    )
    for split in ("train", "test"):
        files[f"{top}/{split}/urls_pos.txt"] = b"http://www.imdb.com\n"
        for number in range(3):
            for rating, name in ((1, "neg"), (9, "pos")):
                files[f"{top}/{split}/{name}/{number}_{rating}.txt"] = f"{split} {name} {number} <br />".encode()
    return files | {f"{top}/train/unsup/{number}_0.txt": b"who knows" for number in range(5)}


# Each dataset's files unpacked, and as they are published.
UNPACKED = {
    "cub-birds-200": cub, "food-101": food, "image-woof": woof, "imagenette": imagenette, "stanford-cars": cars,
    "stanford-dogs": dogs, "fashion-mnist": fashion_mnist, "inaturalist-12k": inaturalist, "caltech-101": caltech,
    "imdb": imdb,
}  # fmt: skip


def published(name: str, files: Files | None = None) -> Files:
    files = UNPACKED[name]() if files is None else files
    match name:
        case "cub-birds-200":
            return {"CUB_200_2011.tgz": tar_bytes(files, "gz")}
        case "food-101":
            return {"food-101.tar.gz": tar_bytes(files, "gz")}
        case "image-woof":
            return {"imagewoof2-160.tgz": tar_bytes(files, "gz")}
        case "imagenette":
            return {"imagenette2.tgz": tar_bytes(files, "gz")}
        case "stanford-cars":
            return {
                "cars_train.tgz": tar_bytes(below(files, "cars_train/"), "gz"),
                "cars_test.tgz": tar_bytes(below(files, "cars_test/"), "gz"),
                "car_devkit.tgz": tar_bytes(below(files, "devkit/"), "gz"),
                **below(files, "cars_test_annos_withlabels.mat"),
            }
        case "stanford-dogs":
            lists = {name: content for name, content in files.items() if name.endswith(".mat")}
            return {"images.tar": tar_bytes(below(files, "Images/")), "lists.tar": tar_bytes(lists)}
        case "fashion-mnist":
            return files
        case "inaturalist-12k":
            return {"nature_12K.zip": zip_bytes(files)}
        case "caltech-101":
            return {"caltech-101.zip": zip_bytes(caltech_zip())}
        case "imdb":
            return {"aclImdb_v1.tar.gz": tar_bytes(files, "gz")}
    raise AssertionError(name)
