"""Merge a LoRA adapter, as peft saves it, into the weights that it was trained on.

What is computed is what peft's `merge_and_unload` computes, in the same order and types, so results are equal to the
last bit on one machine. Adapters of other kinds are refused with the step that makes plain weights of them.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv1d, conv2d, conv3d

from raysnap.errors import WeightsError
from raysnap.models.block import Tensors
from raysnap.models.checkpoints.folders import description

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_PREFIX = "base_model.model."
_LAYER = "base_layer."  # what peft wraps stays below this name
_MATRICES = ("lora_A.weight", "lora_B.weight", "lora_B.bias")
_EMBEDDED = ("lora_embedding_A", "lora_embedding_B")
_PARTS = (*_MATRICES, *_EMBEDDED)
_PLAIN_PATTERN = re.compile(r"[A-Za-z0-9_.^$|\\-]+")  # without repetitions, which can take for ever
_CONVOLUTIONS = {3: conv1d, 4: conv2d, 5: conv3d}
# Values with which an adapter is more than a product that is added; those that change the base don't say how.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_MORE = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
)
_STEP = "merge it with peft (`model.merge_and_unload().save_pretrained(FOLDER)`), then add that folder"


def adapter_folder(path: Path) -> Path | None:
    """Return the folder of the adapter that a path means, itself or a file of it; None where it means none."""
    folder = path.parent if path.name in ADAPTER_WEIGHTS else path
    return folder if (folder / ADAPTER_CONFIG).is_file() and adapter_file(folder) is not None else None


def adapter_file(folder: Path) -> Path | None:
    """Return the file of tensors in an adapter's folder; None where it lacks one."""
    return next((folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), None)


def merged(
    folder: Path, adapter: Mapping[str, Tensor], base: Mapping[str, Tensor], renamed: Mapping[str, str]
) -> Tensors:
    """Return the base's tensors with an adapter merged into them; those that it doesn't change are the same objects.

    Args:
        folder: of the adapter, where its configuration is.
        adapter: its tensors, by their names in the file.
        base: the weights that it was trained on.
        renamed: the names in `base` of tensors that modules call otherwise, by the latter.

    Raises:
        WeightsError: it is no LoRA adapter, of another base, or of a kind that can't be merged here.
    """
    config = description(folder, ADAPTER_CONFIG) or {}
    _check_kind(config)
    layers: dict[str, Tensors] = defaultdict(dict)
    saved: Tensors = {}
    for full, tensor in adapter.items():
        name = full.removeprefix(_PREFIX)
        part = next((part for part in _PARTS if name.endswith(f".{part}")), None)
        if part is not None:
            layers[name.removesuffix(f".{part}")][part] = tensor
        else:
            saved[name.replace(_LAYER, "")] = tensor
    if not layers:
        raise WeightsError("expected the matrices of a LoRA adapter, found none")
    places = _Places(base, renamed, (*layers, *saved))
    result = dict(base) | {places.tensor(name): tensor for name, tensor in saved.items()}
    for module, parts in layers.items():
        weight = places.weight(module.replace(_LAYER, ""))
        scaling = _scaling(config, module, parts)
        change = _change(module, parts, base[weight], scaling, is_transposed=bool(config.get("fan_in_fan_out")))
        result[weight] = result[weight].clone()
        result[weight] += change
        if (bias := parts.get("lora_B.bias")) is not None:
            name = places.tensor(f"{module.replace(_LAYER, '')}.bias")
            result[name] = result[name].clone()
            result[name] += bias * scaling
    return result


def _check_kind(config: Mapping[str, Any]) -> None:
    kind, start = config.get("peft_type"), config.get("init_lora_weights")
    if kind != "LORA":
        raise WeightsError(f"expected an adapter of type LORA, found {str(kind)[:40]!r}; {_STEP}")
    more = next((key for key in _MORE if config.get(key)), None)
    if more is not None:
        raise WeightsError(f"expected a plain LoRA adapter, found one with {more}; {_STEP}")
    if start not in _PLAIN_STARTS:
        raise WeightsError(f"expected an adapter of an unchanged base, found one that began as {start!r:.40}; {_STEP}")


