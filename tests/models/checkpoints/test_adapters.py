"""LoRA adapters are merged into their base: by the formula, wherever a trainer put the matrices, and nothing else.

`tools/trainer_checkpoints.py` compares with peft's own merging, to the last bit.
"""

import json
import math

import pytest
import safetensors.torch
import torch

from raysnap.cli.app import main
from raysnap.errors import WeightsError
from raysnap.models.architecture import architecture
from raysnap.models.blocks import random_tensors
from raysnap.models.checkpoints.adapters import merged
from raysnap.store.exchange.weights_in import add_path
from raysnap.store.store import Store
from tests.support.hf_architectures import VISION

VIT = str(architecture("hf", "vit", VISION["vit"]))
QUERY = "vit.encoder.layer.1.attention.attention.query.weight"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "init_lora_weights": True}


def write_adapter(folder, tensors: dict[str, torch.Tensor], **config) -> None:
    folder.mkdir(exist_ok=True)
    named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(named, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))


def matrices(module: str, num_out: int = 16, num_in: int = 16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(module))
    return {
        f"{module}.lora_A.weight": torch.randn(2, num_in, generator=generator),
        f"{module}.lora_B.weight": torch.randn(num_out, 2, generator=generator),
    }


def merge(folder, base: dict[str, torch.Tensor], adapter: dict[str, torch.Tensor], **config) -> dict[str, torch.Tensor]:
    write_adapter(folder, adapter, **config)
    return merged(folder, safetensors.torch.load_file(folder / "adapter_model.safetensors"), base, {})


@pytest.fixture
def store(tmp_path) -> Store:
    """Return a store with a base of two classes."""
    store = Store.open(tmp_path / "store", create=True)
    written = store.put_snapshot(architecture=VIT, blocks=random_tensors(VIT, 2, 0), num_classes=2)
    store.set_ref("base", written.manifest.id)
    return store


@pytest.mark.parametrize("module", ["vit.layers.1.attention.q_proj", "vit.encoder.layer.1.attention.attention.query"])
def test_an_adapter_is_merged_into_a_snapshot(store, tmp_path, module):
    adapter = matrices(module)
    head = {"classifier.weight": torch.ones(3, 16), "classifier.bias": torch.ones(3)}
    write_adapter(tmp_path / "adapter", adapter | head)
    added = add_path(store.path, tmp_path / "adapter", base="base", name="tuned").written
    before, after = store.read_state_dict("base"), store.read_state_dict("tuned")
    down, up = adapter.values()
    assert torch.equal(after[QUERY], before[QUERY] + up @ down * 3.0)
    assert {name for name in after if not torch.equal(after[name], before[name])} == {QUERY, *head}
    assert (added.new_blocks, added.manifest.retrain_index, added.manifest.num_classes) == (2, 2, 3)
    assert added.manifest.base == store.resolve("base")


def test_an_adapter_needs_its_base(store, tmp_path, capsys):
    write_adapter(tmp_path / "adapter", matrices("vit.layers.1.attention.q_proj"))
    assert main(["store", "add", str(tmp_path / "adapter"), "--store", str(store.path)]) == 2
    assert "expected --base with a LoRA adapter" in capsys.readouterr().err


def test_a_file_may_be_an_adapters_base(store, tmp_path):
    write_adapter(tmp_path / "adapter", matrices("vit.layers.1.attention.q_proj"))
    tensors = store.read_state_dict("base")
    safetensors.torch.save_file(tensors, tmp_path / "base.safetensors", {"format": "pt", "architecture": VIT})
    of_file = add_path(tmp_path / "other", tmp_path / "adapter", base=str(tmp_path / "base.safetensors")).written
    of_snapshot = add_path(store.path, tmp_path / "adapter", base="base").written
    assert of_file.manifest.id == of_snapshot.manifest.id
    assert (of_file.manifest.base, of_snapshot.new_blocks) == (None, 1)


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / math.sqrt(2)),
        ({"alpha_pattern": {"other": 1, "^layer.fc": 4}}, 2.0),
        ({"alpha_pattern": {"fc": 4}}, 2.0),
    ],
)
def test_the_factor_is_the_configurations(tmp_path, config, factor):
    down, up = torch.randn(2, 5), torch.randn(4, 2)
    adapter = {"layer.fc.lora_A.weight": down, "layer.fc.lora_B.weight": up}
    found = merge(tmp_path, {"layer.fc.weight": torch.zeros(4, 5)}, adapter, **config)
    assert torch.equal(found["layer.fc.weight"], up @ down * factor)


