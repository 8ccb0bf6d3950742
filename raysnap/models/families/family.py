"""Ask an architecture's library: which models it knows, how it builds them, how they are cut into blocks."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from raysnap.errors import ArchitectureError
from raysnap.humanize import suggest
from raysnap.models.architecture import FAMILIES, HF, TIMM, TORCHVISION, Architecture, package_of, parse
from raysnap.models.block import Block
from raysnap.models.block_shape import WIDTH_OF_MEASURED_HEADS
from raysnap.models.families.cutting import CutModel, Subject, cut_model, makes_calls
from raysnap.models.families.segment import Segment
from raysnap.models.families.weightless import build_weightless

_LIKE = 0.65  # spelt alike, what names the family left out
_NEAR = 0.8  # spelt so much alike that no other library's names are asked for


class Family(Protocol):
    """What each library's module has."""

    def known(self) -> tuple[str, ...]:
        """Return the sorted names that the family knows, without the family's own."""

    def make(self, architecture: Architecture, num_classes: int) -> nn.Module:
        """Return the library's own model with random weights."""

    def item_shape(self, architecture: Architecture, image_size: int | None) -> tuple[int, ...]:
        """Return the shape of one item of the model's input, by default of the size that it was designed for."""

    def run(self, model: nn.Module, items: Tensor) -> Tensor:
        """Return the logits that a model gives for items."""

    def cut_by_hand(self, model: nn.Module) -> tuple[Block, ...] | None:
        """Return the blocks of a model of a kind that is cut by hand."""

    def stored_names(self, model: nn.Module) -> Mapping[str, str]:
        """Return the names under which the library saves tensors, by their names in the model, where those differ."""


def family_of(architecture: Architecture) -> Family:
    """Return the library of a known architecture.

    Raises:
        ArchitectureError: its package is missing, or it has no such model.
    """
    if not _is_installed(architecture.family):
        raise ArchitectureError(
            f"architecture {architecture.shown!r}: expected the package {package_of(architecture.family)}, found none; "
            f"`pip install 'raysnap[{architecture.family}]'`"
        )
    family = _module(architecture.family)
    if architecture.name not in family.known():
        raise ArchitectureError(_unknown(architecture))
    return family


def is_known(text: str) -> bool:
    """Return whether an architecture's library is here and has it."""
    architecture = parse(text)
    return _is_installed(architecture.family) and architecture.name in _module(architecture.family).known()


def described(config: dict[str, Any]) -> str | None:
    """Return the architecture that a `config.json` of transformers says; None for models that raysnap doesn't know.

    Raises:
        ArchitectureError: transformers is missing, or can't build it from these values.
    """
    if not _is_installed(HF):
        raise ArchitectureError(
            f"model type {str(config.get('model_type'))[:80]!r}: expected the package {package_of(HF)}, found none; "
            f"`pip install 'raysnap[{HF}]'`"
        )
    from raysnap.models.families import hf

    architecture = hf.described(config)
    return None if architecture is None else str(architecture)


def config_document(text: str, num_classes: int, classes: Sequence[str] = ()) -> dict[str, Any]:
    """Return the `config.json` that transformers writes for an architecture of its family.

    Args:
        text: names the architecture.
        num_classes: number of outputs of the head.
        classes: their names, or none.
    """
    from raysnap.models.families import hf

    return hf.config_document(parse(text), num_classes, classes)


def loader_of(text: str, *, is_folder: bool) -> str:
    """Return the name of the class of transformers that loads an exported folder, or a file's tensors."""
    from raysnap.models.families import hf

    return hf.loader_of(parse(text), is_folder=is_folder)


def timm_architecture(name: str, options: Mapping[str, Any]) -> str | None:
    """Return the architecture of a name of timm's and what a trainer told its builder; None where timm has none.

    Raises:
        ArchitectureError: timm can't build it.
    """
    if not _is_installed(TIMM):
        return None
    from raysnap.models.families import timm

    architecture = timm.named(name, options)
    return None if architecture is None else str(architecture)


def timm_input(text: str) -> dict[str, Any] | None:
    """Return how timm's own weights of an architecture see images, as its `pretrained_cfg`; None for other families."""
    architecture = parse(text)
    if architecture.family != TIMM:
        return None
    from raysnap.models.families import timm

    return timm.input_config(architecture)


