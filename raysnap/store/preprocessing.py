"""How an item becomes a model's input, as its weights expect it: recorded with them, and read from libraries' records.

An image is resized, cropped and normalised (`Preprocessing`); a text is cut into tokens (`TextPreprocessing`).

torchvision says it in the enum of its weights, timm in `pretrained_cfg`, transformers in `preprocessor_config.json`.
What none of raysnap's terms can say is refused, never approximated.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from raysnap.config.choices import Interpolation
from raysnap.datasets.resizing import CropRounding, ResizeMode, Resizing
from raysnap.datasets.text.tokenizing import Tokenizing
from raysnap.errors import WeightsError
from raysnap.models.checkpoints.folders import CONFIG_FILE, description

Channels: TypeAlias = tuple[float, float, float]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

# What a manifest of format 1 can't say, and what it takes for granted.
_WIDER: Final = {"resize_mode": "shorter_side", "crop_rounding": "even"}
_NARROW_INTERPOLATIONS: Final = ("bilinear", "bicubic")

_PILLOW_INTERPOLATIONS: Final[Mapping[int, Interpolation]] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_TIMM_CROP_SHARE: Final = 0.875

_CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)
_IMAGENET: Final = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
_CROPPED: Final = {"size": 224, "do_center_crop": True}
_PROCESSOR_SUFFIX: Final = re.compile("(ImageProcessor(Fast|Pil)?|FeatureExtractor)$")

# What transformers' processors do where their file doesn't say it; a size alone is that of the shorter side or of both.
_PROCESSOR_DEFAULTS: Final[Mapping[str, Any]] = {
    "size": 224,
    "crop_size": 224,
    "crop_pct": None,
    "resample": 3,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "do_normalize": True,
    "do_pad": False,
    "do_flip_channel_order": False,
    "rescale_factor": 1 / 255,
    "rescale_offset": False,
    "include_top": True,
}
_PROCESSORS: Final[Mapping[str, Mapping[str, Any]]] = {
    "Beit": {},
    "Bit": _CROPPED | {"image_mean": _CLIP_MEAN, "image_std": _CLIP_STD},
    "CLIP": _CROPPED | {"image_mean": _CLIP_MEAN, "image_std": _CLIP_STD},
    "ConvNext": {"size": 384, "crop_pct": 224 / 256},
    "DeiT": {"size": 256, "do_center_crop": True},
    "EfficientNet": {"size": 346, "crop_size": 289},
    "Levit": _CROPPED | _IMAGENET,
    "MobileNetV1": _CROPPED | {"size": 256, "resample": 2},
    "MobileNetV2": _CROPPED | {"size": 256, "resample": 2},
    "MobileViT": _CROPPED | {"crop_size": 256, "do_flip_channel_order": True, "do_normalize": False},
    "PoolFormer": _CROPPED | _IMAGENET | {"crop_pct": 0.9},
    "Pvt": _IMAGENET,
    "Segformer": _IMAGENET | {"size": 512, "resample": 2},
    "Siglip": {},
    "ViT": {"resample": 2},
}
_SHORTER_SIDE: Final = ("Bit", "CLIP", "ConvNext", "Levit", "MobileNetV1", "MobileNetV2", "MobileViT", "PoolFormer")
_PROCESSOR_NEEDS: Final[Mapping[str, Any]] = {
    "do_resize": True,
    "do_rescale": True,
    "do_pad": False,
    "do_flip_channel_order": False,
    "rescale_factor": 1 / 255,
    "rescale_offset": False,
}


PROCESSOR_FILE: Final = "preprocessor_config.json"


TOKENIZER_TENSOR: Final = "tokenizer.json"
MAX_COUNT: Final = 2**53

Digest: TypeAlias = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count: TypeAlias = Annotated[int, Field(ge=0, le=MAX_COUNT)]


class Record(BaseModel):
    """A frozen part of a manifest that rejects unknown keys; a `Config` takes too long to import."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Preprocessing(Record):
    """How an image becomes the model's input; the default is torchvision's for ImageNet.

    >>> raysnap.Preprocessing.cropping(64)
    Preprocessing(resize_size=73, image_size=64, mean=(0.485, 0.456, 0.406), ...)
    """

    resize_size: int = Field(256, ge=1, le=65_536, description="Length of the shorter side after resizing, in pixels.")
    image_size: int = Field(224, ge=1, le=65_536, description="Edge of the centre crop, in pixels.")
    mean: Channels = Field(IMAGENET_MEAN, description="Mean per channel, of pixels in 0..1.")
    std: Channels = Field(IMAGENET_STD, description="Standard deviation per channel, of pixels in 0..1.")
    interpolation: Interpolation = "bilinear"
    resize_mode: ResizeMode = Field(
        "shorter_side", description="Whether the shorter side gets `resize_size`, or both sides do (`squash`)."
    )
    crop_rounding: CropRounding = Field(
        "even", description="Where a crop begins that can't be central: halves are rounded to even numbers, or down."
    )

    @classmethod
    def cropping(cls, image_size: int) -> Preprocessing:
        """Return the preprocessing with crops of `image_size` pixels, in torchvision's usual ratio of 224 to 256."""
        return cls(image_size=image_size, resize_size=round(image_size * 256 / 224))

    def sized(self, image_size: int) -> Preprocessing:
        """Return the same preprocessing with crops of another size that are the same share of the resized image."""
        if image_size == self.image_size:
            return self
        resize_size = max(1, round(self.resize_size * image_size / self.image_size))
        return self.model_copy(update={"image_size": image_size, "resize_size": resize_size})

    def with_changes(
        self,
        *,
        image_size: int | None = None,
        resize: tuple[ResizeMode, int] | None = None,
        interpolation: Interpolation | None = None,
        mean: Channels | None = None,
        std: Channels | None = None,
    ) -> Preprocessing:
        """Return the same preprocessing with some things said otherwise; a size alone keeps the share of the crop.

        Args:
            image_size: edge of the centre crop.
            resize: how images are resized, and to which size; the crop is no larger unless `image_size` says so.
            interpolation: the filter.
            mean: of pixels in 0..1, per channel.
            std: of pixels in 0..1, per channel.
        """
        changed = self if image_size is None else self.sized(image_size)
        if image_size is not None and self.resize_size == Preprocessing.cropping(self.image_size).resize_size:
            changed = changed.model_copy(update={"resize_size": Preprocessing.cropping(image_size).resize_size})
        changes: dict[str, Any] = {"interpolation": interpolation, "mean": mean, "std": std}
        if resize is not None:
            mode, size = resize
            changes |= {"resize_mode": mode, "resize_size": size}
            changes["image_size"] = min(self.image_size, size) if image_size is None else image_size
        given = {key: value for key, value in changes.items() if value is not None}
        return Preprocessing(**changed.model_dump() | given)

    @property
    def resizing(self) -> Resizing:
        """The pixels that are decoded for it, which any mean and deviation share."""
        padded_size = self.image_size if self.image_size > self.resize_size else 0
        return Resizing(self.resize_size, self.resize_mode, self.interpolation, padded_size)

    @property
    def item_form(self) -> tuple[object, ...]:
        """All that the pixels of an image depend on: the rest is done to them on the device."""
        return self.resizing, self.image_size, self.crop_rounding

    @property
    def has_uneven_crops(self) -> bool:
        """Whether the two borders of a crop may differ by a pixel, so that rounding decides where it begins."""
        return self.resize_mode == "shorter_side" or (self.resize_size - self.image_size) % 2 == 1

    @property
    def is_narrow(self) -> bool:
        """Whether a manifest of format 1 can say it."""
        narrow = all(getattr(self, name) == value for name, value in _WIDER.items())
        return narrow and self.interpolation in _NARROW_INTERPOLATIONS

    @property
    def wider(self) -> dict[str, str]:
        """What a manifest says of it from format 2 on."""
        return {name: getattr(self, name) for name in _WIDER}

    @property
    def text(self) -> str:
        """How it is shown to people, in a few words."""
        how = "shorter side" if self.resize_mode == "shorter_side" else "both sides"
        return (
            f"{how} {self.resize_size}\u00a0px ({self.interpolation}), crop {self.image_size}\u00a0px, mean "
            f"{list(self.mean)}, std {list(self.std)}"
        )

    @model_serializer(mode="wrap")
    def _without_defaults_of_format_1(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what format 1 takes for granted, so that what was written before keeps its bytes and digests."""
        document: dict[str, Any] = handler(self)
        return document if not self.is_narrow else {key: document[key] for key in document if key not in _WIDER}


class TokenizerEntry(Record):
    """The object of a store that holds a tokenizer."""

    digest: Digest
    num_bytes: Count


class TextPreprocessing(Record):
    """How a text becomes the model's input.

    What plans and bounds with the size of images takes a text's number of tokens for it.

    >>> tokenizer = raysnap.Store.open("texts", create=True).put_tokenizer(b"{}")
    >>> how = raysnap.TextPreprocessing(tokenizer=tokenizer, max_length=64)
    >>> how.sized(32).max_length, how.image_size
    (32, 64)
    """

    kind: Literal["text"] = "text"
    tokenizer: TokenizerEntry = Field(description="The tokenizer, an object of the store.")
    max_length: int = Field(ge=1, le=65_536, description="Number of tokens: more are cut off, fewer filled up.")
    padding: int = Field(0, ge=0, le=2**31 - 1, description="The token that fills up short texts, on the right.")

    @property
    def image_size(self) -> int:
        """The number of tokens."""
        return self.max_length

    def sized(self, image_size: int) -> TextPreprocessing:
        """Return the same preprocessing with another number of tokens."""
        return self.model_copy(update={"max_length": image_size})

    @property
    def resizing(self) -> Tokenizing:
        """The form in which texts are cached for it."""
        return Tokenizing(self.tokenizer.digest, self.max_length, self.padding)

    @property
    def item_form(self) -> tuple[object, ...]:
        """All that the tokens of a text depend on."""
        return (self.resizing,)

    @property
    def is_narrow(self) -> bool:
        """Whether a manifest of format 1 can say it."""
        return False

    @property
    def wider(self) -> dict[str, str]:
        """What a manifest says of it from format 2 on, besides all else."""
        return {}

    @property
    def text(self) -> str:
        """How it is shown to people, in a few words."""
        return f"{self.max_length} tokens of the tokenizer {self.tokenizer.digest[:12]}"


AnyPreprocessing: TypeAlias = Preprocessing | TextPreprocessing


def tokenizer_object(content: bytes) -> tuple[TokenizerEntry, bytes]:
    """Return the object that keeps a `tokenizer.json` in a store: one tensor of its bytes, in canonical form."""
    num_bytes = len(content)
    header = {TOKENIZER_TENSOR: {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stored = len(text).to_bytes(8, "little") + text + content
    return TokenizerEntry(digest=blake3(stored).hexdigest(), num_bytes=len(stored)), stored


def beside(path: Path) -> tuple[Preprocessing, str] | None:
    """Return how the weights in a folder see images, and the name of the file that says so; None where none does.

    Raises:
        WeightsError: one says what raysnap doesn't do, or can't be read.
    """
    if (config := description(path, PROCESSOR_FILE)) is not None:
        return of_processor(config, f"{path / PROCESSOR_FILE}"), PROCESSOR_FILE
    config = description(path, CONFIG_FILE)
    timm = config.get("pretrained_cfg") if config else None
    if isinstance(timm, dict):
        return of_timm(timm, f"{path / CONFIG_FILE}: pretrained_cfg"), CONFIG_FILE
    return None


def of_timm(config: Mapping[str, Any], where: str = "pretrained_cfg") -> Preprocessing:
    """Return what timm's `create_transform` does in evaluation, with a model's `pretrained_cfg`.

    >>> of_timm({"input_size": [3, 224, 224], "crop_pct": 0.9, "interpolation": "bicubic"}).resize_size
    248

    Raises:
        WeightsError: it is not a configuration of square RGB images, or crops in a way that raysnap doesn't.
    """
    size = config.get("input_size") or (3, 224, 224)
    if not (_are_numbers(size, 3) and size[0] == 3 and size[1] == size[2]):
        raise WeightsError(f"{where}: input_size: expected 3, S, S for square RGB images, found {size!r:.80}")
    share = config.get("crop_pct") or _TIMM_CROP_SHARE
    if not (_are_numbers([share], 1) and 0 < share < 100):
        raise WeightsError(f"{where}: crop_pct: expected a number above 0, found {share!r:.80}")
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise WeightsError(
            f"{where}: crop_mode: expected center or squash, found {mode!r:.80}; give --resize and --image-size"
        )
    interpolation = config.get("interpolation") or "bicubic"
    if interpolation not in (known := get_args(Interpolation)):
        raise WeightsError(
            f"{where}: interpolation: expected one of {', '.join(known)}, found {interpolation!r:.80}; "
            "give --interpolation"
        )
    return _checked(
        where,
        resize_size=math.floor(size[1] / share),
        image_size=size[1],
        mean=config.get("mean") or IMAGENET_MEAN,
        std=config.get("std") or IMAGENET_STD,
        interpolation=interpolation,
        resize_mode="squash" if mode == "squash" else "shorter_side",
    )


def of_processor(config: Mapping[str, Any], where: str = "preprocessor_config.json") -> Preprocessing:
    """Return what an image processor of transformers does on Pillow's images, by its `preprocessor_config.json`.

    >>> of_processor({"image_processor_type": "ViTImageProcessor"}).resize_mode
    'squash'

    Raises:
        WeightsError: its type is none of those known here, or it does what raysnap doesn't.
    """
    if isinstance(timm := config.get("pretrained_cfg"), Mapping):
        return of_timm(timm, where)
    kind = _PROCESSOR_SUFFIX.sub("", str(config.get("image_processor_type") or config.get("feature_extractor_type")))
    if kind not in _PROCESSORS:
        raise _refused(where, "image_processor_type", f"one of {', '.join(_PROCESSORS)}", kind)
    known: dict[str, Any] = {**_PROCESSOR_DEFAULTS, **_PROCESSORS[kind]}
    known |= {key: value for key, value in config.items() if value is not None}
    for key, expected in _PROCESSOR_NEEDS.items():
        if known[key] != expected:
            raise _refused(where, key, str(expected), known[key])
    resample = known["resample"]
    if isinstance(resample, bool) or resample not in _PILLOW_INTERPOLATIONS:
        raise _refused(where, "resample", ", ".join(map(str, _PILLOW_INTERPOLATIONS)), resample)
    mean, std = (known["image_mean"], known["image_std"]) if known["do_normalize"] else ([0.0] * 3, [1.0] * 3)
    mean, std = ([value] * 3 if isinstance(value, int | float) else value for value in (mean, std))
    if kind == "EfficientNet" and known["include_top"] and _are_numbers(std, 3):
        std = [value * value for value in std]  # it divides twice
    mode, resize_size, image_size = _processor_sizes(kind, known, where)
    is_central = mode == "squash" and (resize_size - image_size) % 2 == 0
    return _checked(
        where,
        resize_size=resize_size,
        image_size=image_size,
        mean=mean,
        std=std,
        interpolation=_PILLOW_INTERPOLATIONS[resample],
        resize_mode=mode,
        crop_rounding="even" if is_central else "down",
    )


def to_timm(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return what a `pretrained_cfg` of timm says of it; where a crop begins is said by no key.

    >>> to_timm(Preprocessing())["crop_pct"]
    0.875
    """
    size, resized = preprocessing.image_size, preprocessing.resize_size
    share = size / resized
    while math.floor(size / share) < resized:
        share = math.nextafter(share, 0)
    return {
        "input_size": [3, size, size],
        "crop_pct": share,
        "crop_mode": "squash" if preprocessing.resize_mode == "squash" else "center",
        "interpolation": preprocessing.interpolation,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }


def to_processor(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the `preprocessor_config.json` of a processor of transformers; where a crop begins is said by no key.

    >>> to_processor(Preprocessing())["image_processor_type"]
    'CLIPImageProcessor'
    """
    size, resized = preprocessing.image_size, preprocessing.resize_size
    document = {
        "do_resize": True,
        "resample": next(key for key, name in _PILLOW_INTERPOLATIONS.items() if name == preprocessing.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    if preprocessing.resize_mode == "squash":
        document["size"] = {"height": resized, "width": resized}
        if size == resized:
            return document | {"image_processor_type": "ViTImageProcessor"}
    else:
        document["size"] = {"shortest_edge": resized}
    kind = "DeiT" if preprocessing.resize_mode == "squash" else "CLIP"
    crop = {"do_center_crop": True, "crop_size": {"height": size, "width": size}}
    return document | crop | {"image_processor_type": f"{kind}ImageProcessor"}


def _processor_sizes(kind: str, known: Mapping[str, Any], where: str) -> tuple[ResizeMode, int, int]:
    """Return how a processor resizes, to which size, and the edge of its crop."""
    size, share = known["size"], known["crop_pct"]
    is_shorter = isinstance(size, Mapping) and "shortest_edge" in size
    is_shorter |= not isinstance(size, Mapping) and kind in _SHORTER_SIDE
    edge = _edge(size, ("shortest_edge", "shortest_edge") if is_shorter else ("height", "width"))
    if edge is None or (isinstance(size, Mapping) and is_shorter and size.get("longest_edge")):
        raise _refused(where, "size", "a shortest_edge or a square", size)
    if kind == "ConvNext":
        if not _are_numbers([share], 1) or not 0 < share < 100:
            raise _refused(where, "crop_pct", "a number above 0", share)
        return ("squash", edge, edge) if edge >= 384 else ("shorter_side", int(edge / share), edge)
    if kind == "PoolFormer" and _are_numbers([share], 1) and 0 < share < 100:
        edge, is_shorter = int(edge / share), True
    if kind == "Levit" and is_shorter:
        edge = int((256 / 224) * edge)
    crop = _edge(known["crop_size"]) if known["do_center_crop"] else edge
    if crop is None or (is_shorter and not known["do_center_crop"]):
        raise _refused(where, "crop_size", "a square crop", known["crop_size"] if crop is None else "no crop")
    return ("shorter_side" if is_shorter else "squash"), edge, crop


def _refused(where: str, key: str, expected: str, found: Any) -> WeightsError:
    return WeightsError(
        f"{where}: {key}: expected {expected}, found {str(found)[:80]!r}; say how it sees images with --resize, "
        "--interpolation, --image-size, --mean and --std"
    )


def _checked(where: str, **fields: Any) -> Preprocessing:
    """Return the preprocessing of these values, which another library's file gave.

    Raises:
        WeightsError: one of them is out of bounds.
    """
    try:
        return Preprocessing(**fields)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        raise WeightsError(f"{where}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None


def _are_numbers(values: Any, length: int) -> bool:
    is_list = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == length
    return is_list and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _edge(value: Any, names: tuple[str, str] = ("height", "width")) -> int | None:
    """Return the edge of a square that a processor's size says; None where it says another shape."""
    if isinstance(value, Mapping):
        edges = [value.get(name) for name in names]
        value = edges[0] if edges[0] == edges[1] else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
