"""transformers' models: blocks of tiny configurations compose to the model's own forward; nothing is downloaded.

`RAYSNAP_DEEP=1` takes all kinds, as `tools/family_coverage.py hf` does.
"""

import os

import pytest

from raysnap.errors import ArchitectureError
from raysnap.models import blocks
from raysnap.models.architecture import parse
from raysnap.models.families import hf
from tests.support.compositions import compare, train_last
from tests.support.hf_architectures import ARCHITECTURES, TEXT

KINDS = {parse(text).name: text for text in ARCHITECTURES}
OFTEN = [
    *(
        "vit",
        "deit",
        "beit",
        "dinov2",
        "swin",
        "convnext",
        "resnet",
        "regnet",
        "levit",
        "pvt_v2",
        "segformer",
        "poolformer",
    ),
    *("bert", "roberta", "distilbert", "electra", "deberta-v2"),
]


@pytest.mark.parametrize("kind", KINDS if os.environ.get("RAYSNAP_DEEP") == "1" else OFTEN)
def test_blocks_compose_to_the_models_forward(kind):
    found = compare(KINDS[kind])
    assert (found.difference, found.faults) == (0, ())
    assert found.spread > 0, "outputs don't depend on the items"


def test_texts_with_padding_need_their_mask():
    assert hf.is_text(parse(KINDS["bert"])) and not hf.is_text(parse(KINDS["vit"]))
    shapes = blocks.measure_blocks(KINDS["bert"], 8)
    assert shapes[0].output_shape == (8, TEXT["bert"]["hidden_size"] + 1), "the mask is one more channel"
    assert shapes[-2].output_shape == (TEXT["bert"]["hidden_size"],)


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_the_last_blocks_alone_are_trained(kind):
    changed, allowed = train_last(KINDS[kind], 1)
    assert changed and changed <= allowed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf/vitt", "did you mean 'hf/vit'"),
        ("hf/foo", r"classifies; `raysnap.list_architectures\('hf'\)` lists them"),
        ('hf/vit{"hidden_size":"x"}', "rejects this configuration"),
        ('hf/vit{"num_labels":3}', "num_labels can't be part"),
        ("hf/timm_wrapper", "no such model type"),
    ],
)
def test_what_cannot_be_built_is_refused(text, message):
    with pytest.raises(ArchitectureError, match=message):
        blocks.block_names(text)