def known_names(family: str) -> list[str]:
    """Return the names of a family's architectures as they are given; none where its package is missing."""
    names = _module(family).known() if _is_installed(family) else ()
    return [str(Architecture(family, name)) for name in names]


def skeleton(text: str) -> tuple[Block, ...]:
    """Return the architecture's blocks in eval mode without weights, with a head of 1000 classes.

    What is stored of them is on the meta device; tables that the library computes and doesn't save are real.

    Raises:
        ArchitectureError: the architecture is unknown or can't be split.
    """
    return _cut(text).blocks


def stored_names(text: str) -> Mapping[str, str]:
    """Return the names under which the library saves tensors, by their names in the model, where those differ."""
    return skeleton(text)[-1].stored_names


def base_prefix(text: str) -> str:
    """Return what transformers puts before the names of a model without a head where it gets one; empty for others."""
    architecture = parse(text)
    if architecture.family != HF:
        return ""
    from raysnap.models.families import hf

    return hf.base_prefix(architecture)


def check_image_size(text: str, image_size: int) -> None:
    """Check that the blocks do for images of this size what the model does.

    Raises:
        ArchitectureError: the model rejects them, or takes another path that the blocks don't know.
    """
    cut, architecture = _cut(text), parse(text)
    if not cut.calls or item_shape(text) == item_shape(text, image_size):
        return
    subject = _subject(architecture, family_of(architecture), weightless(architecture, WIDTH_OF_MEASURED_HEADS))
    own = item_shape(text)[-1]
    where = f"{architecture.shown} at image_size {image_size}"
    hint = f'; use {own}, the size it was designed for, or one that its configuration sets, such as {{"img_size":96}}'
    try:
        fits = makes_calls(subject, cut.calls, image_size)
    except ArchitectureError as error:
        raise ArchitectureError(f"{where}: {error}{hint}") from error
    if not fits:
        raise ArchitectureError(f"{where}: its forward takes another path than at {own}{hint}")


@lru_cache(maxsize=32)
def _cut(text: str) -> CutModel:
    architecture = parse(text)
    family = family_of(architecture)
    model = weightless(architecture, WIDTH_OF_MEASURED_HEADS)
    if (blocks := family.cut_by_hand(model)) is not None:
        return CutModel(blocks, ())
    try:
        cut = cut_model(_subject(architecture, family, model))
    except ArchitectureError as error:
        raise ArchitectureError(
            f"architecture {architecture.shown!r}: raysnap can't split a {type(model).__name__} into blocks: {error}"
        ) from error
    for block in cut.blocks:
        block.stored_names = family.stored_names(model)
    return cut


