"""What libraries say of their preprocessing, in raysnap's terms; what these can't say is refused."""

import json

import pytest
import torch
from torchvision import models
from torchvision.transforms import v2

from raysnap.datasets.resizing import Resizing
from raysnap.errors import WeightsError
from raysnap.models.block_facts import RENORMALISING, weights_inputs
from raysnap.store.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, of_processor, of_timm

HALF = (0.5, 0.5, 0.5)


def test_format_1_says_what_it_always_said():
    assert json.loads(Preprocessing.cropping(64).model_dump_json()) == {
        "resize_size": 73,
        "image_size": 64,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
    }
    assert Preprocessing(interpolation="bicubic").is_narrow
    wide = Preprocessing(resize_mode="squash")
    assert not wide.is_narrow
    assert Preprocessing(**wide.model_dump()) == wide


@pytest.mark.parametrize(
    "changes", [{"resize_mode": "squash"}, {"crop_rounding": "down"}, {"interpolation": "lanczos"}]
)
def test_what_format_1_can_not_say_is_said_in_full(changes):
    document = Preprocessing(**changes).model_dump(mode="json")
    assert len(document) == 7
    assert changes.items() <= document.items()


def test_mean_and_deviation_share_the_decoded_pixels():
    one = Preprocessing()
    assert one.resizing == Preprocessing(mean=HALF, std=HALF).resizing == Resizing(256)
    assert Preprocessing(image_size=128).resizing == one.resizing
    assert Preprocessing(image_size=300).resizing == Resizing(256, padded_size=300)


def test_another_size_keeps_the_share_of_the_crop():
    own = Preprocessing(resize_size=480, image_size=480, mean=HALF, interpolation="bicubic")
    assert own.sized(480) is own
    assert own.sized(224) == own.model_copy(update={"resize_size": 224, "image_size": 224})
    assert Preprocessing().sized(112).resize_size == 128
    assert Preprocessing(resize_size=1, image_size=9).sized(2).resize_size == 1


@pytest.mark.parametrize(
    ("architecture", "weights", "expected"),
    [
        ("resnet18", "IMAGENET1K_V1", Preprocessing()),
        ("resnet50", "ResNet50_Weights.IMAGENET1K_V2", Preprocessing(resize_size=232)),
        (
            "efficientnet_v2_l",
            "DEFAULT",
            Preprocessing(resize_size=480, image_size=480, mean=HALF, std=HALF, interpolation="bicubic"),
        ),
        ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", Preprocessing(resize_size=384, image_size=384, interpolation="bicubic")),
    ],
)
def test_torchvisions_weights_say_how_they_see(architecture, weights, expected):
    assert Preprocessing(**weights_inputs(architecture)[weights]) == expected