def test_matrices_may_be_the_other_way_round(tmp_path):
    down, up = torch.randn(2, 5), torch.randn(4, 2)
    adapter = {"fc.lora_A.weight": down, "fc.lora_B.weight": up}
    found = merge(tmp_path, {"fc.weight": torch.zeros(5, 4)}, adapter, fan_in_fan_out=True)
    assert torch.equal(found["fc.weight"], (up @ down * 3.0).T)


def test_convolutions_embeddings_and_biases_are_merged(tmp_path):
    base = {"conv.weight": torch.zeros(4, 3, 5, 5), "table.weight": torch.zeros(7, 4), "fc.weight": torch.zeros(4, 5)}
    base |= {"fc.bias": torch.ones(4), "norm.bias": torch.ones(4)}
    small, wide = torch.randn(2, 3, 5, 5), torch.randn(4, 2, 1, 1)
    rows, columns = torch.randn(2, 7), torch.randn(4, 2)
    adapter = {"conv.lora_A.weight": small, "conv.lora_B.weight": wide}
    adapter |= {"table.lora_embedding_A": rows, "table.lora_embedding_B": columns}
    adapter |= matrices("fc", 4, 5) | {"fc.lora_B.bias": torch.ones(4), "norm.bias": torch.zeros(4)}
    found = merge(tmp_path, base, adapter)
    expected = torch.einsum("rihw,or->oihw", small, wide[:, :, 0, 0]) * 3.0
    assert torch.allclose(found["conv.weight"], expected, atol=1e-5)
    assert torch.allclose(found["table.weight"], (columns @ rows).T * 3.0)
    assert torch.equal(found["fc.bias"], torch.full((4,), 4.0)) and not found["norm.bias"].any()


def test_names_of_wrappers_are_left_out(tmp_path):
    adapter = matrices("net.backbone.fc", 4, 5) | {"net.backbone.fc.base_layer.bias": torch.ones(4)}
    found = merge(tmp_path, {"fc.weight": torch.zeros(4, 5), "fc.bias": torch.zeros(4)}, adapter)
    assert found["fc.weight"].any() and found["fc.bias"].all()


@pytest.mark.parametrize(
    ("config", "adapter", "reason"),
    [
        ({"use_dora": True}, matrices("fc", 4, 5), "use_dora; merge it with peft"),
        ({"peft_type": "LOHA"}, matrices("fc", 4, 5), "'LOHA'; merge it with peft"),
        ({"init_lora_weights": "pissa"}, matrices("fc", 4, 5), "'pissa'; merge it with peft"),
        ({"alpha_pattern": {"(.*)*x": 1}}, matrices("fc", 4, 5), "alpha_pattern"),
        ({"lora_alpha": "6"}, matrices("fc", 4, 5), "lora_alpha"),
        ({}, {"norm.bias": torch.ones(4)}, "found none"),
        ({}, matrices("other", 4, 5), "'other.weight', which it lacks"),
        ({}, matrices("fc", 4, 6), r"expected matrices for a weight \(4, 5\)"),
        ({}, {"fc.lora_A.weight": torch.ones(2, 5)}, "two matrices"),
        ({}, {"fc.lora_A.weight": torch.ones(2, 5), "fc.lora_B.weight": torch.ones(4, 2, 1)}, "two matrices"),
        ({}, {"conv.lora_A.weight": torch.ones(2, 3, 1, 1), "conv.lora_B.weight": torch.ones(4, 1, 1, 1)}, "matrices"),
        ({}, matrices("attn", 12, 4), "nn.MultiheadAttention"),
    ],
)
def test_what_cannot_be_merged_is_refused(tmp_path, config, adapter, reason):
    base = {"fc.weight": torch.zeros(4, 5), "norm.bias": torch.zeros(4), "conv.weight": torch.zeros(4, 6, 3, 3)}
    base["attn.in_proj_weight"] = torch.zeros(12, 4)
    with pytest.raises(WeightsError, match=reason):
        merge(tmp_path, base, adapter, **config)