class _Places:
    """Where an adapter's modules are in its base: under their names, or some that lack what a wrapper put before."""

    def __init__(self, base: Mapping[str, Tensor], renamed: Mapping[str, str], names: tuple[str, ...]):
        self._base = base
        self._renamed = renamed
        parts = names[0].replace(_LAYER, "").split(".")
        wrappers = [".".join(parts[:count]) + "." if count else "" for count in range(len(parts))]
        self._wrapper = next((one for one in wrappers if self._finds(names[0].removeprefix(one))), "")

    def _finds(self, module: str) -> bool:
        module = module.replace(_LAYER, "")
        return any(self._own(name) in self._base for name in (module, f"{module}.weight", f"{module}.in_proj_weight"))

    def _own(self, name: str) -> str:
        return self._renamed.get(name, name)

    def tensor(self, name: str) -> str:
        own = self._own(name.removeprefix(self._wrapper))
        if own not in self._base:
            raise WeightsError(
                f"expected an adapter of this base, found one that changes {name[:120]!r}, which it lacks"
            )
        return own

    def weight(self, module: str) -> str:
        if self._own(f"{module.removeprefix(self._wrapper)}.in_proj_weight") in self._base:
            # peft 0.21 adds what belongs to out_proj twice, in training as well.
            raise WeightsError(
                f"{module[:120]}: expected an adapter of linear layers and convolutions, found one of an "
                f"nn.MultiheadAttention, which versions of peft take differently; {_STEP}"
            )
        return self.tensor(f"{module}.weight")


def _scaling(config: Mapping[str, Any], module: str, parts: Mapping[str, Tensor]) -> float:
    """Return the factor of a module's change: `alpha / r`, or `alpha / sqrt(r)` where the adapter says so."""
    alpha = config.get("lora_alpha")
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if not _PLAIN_PATTERN.fullmatch(pattern):
            raise WeightsError(f"alpha_pattern: expected names of modules, found {pattern[:80]!r}; {_STEP}")
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    first = parts.get("lora_A.weight", parts.get("lora_embedding_A"))
    rank = first.shape[0] if first is not None and first.dim() else 0
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha) or rank < 1:
        raise WeightsError(f"{module[:120]}: expected a lora_alpha and a rank, found {str(alpha)[:20]!r} and {rank}")
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _change(module: str, parts: Mapping[str, Tensor], weight: Tensor, scaling: float, *, is_transposed: bool) -> Tensor:
    """Return what is added to a weight."""
    is_embedding = _EMBEDDED[0] in parts
    down, up = (parts.get(name) for name in (_EMBEDDED if is_embedding else _MATRICES[:2]))
    if (
        down is None
        or up is None
        or down.dim() != up.dim()
        or not (down.is_floating_point() and up.is_floating_point())
    ):
        raise WeightsError(f"{module[:120]}: expected two matrices of a LoRA adapter, found others")
    dtype = up.dtype
    if dtype in (torch.float16, torch.bfloat16):
        down, up = down.float(), up.float()
    try:
        if is_embedding or (down.dim() == 2 and is_transposed):
            change = (up @ down).T * scaling
        elif down.dim() == 2:
            change = (up @ down) * scaling
        elif down.dim() == 4 and weight.shape[2:] == (1, 1):
            change = (up.squeeze(3).squeeze(2) @ down.squeeze(3).squeeze(2)).unsqueeze(2).unsqueeze(3) * scaling
        else:
            change = _CONVOLUTIONS[down.dim()](down.transpose(0, 1), up).transpose(0, 1) * scaling
    except (RuntimeError, LookupError, IndexError):
        change = torch.empty(0)
    if change.shape != weight.shape:
        shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
        raise WeightsError(f"{module[:120]}: expected matrices for a weight {tuple(weight.shape)}, found {shapes}")
    return change.to(dtype)