@pytest.mark.parametrize("architecture", RENORMALISING)
def test_nets_that_renormalise_see_what_their_weights_saw(architecture):
    """Torchvision's builder makes them renormalise their input where it is given weights, and not otherwise."""
    preprocessing = Preprocessing(**weights_inputs(architecture)["DEFAULT"])
    torch.manual_seed(0)
    plain = models.get_model(architecture, num_classes=3, init_weights=False).eval()
    with_weights = models.get_model(architecture, num_classes=3, init_weights=False, transform_input=True).eval()
    with_weights.load_state_dict(plain.state_dict())
    pixels = torch.rand(2, 3, 96, 96)
    normalise = v2.functional.normalize
    asked = models.get_model_weights(architecture).DEFAULT.transforms()
    with torch.inference_mode():
        theirs = with_weights(normalise(pixels, asked.mean, asked.std))
        ours = plain(normalise(pixels, list(preprocessing.mean), list(preprocessing.std)))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Preprocessing(interpolation="bicubic")),
        (
            {"input_size": (3, 240, 240), "crop_pct": 0.95, "interpolation": "bilinear", "mean": HALF, "std": HALF},
            Preprocessing(resize_size=252, image_size=240, mean=HALF, std=HALF),
        ),
        (
            {"input_size": [3, 384, 384], "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic"},
            Preprocessing(resize_size=384, image_size=384, interpolation="bicubic", resize_mode="squash"),
        ),
        (
            {"input_size": [3, 448, 448], "crop_pct": 1.15, "interpolation": "lanczos"},
            Preprocessing(resize_size=389, image_size=448, interpolation="lanczos"),
        ),
    ],
)
def test_timm_says_share_and_mode_of_its_crop(config, expected):
    assert of_timm(config) == expected


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"input_size": [3, 224, 256]}, "input_size"),
        ({"input_size": [1, 28, 28]}, "input_size"),
        ({"input_size": "large"}, "input_size"),
        ({"crop_pct": -1}, "crop_pct"),
        ({"crop_pct": True}, "crop_pct"),
        ({"crop_mode": "border"}, "crop_mode"),
        ({"interpolation": "random"}, "interpolation"),
        ({"mean": [0.5]}, "mean"),
        ({"std": ["a", "b", "c"]}, "std"),
    ],
)
def test_what_of_timm_can_not_be_said_is_refused(config, word):
    with pytest.raises(WeightsError, match=f"^here: {word}"):
        of_timm(config, "here")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, "resample": 2},
            {"resize_mode": "squash", "resize_size": 224, "image_size": 224, "mean": HALF, "std": HALF},
        ),
        (
            {"feature_extractor_type": "ViTFeatureExtractor", "size": 384, "resample": 3},
            {"resize_mode": "squash", "resize_size": 384, "image_size": 384, "interpolation": "bicubic"},
        ),
        (
            {"image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": 224}, "crop_size": 224},
            {"resize_mode": "shorter_side", "resize_size": 224, "crop_rounding": "down", "interpolation": "bicubic"},
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.875},
            {"resize_mode": "shorter_side", "resize_size": 256, "image_size": 224, "crop_rounding": "down"},
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
            {"resize_mode": "squash", "resize_size": 384, "image_size": 384, "crop_rounding": "even"},
        ),
        (
            {"image_processor_type": "DeiTImageProcessor", "image_mean": list(IMAGENET_MEAN), "resample": 1},
            {"resize_mode": "squash", "resize_size": 256, "image_size": 224, "interpolation": "lanczos"},
        ),
        ({"image_processor_type": "LevitImageProcessor"}, {"resize_size": 256, "std": IMAGENET_STD}),
        ({"image_processor_type": "PoolFormerImageProcessor"}, {"resize_size": 248, "image_size": 224}),
        ({"image_processor_type": "EfficientNetImageProcessor"}, {"std": (0.25, 0.25, 0.25), "image_size": 346}),
        ({"image_processor_type": "ViTImageProcessor", "do_normalize": False}, {"mean": (0, 0, 0), "std": (1, 1, 1)}),
        ({"pretrained_cfg": {"crop_pct": 0.9}}, {"resize_size": 248, "interpolation": "bicubic"}),
    ],
)
def test_processors_of_transformers_say_how_they_see(config, expected):
    found = of_processor(config)
    assert {key: getattr(found, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({}, "image_processor_type"),
        ({"image_processor_type": "DonutImageProcessor"}, "image_processor_type"),
        ({"image_processor_type": "MobileViTImageProcessor"}, "do_flip_channel_order"),
        ({"image_processor_type": "ViTImageProcessor", "do_resize": False}, "do_resize"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 4}, "resample"),
        ({"image_processor_type": "ViTImageProcessor", "resample": True}, "resample"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 192}}, "size"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 224}}, "crop_size"),
        ({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 2, "longest_edge": 3}}, "size"),
        ({"image_processor_type": "CLIPImageProcessor", "crop_size": {"height": 1, "width": 2}}, "crop_size"),
        ({"image_processor_type": "ConvNextImageProcessor", "crop_pct": "x"}, "crop_pct"),
        ({"image_processor_type": "ViTImageProcessor", "rescale_factor": 1.0}, "rescale_factor"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [0.5, 0.5]}, "mean"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"height": 10**9, "width": 10**9}}, "resize_size"),
    ],
)
def test_what_of_a_processor_can_not_be_said_is_refused(config, word):
    with pytest.raises(WeightsError, match=f"^here: {word}"):
        of_processor(config, "here")
