"""Pixels of the cache are those of each library's own transform: a spread of what the tool compares in full."""

from itertools import islice

import pytest

from tests.support.bad_images import noise_image
from tests.support.developer_tools import load_tool

tool = load_tool("preprocessing_equality")

SIZES = ((37, 60), (301, 211), (90, 90), (259, 512))
WEIGHTS = (
    "EfficientNet_V2_L_Weights.IMAGENET1K_V1",
    "ResNet50_Weights.IMAGENET1K_V2",
    "ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1",
    "Swin_V2_T_Weights.IMAGENET1K_V1",
)
TIMM = (
    "resnet18.a1_in1k",
    "vit_base_patch16_siglip_224.webli",
    "volo_d4_448.sail_in1k",
    "tf_efficientnet_b3.ns_jft_in1k",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Images of odd sizes, so that crops begin between pixels."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{number}.png" for number in range(len(SIZES))]
    for number, (path, size) in enumerate(zip(paths, SIZES, strict=True)):
        noise_image(*size, number).save(path)
    return tool.make_dataset(paths, folder)


def check(pairs, dataset) -> None:
    for pair in pairs:
        num_different, largest = tool.compare(pair, dataset)
        assert num_different == 0, pair.name
        assert largest < 1e-5, pair.name


def test_a_spread_of_torchvisions_weights(dataset):
    pairs = [pair for pair in tool.torchvision_pairs() if pair.name in WEIGHTS]
    assert len(pairs) == len(WEIGHTS)
    check(pairs, dataset)


def test_a_spread_of_timms_configurations(dataset):
    pytest.importorskip("timm")
    pairs = list(tool.timm_pairs(TIMM))
    assert len(pairs) == len(TIMM)
    check(pairs, dataset)


def test_a_spread_of_transformers_processors(dataset):
    pytest.importorskip("transformers")
    pairs = [pair for pair in tool.transformers_pairs() if not isinstance(pair, Exception)]
    check(islice(pairs, 0, None, 4), dataset)
