"""Folders of images as people have them: each as the tool that makes it lays it out, with a few small images.

The layouts were read from the tools' own output or documentation: Roboflow's exports, Kaggle competitions, Synology's
indexing, macOS's archiver, `datasets` and `webdataset` (run once beside these functions), the ImageNet and
tiny-imagenet archives, Label Studio's CSV export, iOS. A function takes a new folder and fills it.
"""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

CLASSES = ("cat", "dog", "fox")


def picture(number: int) -> Image.Image:
    """Return a small image; different numbers have different pixels."""
    return Image.new("RGB", (10, 8), (number * 7 % 256, number // 36 * 40 % 256, 90))


def picture_bytes(number: int, form: str = "JPEG") -> bytes:
    """Return a small image file."""
    written = io.BytesIO()
    picture(number).save(written, form)
    return written.getvalue()


class Maker:
    """Writes files below a folder, every image another one."""

    def __init__(self, root: Path):
        self.root = root
        self.num_images = 0

    def image(self, name: str) -> str:
        """Write an image and return its name."""
        self.num_images += 1
        form = {"png": "PNG", "tif": "TIFF", "webp": "WEBP"}.get(name.rsplit(".", 1)[-1].lower(), "JPEG")
        return self.file(name, picture_bytes(self.num_images, form))

    def images(self, folder: str, count: int, suffix: str = "jpg") -> list[str]:
        """Write so many images into a folder and return their names."""
        return [self.image(f"{folder}/{index:03d}.{suffix}".lstrip("/")) for index in range(count)]

    def file(self, name: str, content: bytes | str = b"x") -> str:
        """Write any file and return its name."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return name


def roboflow(root: Path) -> None:
    """Fill a folder as Roboflow's "Folder Structure" export does."""
    make = Maker(root)
    for split, count in (("train", 4), ("valid", 2), ("test", 1)):
        for name in CLASSES:
            for index in range(count):
                make.image(f"{split}/{name}/{name}{index}_jpg.rf.{index:032x}.jpg")
    make.file("README.dataset.txt", "# pets > 2024-01-01\n")
    make.file("README.roboflow.txt", "pets - v1\n")


def roboflow_one_hot(root: Path) -> None:
    """Fill a folder as Roboflow's "Multi-Label Classification CSV" export does."""
    make = Maker(root)
    for split, count in (("train", 4), ("valid", 2)):
        lines = [f"filename, {', '.join(CLASSES)}"]
        for label, name in enumerate(CLASSES):
            for index in range(count):
                make.image(f"{split}/{name}{index}_jpg.rf.{index:032x}.jpg")
                flags = ", ".join(str(int(label == other)) for other in range(len(CLASSES)))
                lines.append(f"{name}{index}_jpg.rf.{index:032x}.jpg, {flags}")
        make.file(f"{split}/_classes.csv", "\n".join(lines) + "\n")
    make.file("README.roboflow.txt", "pets - v1\n")


def kaggle(root: Path) -> None:
    """Fill a folder as a Kaggle competition's archive does: ids without a suffix, an unlabelled test set."""
    make = Maker(root)
    lines = ["id,breed"]
    for number in range(12):
        make.image(f"train/{number:032x}.jpg")
        lines.append(f"{number:032x},{CLASSES[number % 3]}")
    for number in range(20, 24):
        make.image(f"test/{number:032x}.jpg")
    make.file("labels.csv", "\n".join(lines) + "\n")
    submission = [f"{number:032x},0.3,0.3,0.4" for number in range(20, 24)]
    make.file("sample_submission.csv", "\n".join(["id,cat,dog,fox", *submission]) + "\n")


def synology(root: Path) -> None:
    """Fill a folder as a Synology share has it: every folder with `@eaDir`, which holds thumbnails of its files."""
    make = Maker(root)
    for split, count in (("train", 4), ("val", 2)):
        for name in CLASSES:
            for index in range(count):
                make.image(f"{split}/{name}/IMG_{index:04d}.JPG")
                for size in ("SM", "M", "XL"):
                    make.image(f"{split}/{name}/@eaDir/IMG_{index:04d}.JPG/SYNOPHOTO_THUMB_{size}.jpg")
                make.file(f"{split}/{name}/@eaDir/IMG_{index:04d}.JPG@SynoEAStream")
        make.file(f"{split}/@eaDir/{CLASSES[0]}@SynoResource")
    make.image("#recycle/train/cat/IMG_0009.JPG")
    make.file("@eaDir/train@SynoResource")
    make.file("train/cat/Thumbs.db")


def macos_zip(root: Path) -> None:
    """Fill a folder as a zip of macOS's Finder does when another system unpacks it."""
    make = Maker(root)
    for split, count in (("train", 4), ("val", 2)):
        for name in CLASSES:
            for index in range(count):
                make.image(f"pets/{split}/{name}/{index}.jpg")
                make.file(f"__MACOSX/pets/{split}/{name}/._{index}.jpg", b"\0\5\x16\7\0\2\0\0Mac OS X")
                make.file(f"pets/{split}/{name}/._{index}.jpg", b"\0\5\x16\7\0\2\0\0Mac OS X")
    make.file("pets/.DS_Store")
    make.file("pets/train/.DS_Store")
    make.file("__MACOSX/._pets")


def hf_imagefolder(root: Path) -> None:
    """Fill a folder as `datasets`' `imagefolder` reads it: images of a split beside a `metadata.csv`."""
    make = Maker(root)
    for split, count in (("train", 12), ("validation", 6)):
        lines = ["file_name,label,text"]
        for index in range(count):
            make.image(f"{split}/{index:04d}.png")
            lines.append(f'{index:04d}.png,{CLASSES[index % 3]},"a picture, number {index}"')
        make.file(f"{split}/metadata.csv", "\n".join(lines) + "\n")
    make.file("README.md", "---\nlicense: mit\n---\n")


def hf_parquet(root: Path) -> None:
    """Fill a folder as `Dataset.push_to_hub` does: parquet files with embedded images and the classes in a schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    for split, count in (("train", 12), ("test", 6)):
        rows: dict[str, list[object]] = {"image": [], "label": []}
        for index in range(count):
            number += 1
            rows["image"].append({"bytes": picture_bytes(number, "PNG"), "path": f"{index}.png"})
            rows["label"].append(index % 3)
        image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({"image": pa.array(rows["image"], image_type), "label": pa.array(rows["label"], pa.int64())})
        features = {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        (root / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / "data" / f"{split}-00000-of-00001.parquet")
    Maker(root).file("README.md", "---\nlicense: mit\n---\n")


def webdataset(root: Path) -> None:
    """Fill a folder as `webdataset.ShardWriter` does: tar files whose entries of one key are one sample."""
    root.mkdir(parents=True, exist_ok=True)
    number = 0
    for split, count in (("train", 12), ("val", 6)):
        for shard in range(2):
            with tarfile.open(root / f"{split}-{shard:06d}.tar", "w") as tar:
                for index in range(shard, count, 2):
                    number += 1
                    for suffix, content in (("jpg", picture_bytes(number)), ("cls", str(index % 3).encode())):
                        entry = tarfile.TarInfo(f"{split}{index:06d}.{suffix}")
                        entry.size = len(content)
                        tar.addfile(entry, io.BytesIO(content))


def imagenet(root: Path) -> None:
    """Fill a folder as Kaggle's ImageNet archive does: a flat validation set, and a list of its labels."""
    make = Maker(root)
    wnids = ("n01440764", "n01443537", "n01484850")
    for wnid in wnids:
        for index in range(4):
            make.image(f"ILSVRC/Data/CLS-LOC/train/{wnid}/{wnid}_{index}.JPEG")
    lines = ["ImageId,PredictionString"]
    for index in range(1, 7):
        make.image(f"ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{index:08d}.JPEG")
        lines.append(f"ILSVRC2012_val_{index:08d},{wnids[index % 3]} 111 108 441 193 ")
        make.file(f"ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_{index:08d}.xml", "<annotation/>")
    for index in range(1, 4):
        make.image(f"ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_{index:08d}.JPEG")
    make.file("LOC_val_solution.csv", "\n".join(lines) + "\n")
    make.file("LOC_synset_mapping.txt", "".join(f"{wnid} a fish\n" for wnid in wnids))


def tiny_imagenet(root: Path) -> None:
    """Fill a folder as `tiny-imagenet-200.zip` does: images one level further down, a flat val with a list."""
    make = Maker(root)
    wnids = ("n01443537", "n01629819", "n01641577")
    for wnid in wnids:
        for index in range(4):
            make.image(f"tiny-imagenet-200/train/{wnid}/images/{wnid}_{index}.JPEG")
        make.file(f"tiny-imagenet-200/train/{wnid}/{wnid}_boxes.txt", f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    lines = []
    for index in range(6):
        make.image(f"tiny-imagenet-200/val/images/val_{index}.JPEG")
        lines.append(f"val_{index}.JPEG\t{wnids[index % 3]}\t0\t32\t44\t62\n")
    for index in range(3):
        make.image(f"tiny-imagenet-200/test/images/test_{index}.JPEG")
    make.file("tiny-imagenet-200/val/val_annotations.txt", "".join(lines))
    make.file("tiny-imagenet-200/wnids.txt", "".join(f"{wnid}\n" for wnid in wnids))
    make.file("tiny-imagenet-200/words.txt", "".join(f"{wnid}\tthing\n" for wnid in wnids))


def label_studio(root: Path) -> None:
    """Fill a folder with Label Studio's CSV export and its folder of uploads."""
    make = Maker(root)
    lines = ["annotation_id,annotator,choice,created_at,id,image,lead_time,updated_at"]
    for number in range(12):
        make.image(f"upload/1/{number:08x}-photo_{number}.jpg")
        image = f"/data/upload/1/{number:08x}-photo_{number}.jpg"
        lines.append(f"{number},1,{CLASSES[number % 3]},2024-01-01T00:00:00Z,{100 + number},{image},3.2,2024-01-01")
    make.file("project-1-at-2024-01-01-00-00-1234abcd.csv", "\n".join(lines) + "\n")


def phone(root: Path) -> None:
    """Fill a folder with a phone's photos, sorted by hand: JPEG and HEIC, edits, live photos, screenshots."""
    make = Maker(root)
    for name in CLASSES:
        for index in range(4):
            make.image(f"{name}/IMG_{index:04d}.JPG")
        for index in range(4, 7):
            make.file(f"{name}/IMG_{index:04d}.HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
        make.file(f"{name}/IMG_0001.AAE", "<plist/>")
        make.file(f"{name}/IMG_0004.MOV", b"\0\0\0\x14ftypqt  ")
        make.image(f"{name}/Screenshot.png")


def taxonomy(root: Path) -> None:
    """Fill a folder with classes below groups."""
    make = Maker(root)
    for split, count in (("train", 4), ("val", 2)):
        for name in ("animals/cat", "animals/dog", "animals/fox", "vehicles/car", "vehicles/bus", "vehicles/van"):
            make.images(f"{split}/{name}", count)


FOUND: dict[str, Callable[[Path], None]] = {
    make.__name__: make
    for make in (
        roboflow, roboflow_one_hot, kaggle, synology, macos_zip, hf_imagefolder, hf_parquet, webdataset, imagenet,
        tiny_imagenet, label_studio, phone, taxonomy,
    )
}  # fmt: skip
