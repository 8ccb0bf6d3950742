"""Find, among the named tensors of a file, the sets that are an architecture's: by entry, and by what names begin with.

Trainers wrap models, so names begin with `module.` or `net.`, and keep averaged weights beside the raw ones, as an
entry of their own or among the same names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from raysnap.errors import WeightsError
from raysnap.models.block import Shape
from raysnap.models.blocks import block_skeleton, check_fit, shapes_of

BATCH_COUNT = "num_batches_tracked"
"""Files from before PyTorch 0.4.1 lack this buffer of batch norms."""

_AVERAGED = re.compile(r"(^|[._])(ema|swa|avg|averaged?)([._]|$)")
_NUM_AVERAGED = "n_averaged"  # how many weights `torch.optim.swa_utils.AveragedModel` is the average of
WRAPPERS = ("", "state_dict", "model", "model_state_dict")


@dataclass(frozen=True)
class WeightSet:
    """An architecture's tensors in a file.

    Attributes:
        entry: the file's entry that they are in; empty where the file is nothing but named tensors.
        prefix: what their names begin with before the architecture's own.
        left: the names of the entry's tensors that belong to no such set.
        head: the names in the file of a head that trainers call otherwise, each after the architecture's own name.
    """

    entry: str
    prefix: str
    left: tuple[str, ...] = ()
    head: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """How people choose this set; empty for a plain state dict."""
        return "/".join(filter(None, (self.entry, self.prefix.rstrip("."))))

    @property
    def head_name(self) -> str | None:
        """What the file calls a head that trainers call otherwise than the architecture does."""
        return self.head[0][1].rpartition(".")[0] if self.head else None

    @property
    def order(self) -> tuple[bool, int, int, str]:
        """What sets are sorted by."""
        rank = WRAPPERS.index(self.entry) if self.entry in WRAPPERS else len(WRAPPERS)
        return _AVERAGED.search(self.label) is not None, rank, len(self.prefix), self.prefix


def find_sets(
    architecture: str, entries: Mapping[str, Mapping[str, Shape]], *, headless: bool = False
) -> list[WeightSet]:
    """Return the sets of tensors that have all the architecture's names: raw weights first, then averaged ones.

    Args:
        architecture: torchvision's builder name.
        entries: the shapes of the tensors of each of the file's entries, by name.
        headless: whether the sets are those that lack the head, and have all else.

    Raises:
        WeightsError: there is none; the message says of the entry and the prefix that fit best how they differ.
    """
    expected = _without_head(architecture) if headless else shapes_of(architecture)
    counts = {entry: _count_by_prefix(shapes, expected) for entry, shapes in entries.items()}
    num_required = sum(not name.endswith(BATCH_COUNT) for name in expected)
    found = []
    for entry, shapes in entries.items():
        prefixes = [prefix for prefix, count in counts[entry].items() if count == num_required]
        known = {prefix + name for prefix in prefixes for name in expected}
        left = [name for name in shapes if name not in known and not _is_count_of(prefixes, name, shapes[name])]
        head = _other_head(architecture, left, shapes) if headless else ()
        found += [WeightSet(entry, prefix, () if head else tuple(left), head) for prefix in prefixes]
    if found:
        return sorted(found, key=lambda one: one.order)
    nearest = max(
        (WeightSet(entry, prefix) for entry in entries for prefix in (*counts[entry], "")),
        key=lambda one: (counts[one.entry][one.prefix], not one.prefix, one.entry in WRAPPERS),
    )
    if 2 * counts[nearest.entry][nearest.prefix] < num_required:
        nearest = WeightSet(nearest.entry, "")
    shapes = {name.removeprefix(nearest.prefix): shape for name, shape in entries[nearest.entry].items()}
    check_fit(architecture, _with_batch_counts(shapes), nearest.label)
    raise WeightsError(f"weights for {architecture}: two of the names in {nearest.label!r} are one without its prefix")


def _other_head(architecture: str, left: list[str], shapes: Mapping[str, Shape]) -> tuple[tuple[str, str], ...]:
    """Return the head among the tensors that are left, if they are one linear layer of its width and nothing else."""
    head = {name: tuple(value.shape) for name, value in block_skeleton(architecture, -1).tensors().items()}
    own = {name.rpartition(".")[2]: name for name in head}
    found = {name.rpartition(".")[2]: name for name in left}
    is_layer = len({name.rpartition(".")[0] for name in left}) == 1 and own.keys() == found.keys() == {"weight", "bias"}
    if not is_layer or len(left) != len(found):
        return ()
    rows = {shapes[name][:1] for name in left}
    fits = all(shapes[found[key]][1:] == head[own[key]][1:] and shapes[found[key]] for key in own)
    return tuple((own[key], found[key]) for key in own) if fits and len(rows) == 1 else ()


def choose_set(sets: list[WeightSet], wanted: str | None) -> WeightSet:
    """Return the set that is wanted; where any will do, the first that leaves no tensor of its entry over.

    Raises:
        WeightsError: none or several are called that, or each leaves tensors over.
    """
    if wanted is None:
        for one in sets:
            if not one.left:
                return one
        label, left = sets[0].label, sets[0].left
        where, shown = f" in {label!r}" if label else "", ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
        raise WeightsError(
            f"all names fit{where}; expected no other tensors beside them, found {len(left)} more ({shown}); `raysnap "
            f"store add --entry {label!r}` leaves them out"
        )
    exact = [one for one in sets if one.label == wanted] or [one for one in sets if one.entry == wanted]
    if len(exact) != 1:
        labels = ", ".join(repr(one.label) for one in sets if one.label)
        if not labels:
            raise WeightsError(f"expected no --entry, as the file holds its tensors without one, found {wanted!r}")
        raise WeightsError(f"expected one of its entries that fit, {labels}, found {wanted!r}")
    return exact[0]


def own_names(
    architecture: str, chosen: WeightSet, shapes: Mapping[str, Shape], *, headless: bool = False
) -> dict[str, str]:
    """Return the names in the file of a set's tensors, by the architecture's own names.

    Raises:
        WeightsError: a tensor is of another shape.
    """
    own = {full.removeprefix(chosen.prefix): full for full in shapes if full.startswith(chosen.prefix)}
    expected = shapes_of(architecture)
    body = _without_head(architecture)
    names = {name: own[name] for name in (body if headless else expected) if name in own} | dict(chosen.head)
    found = _with_batch_counts({name: shapes[full] for name, full in names.items()})
    heads = {name: shape for name, shape in expected.items() if headless and not chosen.head and name not in body}
    check_fit(architecture, found | heads, chosen.label)
    return names


def _without_head(architecture: str) -> dict[str, Shape]:
    head = block_skeleton(architecture, -1).tensors()
    return {name: shape for name, shape in shapes_of(architecture).items() if name not in head}


def _count_by_prefix(names: Iterable[str], expected: Mapping[str, Shape]) -> Counter[str]:
    """Return how many of the architecture's names, batch counts aside, follow each prefix."""
    required = {name for name in expected if not name.endswith(BATCH_COUNT)}
    max_parts = 1 + max(name.count(".") for name in required)
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for start in range(max(0, len(parts) - max_parts), len(parts)):
            own = ".".join(parts[start:])
            if own in required:
                counts[name.removesuffix(own)] += 1
    return counts


def _is_count_of(prefixes: Iterable[str], name: str, shape: Shape) -> bool:
    """Return whether the tensor counts what one of these sets is the average of."""
    above = name.removesuffix(_NUM_AVERAGED)
    is_one = name.rpartition(".")[2] == _NUM_AVERAGED and shape in ((), (1,))
    return is_one and any(prefix.startswith(above) for prefix in prefixes)


def _with_batch_counts(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return dict.fromkeys(missing_batch_counts(shapes), ()) | dict(shapes)


def missing_batch_counts(names: Mapping[str, object]) -> list[str]:
    """Return the names of batch norms' batch counts that are missing, in the order of the norms."""
    suffix = "running_var"
    counts = (name.removesuffix(suffix) + BATCH_COUNT for name in names if name.endswith(suffix))
    return [count for count in counts if count not in names]
