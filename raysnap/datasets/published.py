"""The named datasets: who publishes them, in which files, with which digests, counts and terms.

Facts are those of the publishers and of torchvision's readers. A digest that nobody publishes is None: the one found
by the first `data prepare` is kept in `dataset.json`. Only https URLs are listed; `page` leads to other sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SourceFile:
    """One published file.

    Attributes:
        url: https address of the file, or None.
        digest: "md5:<hex>" or "sha256:<hex>" as published, or None.
    """

    name: str
    url: str | None = None
    digest: str | None = None


@dataclass(frozen=True)
class DatasetSource:
    """What is known of one named dataset before any of its files is fetched.

    Attributes:
        page: web page where a person can read about it and get it.
        files: all files that make up the dataset.
        licence: the terms, in one sentence.
        counts: official images per split of the prepared folder; empty where not known for sure.
        overlap: why it shares images with ImageNet, or None.
        variants: files that may replace `files`: the same images at another size.
    """

    title: str
    page: str
    files: tuple[SourceFile, ...]
    licence: str
    num_classes: int
    counts: Mapping[str, int] = field(default_factory=dict)
    overlap: str | None = None
    variants: tuple[SourceFile, ...] = ()

    @property
    def is_downloadable(self) -> bool:
        """Whether every file can be fetched over https."""
        return all(file.url is not None for file in self.files)

    def __str__(self) -> str:
        return f"{self.title}, {self.page}"


FAST_AI = "https://s3.amazonaws.com/fast-ai-imageclas"
FASHION_MNIST = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"
IMAGENET_TERMS = "Images of ImageNet: non-commercial research and education only."

SOURCES: dict[str, DatasetSource] = {
    "cub-birds-200": DatasetSource(
        title="CUB-200-2011",
        page="https://data.caltech.edu/records/65de6-vp158",
        files=(
            SourceFile(
                "CUB_200_2011.tgz",
                "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                "md5:97eceeb196236b17998738112f37df78",
            ),
        ),
        licence="Images of many owners on Flickr: non-commercial research and education only.",
        num_classes=200,
        counts={"train": 5_994, "test": 5_794},
        overlap="some test images are ImageNet training images, as its authors warn",
    ),
    "food-101": DatasetSource(
        title="Food-101",
        page="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        files=(SourceFile("food-101.tar.gz", digest="md5:85eeb15f3717b99a5da872d97d918f87"),),
        licence="Images of foodspotting.com: scientific fair use only.",
        num_classes=101,
        counts={"train": 75_750, "test": 25_250},
    ),
    "image-woof": DatasetSource(
        title="Imagewoof",
        page="https://github.com/fastai/imagenette",
        files=(SourceFile("imagewoof2.tgz", f"{FAST_AI}/imagewoof2.tgz"),),
        licence=IMAGENET_TERMS,
        num_classes=10,
        counts={"train": 9_025, "val": 3_929},
        overlap="all images are ImageNet images",
        variants=(
            SourceFile("imagewoof2-320.tgz", f"{FAST_AI}/imagewoof2-320.tgz"),
            SourceFile("imagewoof2-160.tgz", f"{FAST_AI}/imagewoof2-160.tgz"),
        ),
    ),
    "imagenette": DatasetSource(
        title="Imagenette",
        page="https://github.com/fastai/imagenette",
        files=(SourceFile("imagenette2.tgz", f"{FAST_AI}/imagenette2.tgz", "md5:fe2fc210e6bb7c5664d602c3cd71e612"),),
        licence=IMAGENET_TERMS,
        num_classes=10,
        counts={"train": 9_469, "val": 3_925},
        overlap="all images are ImageNet images",
        variants=(
            SourceFile("imagenette2-320.tgz", f"{FAST_AI}/imagenette2-320.tgz", "md5:3df6f0d01a2c9592104656642f5e78a3"),
            SourceFile("imagenette2-160.tgz", f"{FAST_AI}/imagenette2-160.tgz", "md5:e793b78cc4c9e9a4ccc0c1155377a412"),
        ),
    ),
    "stanford-cars": DatasetSource(
        title="Stanford Cars",
        page="https://pytorch.org/vision/stable/generated/torchvision.datasets.StanfordCars.html",
        files=(
            SourceFile("cars_train.tgz", digest="md5:065e5b463ae28d29e77c1b4b166cfe61"),
            SourceFile("cars_test.tgz", digest="md5:4ce7ebf6a94d07f1952d94dd34c4d501"),
            SourceFile("car_devkit.tgz", digest="md5:c3b158d763b6e2245038c8ad08e45376"),
            SourceFile("cars_test_annos_withlabels.mat", digest="md5:b0a2b23655a3edd16d84508592a98d10"),
        ),
        licence="Images from the web; the authors permit use for research purposes only.",
        num_classes=196,
        counts={"train": 8_144, "test": 8_041},
    ),
    "stanford-dogs": DatasetSource(
        title="Stanford Dogs",
        page="http://vision.stanford.edu/aditya86/ImageNetDogs/",
        files=(SourceFile("images.tar"), SourceFile("lists.tar")),
        licence=IMAGENET_TERMS,
        num_classes=120,
        counts={"train": 12_000, "test": 8_580},
        overlap="all images are ImageNet training images",
    ),
    "fashion-mnist": DatasetSource(
        title="Fashion-MNIST",
        page="https://github.com/zalandoresearch/fashion-mnist",
        files=tuple(
            SourceFile(name, f"{FASHION_MNIST}/{name}", f"md5:{md5}")
            for name, md5 in (
                ("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
                ("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
                ("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
                ("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
            )
        ),
        licence="Fashion-MNIST by Zalando SE: MIT licence.",
        num_classes=10,
        counts={"train": 60_000, "test": 10_000},
    ),
    "inaturalist-12k": DatasetSource(
        title="iNaturalist 12K",
        page="https://storage.googleapis.com/wandb_datasets/nature_12K.zip",
        files=(SourceFile("nature_12K.zip", "https://storage.googleapis.com/wandb_datasets/nature_12K.zip"),),
        licence="Images of many owners on iNaturalist: non-commercial research and education only.",
        num_classes=10,
        counts={"train": 9_999, "test": 2_000},
    ),
    "imdb": DatasetSource(
        title="Large Movie Review Dataset (texts)",
        page="https://ai.stanford.edu/~amaas/data/sentiment/",
        files=(
            SourceFile(
                "aclImdb_v1.tar.gz",
                "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
                "md5:7c2ac02c03563afcf9b574c7e56c153a",
            ),
        ),
        licence="Reviews of IMDb's users; the authors ask for a citation and name no licence.",
        num_classes=2,
        counts={"train": 25_000, "test": 25_000},
    ),
    "caltech-101": DatasetSource(
        title="Caltech-101",
        page="https://data.caltech.edu/records/mzrjq-6wc02",
        files=(
            SourceFile(
                "caltech-101.zip",
                "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                "md5:3138e1922a9193bfa496528edbbc45d0",
            ),
        ),
        licence="Creative Commons Attribution 4.0, by Caltech.",
        num_classes=101,
        counts={"train": 3_030, "test": 5_647},
    ),
}