def _subject(architecture: Architecture, family: Family, model: nn.Module) -> Subject:
    fewer = weightless(architecture, WIDTH_OF_MEASURED_HEADS - 1).state_dict()
    per_class = {name for name, tensor in model.state_dict().items() if tensor.shape != fewer[name].shape}
    odd = [name for name in per_class if fewer[name].shape[:1] != (WIDTH_OF_MEASURED_HEADS - 1,)]
    if odd:
        raise ArchitectureError(f"its {odd[0]} has no row per class")
    shape = family.item_shape(architecture, None)

    def make_items(num_items: int, image_size: int | None) -> Tensor:
        return _empty_items(architecture, family, num_items, image_size)

    factors = (8, 6, 5) if len(shape) > 1 else (2, 3)  # texts may be short, and not longer than a model's positions
    sizes = [factor * shape[-1] // 4 for factor in factors]
    return Subject(model, frozenset(per_class), family.run, make_items, sizes)


def weightless(architecture: Architecture, num_classes: int) -> nn.Module:
    """Return the library's own model without weights, in eval mode."""
    family = family_of(architecture)
    return build_weightless(lambda: family.make(architecture, num_classes))


def build(text: str, num_classes: int, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Build the library's own model in eval mode around these tensors, which are not copied.

    Args:
        text: names the architecture.
        num_classes: number of outputs of the head.
        state_dict: exactly the model's parameters and buffers, under the names that the library saves.

    Raises:
        RuntimeError: a tensor is missing, unknown or of another shape.
    """
    architecture = parse(text)
    model = weightless(architecture, num_classes)
    own_names = {stored: name for name, stored in family_of(architecture).stored_names(model).items()}
    tensors = OrderedDict((own_names.get(name, name), tensor) for name, tensor in state_dict.items())
    vars(tensors)["_metadata"] = vars(model.state_dict())["_metadata"]  # MNASNet asks it for the version of its layers
    model.load_state_dict(tensors, strict=True, assign=True)
    return model


def random_state_dict(text: str, num_classes: int, seed: int) -> dict[str, Tensor]:
    """Return all tensors of a model as the library initialises them; equal seeds give equal tensors."""
    architecture = parse(text)
    family = family_of(architecture)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # inception_v3 and googlenet announce another initialisation
        torch.manual_seed(seed)
        model = family.make(architecture, num_classes)
    stored = family.stored_names(model)
    return {stored.get(name, name): tensor for name, tensor in model.state_dict().items()}


def item_shape(text: str, image_size: int | None = None) -> tuple[int, ...]:
    """Return the shape of one item of the model's input, by default of the size that it was designed for."""
    architecture = parse(text)
    return family_of(architecture).item_shape(architecture, image_size)


def folder_options(text: str) -> dict[str, Any]:
    """Return the arguments of its builder that an exported folder of a model of timm says."""
    architecture = parse(text)
    family_of(architecture)
    options: dict[str, Any] = import_module("raysnap.models.families.timm").folder_options(architecture)
    return options


def text_facts(text: str) -> dict[str, int | None] | None:
    """Return the fields of `block_facts.TextFacts` of a model of texts; None of any other."""
    architecture = parse(text)
    if architecture.family != HF:
        return None
    family_of(architecture)
    facts: dict[str, int | None] | None = import_module("raysnap.models.families.hf").text_facts(architecture)
    return facts


def empty_items(text: str, num_items: int, image_size: int | None = None) -> Tensor:
    """Return an input of so many items without values, on the meta device."""
    architecture = parse(text)
    return _empty_items(architecture, family_of(architecture), num_items, image_size)


def _empty_items(architecture: Architecture, family: Family, num_items: int, image_size: int | None) -> Tensor:
    shape = family.item_shape(architecture, image_size)
    dtype = torch.int64 if len(shape) == 1 else torch.float32  # tokens of a text, or pixels
    return torch.empty(num_items, *shape, dtype=dtype, device="meta")


def feature_dim(head: Block) -> int:
    """Return the width D of the features that a head takes."""
    for step in head.steps:
        if isinstance(step, Segment) and (widths := step.program.joined_widths):
            return sum(widths)
    return next(tensor.shape[1] for tensor in head.tensors().values() if tensor.dim() > 1)


def _unknown(architecture: Architecture) -> str:
    name = str(Architecture(architecture.family, architecture.name))
    own = known_names(architecture.family)
    if get_close_matches(name, own, n=1, cutoff=_NEAR):
        hint = suggest(name, own)
    else:
        exact = next((known for other in FAMILIES for known in known_names(other) if _same(known, name)), None)
        missing = [other for other in FAMILIES if not _is_installed(other)]
        bare = {known.rpartition("/")[2]: known for known in own}
        near = get_close_matches(architecture.name, bare, n=1, cutoff=_LIKE)
        likely = exact or (bare[near[0]] if near else None)
        hint = f"; did you mean {likely!r}?" if likely else ""
        hint = hint or f"; `raysnap.list_architectures({architecture.family!r})` lists them"
        if missing and not exact:
            extras = " and ".join(f"`pip install 'raysnap[{other}]'`" for other in missing)
            hint += f"; {extras} for those of {' and '.join(map(package_of, missing))}"
    kind = "model type that classifies" if architecture.family == "hf" else "classification model"
    return f"architecture {name!r}: {package_of(architecture.family)} has no such {kind}{hint}"


def _same(known: str, name: str) -> bool:
    return known.rpartition("/")[2] == name.rpartition("/")[2]


def _is_installed(family: str) -> bool:
    return family == TORCHVISION or find_spec(package_of(family)) is not None


def _module(family: str) -> Family:
    return cast(Family, import_module(f"raysnap.models.families.{family}"))
