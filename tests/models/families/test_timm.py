"""timm's models, spread over its families: blocks compose to the model's own forward.

`tools/family_coverage.py timm` takes all of them.
"""

import subprocess
import sys

import pytest

from raysnap.errors import ArchitectureError
from raysnap.models import blocks
from raysnap.models.families import family
from tests.support.compositions import compare, train_last

SMALL_VIT = '{"depth":3,"embed_dim":48,"img_size":32,"num_heads":2}'
NAMES = [
    "test_byobnet",
    "test_coatnet",
    "test_convnext",
    "test_convnext2",
    "test_efficientnet",
    "test_efficientnet_evos",
    "test_efficientnet_gn",
    "test_mambaout",
    "test_maxvit",
    "test_nfnet",
    "test_resnet",
    "test_vit",
    "test_vit2",
    "test_vit4",
    "test_vit_relpos",
    "beit_base_patch16_224" + SMALL_VIT,
    'cait_xxs24_224{"depth":3,"embed_dim":48,"img_size":32,"num_heads":2}',
    "convit_tiny" + SMALL_VIT,
    'davit_tiny{"depths":[1,1,1,1],"embed_dims":[8,16,16,16],"num_heads":[1,2,2,2]}',
    "deit_tiny_distilled_patch16_224" + SMALL_VIT,
    'edgenext_xx_small{"depths":[1,1,2,1]}',
    'efficientformer_l1{"depths":[1,1,1,1]}',
    "eva02_tiny_patch14_224" + SMALL_VIT,
    'fasternet_t0{"depths":[1,1,2,1]}',
    'levit_128s{"depth":[1,1,1]}',
    "lcnet_035",
    "vit_tiny_patch16_224" + SMALL_VIT,
    "vit_base_patch16_clip_224" + SMALL_VIT,
    "vit_small_patch14_dinov2" + '{"depth":3,"embed_dim":48,"img_size":28,"num_heads":2}',
    "vit_relpos_small_patch16_224" + SMALL_VIT,
    "vit_small_patch16_dinov3" + SMALL_VIT,
    "hrnet_w18_small",
    "cs3darknet_focus_s",
    "test_vit3",
    "test_convnext3",
    "mobilenetv3_small_050",
    'pvt_v2_b0{"depths":[1,1,2,1]}',
    "regnetx_002",
    'repvit_m0_9{"depth":[1,1,2,1]}',
    'swin_tiny_patch4_window7_224{"depths":[1,1,2],"embed_dim":8,"img_size":56,"num_heads":[1,2,2]}',
    'xcit_nano_12_p16_224{"depth":3,"embed_dim":32}',
]


@pytest.mark.parametrize("name", NAMES)
def test_blocks_compose_to_the_models_forward(name):
    found = compare(f"timm/{name}", None if "vit" in name else 64, None)
    assert (found.difference, found.faults) == (0, ())
    assert found.spread > 0, "outputs don't depend on the images"


@pytest.mark.parametrize("retrain_index", [0, 1, 4])
def test_the_last_blocks_alone_are_trained(retrain_index):
    changed, allowed = train_last("timm/test_resnet", retrain_index, 32)
    assert changed and changed <= allowed


def test_two_heads_take_their_features_joined():
    name = "timm/deit_tiny_distilled_patch16_224" + SMALL_VIT
    assert blocks.feature_dim(name) == 2 * 48
    assert set(blocks.random_head(name, 3, seed=0)) == {
        "head.weight",
        "head.bias",
        "head_dist.weight",
        "head_dist.bias",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timm/resnet_18", "did you mean 'timm/resnet18'"),
        ("test_vit_relpos", "did you mean 'timm/test_vit_relpos'"),
        ("timm/crossvit_9_240", "no place in its body"),
        ("timm/vit_small_patch16_rope_mixed_224", "its blocks share rope"),
        ('timm/resnet18{"pretrained":true}', "pretrained can't be part"),
        ('timm/resnet18{"nonsense":1}', "rejects this configuration"),
    ],
)
def test_what_cannot_be_built_is_refused(text, message):
    with pytest.raises(ArchitectureError, match=message):
        blocks.block_names(text)


def test_a_size_that_takes_another_path_is_refused():
    with pytest.raises(ArchitectureError, match="use 160, the size it was designed for"):
        blocks.measure_blocks("timm/test_vit", 64)
    assert blocks.measure_blocks('timm/test_vit{"img_size":64}', 64)[0].output_shape == (17, 64)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(family, "find_spec", lambda package: None)
    family._cut.cache_clear()
    with pytest.raises(ArchitectureError, match=r"package timm, found none; `pip install 'raysnap\[timm\]'`"):
        blocks.block_names("timm/test_vit4")
    with pytest.raises(ArchitectureError, match=r"`pip install 'raysnap\[timm\]'`"):
        blocks.block_names("vit_tiny_patch16_224")


def test_other_libraries_are_imported_only_for_theirs():
    code = (
        "import sys; from raysnap.models.blocks import block_names; block_names('resnet18')\n"
        "assert not {'timm', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
