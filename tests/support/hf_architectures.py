"""Tiny configurations of transformers' models, of every kind that raysnap's users are likely to have."""

from typing import Any

from raysnap.models.architecture import architecture

_VIT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32}
_TEXT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
_PYRAMID = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 2, 1]}

VISION: dict[str, dict[str, Any]] = {
    "vit": _VIT | {"patch_size": 8},
    "deit": _VIT | {"patch_size": 8},
    "beit": _VIT | {"patch_size": 8},
    "data2vec-vision": _VIT | {"patch_size": 8},
    "dinov2": _VIT | {"patch_size": 8},
    "dinov2_with_registers": _VIT | {"patch_size": 8},
    "vit_msn": _VIT | {"patch_size": 8},
    "ijepa": _VIT | {"patch_size": 8},
    "clip": {"vision_config": _VIT | {"patch_size": 8}, "projection_dim": 16},
    "siglip": {"vision_config": _VIT | {"patch_size": 8}},
    "hiera": {"image_size": [64, 64], "embed_dim": 8, "depths": [1, 2, 2, 1]},
    "swin": {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [2, 2, 2],
        "num_heads": [1, 2, 2],
        "window_size": 4,
    },
    "swinv2": {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [2, 2],
        "num_heads": [1, 2],
        "window_size": 4,
    },
    "convnext": _PYRAMID,
    "convnextv2": _PYRAMID,
    "resnet": {"embedding_size": 8, "hidden_sizes": [16, 16, 24, 32], "depths": [1, 2, 2, 1]},
    "regnet": {"embedding_size": 8, "hidden_sizes": [16, 16, 24, 32], "depths": [1, 2, 2, 1], "groups_width": 8},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320, "image_size": 64},
    "mobilenet_v1": {"depth_multiplier": 0.25, "image_size": 64},
    "mobilenet_v2": {"depth_multiplier": 0.35, "image_size": 64},
    "mobilevit": {"image_size": 64, "hidden_sizes": [16, 16, 24], "neck_hidden_sizes": [8, 8, 8, 16, 16, 24, 48]},
    "mobilevitv2": {"image_size": 64, "width_multiplier": 0.5},
    "levit": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [1, 2, 2],
        "depths": [1, 2, 1],
        "key_dim": [8, 8, 8],
    },
    "cvt": {"embed_dim": [8, 16, 24], "num_heads": [1, 2, 3], "depth": [1, 2, 3]},
    "pvt": {
        "image_size": 64,
        "hidden_sizes": [8, 16, 16, 32],
        "depths": [1, 2, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
    },
    "pvt_v2": {
        "image_size": 64,
        "hidden_sizes": [8, 16, 16, 32],
        "depths": [1, 2, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
    },
    "poolformer": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 2, 1]},
    "segformer": {
        "hidden_sizes": [8, 16, 24, 32],
        "depths": [1, 2, 2, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 16,
    },
    "focalnet": {"image_size": 64, "embed_dim": 8, "depths": [1, 2, 2, 1]},
    "swiftformer": {"image_size": 64, "embed_dims": [8, 16, 16, 24], "depths": [1, 2, 2, 1]},
}

TEXT: dict[str, dict[str, Any]] = {
    "bert": _TEXT,
    "roberta": _TEXT | {"pad_token_id": 1},
    "electra": _TEXT | {"embedding_size": 16},
    "distilbert": {"vocab_size": 40, "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32},
    "xlm-roberta": _TEXT,
    "camembert": _TEXT,
    "deberta-v2": _TEXT,
    "modernbert": _TEXT
    | {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
}

ARCHITECTURES = [str(architecture("hf", name, options)) for name, options in (VISION | TEXT).items()]
