"""Files of weights, sound and hostile, each with what must come of it."""

from __future__ import annotations

import io
import json
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch

from raysnap.models.blocks import random_tensors
from raysnap.models.tensor_bytes import canonical_block_bytes
from tests.support.hostile_pickles import Call, disguises, gadgets, legacy_file, opcodes, zip_file
from tests.support.hostile_tensors import HOSTILE

ARCHITECTURE = "mobilenet_v3_small"
FIRST, LAST, COUNT = "features.0.0.weight", "classifier.3.weight", "features.0.1.num_batches_tracked"

StateDict = dict[str, torch.Tensor]


LONG_HEADER = 100_000  # bytes


@dataclass(frozen=True)
class Case:
    """A file of weights.

    Attributes:
        canary: what it makes if its code runs.
        is_guarded: whether it is looked through before it is read.
        may_take_much: whether it may take much memory or time, or end the process.
    """

    name: str
    suffix: str
    content: bytes
    is_valid: bool = False
    canary: Path | None = None
    is_guarded: bool = True
    may_take_much: bool = False


def sound_weights() -> StateDict:
    return {name: value for _, block in random_tensors(ARCHITECTURE, 3, 0) for name, value in block.items()}


def saved(value: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def tensor_opcodes(num_stored: int, num_claimed: int, stride: int = 1, *, legacy: bool = False) -> bytes:
    """Return a dict of one tensor `x` over a storage `0`, as torch.save writes it."""
    view = b"N" if legacy else b""
    storage = b"(" + opcodes("storage") + b"ctorch\nFloatStorage\n" + opcodes("0") + opcodes("cpu")
    storage += opcodes(num_stored) + view + b"tQ"
    fields = storage + opcodes(0) + opcodes((num_claimed,)) + opcodes((stride,)) + opcodes(False)
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"}" + opcodes("x") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + fields + hooks + b"tRs"


def doubled(depth: int) -> bytes:
    """Return a tuple that holds another one twice, which holds another one twice, and so on."""
    steps = [b"h" + bytes([level]) + b"h" + bytes([level]) + b"\x86q" + bytes([level + 1]) for level in range(depth)]
    return b")q\0" + b"".join(steps)


def without_values(content: bytes) -> bytes:
    """Return a legacy file of the same length whose last pickle lists no storage to be read."""
    file = io.BytesIO(content)
    for _ in range(4):
        for _ in pickletools.genops(file):
            pass
    return (content[: file.tell()] + b"\x80\x02].").ljust(len(content), b"\0")


def zip_bomb(num_bytes: int) -> bytes:
    """Return an archive of some megabytes that holds a storage of `num_bytes`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + tensor_opcodes(num_bytes // 4, num_bytes // 4) + b".")
        archive.writestr("archive/byteorder", b"little")
        with archive.open("archive/data/0", "w", force_zip64=True) as member:
            for _ in range(num_bytes // 2**24):
                member.write(bytes(2**24))
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def code_cases(folder: Path, *, every: bool) -> Iterator[Case]:
    """Gadgets in disguises: each gadget in the two common ones, one gadget in each disguise; or every pair."""
    canary = folder / "canary"
    script = folder / "script.py"
    script.write_text(f"open({str(canary)!r}, 'w')")
    families = gadgets(canary, script)
    for family, gadget in families.items():
        for disguise, content in disguises(gadget).items():
            if every or family == "os.system" or disguise in ("zip, a value", "legacy, a value"):
                for is_guarded in (True, False):
                    suffix = ".pth" if is_guarded else ".pt"
                    name = f"{family} in {disguise}{'' if is_guarded else ', not looked through'}"
                    yield Case(name, suffix, content, canary=canary, is_guarded=is_guarded)


def bombs(*, legacy: bool) -> dict[str, bytes]:
    """Opcodes of some hundred bytes that would take much memory or time, or claim more than is there."""
    return {
        "bytearray": opcodes(Call(("builtins", "bytearray"), (1_200_000_000,))),
        "a tensor of its own": b"}" + opcodes("x") + opcodes(Call(("torch", "FloatTensor"), (10**10,))) + b"s",
        "a storage of its own": opcodes(Call(("torch.storage", "UntypedStorage"), (10**11,))),
        "a key of 2**60 tuples": b"}" + doubled(60) + opcodes(1) + b"s",
        "a function of 2**60 tuples": doubled(60) + b")R",
        "a list that holds itself": b"]q\0(" + b"h\0" * 9 + b"e",
        "tuples a million deep": b"}" + b")" + b"\x85" * 10**6 + opcodes(1) + b"s",
        "a tensor larger than its storage": tensor_opcodes(4, 10**10, legacy=legacy),
        "a tensor stretched over one number": tensor_opcodes(4, 10**10, stride=0, legacy=legacy),
        "a storage larger than its record": tensor_opcodes(10**9, 4, legacy=legacy),
    }


def bomb_cases(zip_bomb_bytes: int) -> Iterator[Case]:
    """Return the bombs in both kinds of file, and files that are bombs as a whole."""
    for name, value in bombs(legacy=False).items():
        yield Case(f"zip: {name}", ".pth", zip_file(value, members={"data/0": bytes(16)}))
    for name, value in bombs(legacy=True).items():
        record = (4).to_bytes(8, "little") + bytes(16)
        keys = b"\x80\x02](" + opcodes("0") + b"e."
        yield Case(f"legacy: {name}", ".pth", legacy_file(value).removesuffix(b"\x80\x02].") + keys + record)
    yield Case("legacy: values that are not in the file", ".pth", without_values(saved(sound_weights(), legacy=True)))
    yield Case("zip: a deflated storage", ".pth", zip_bomb(zip_bomb_bytes))
    overlapping = zip_file(tensor_opcodes(4, 4), members={f"data/{index}": bytes(16) for index in range(3)})
    yield Case("zip: cut", ".pth", overlapping[:-30])
    yield Case("zip: a name twice", ".pth", zip_file(opcodes({}), members={"DATA.PKL": b"\x80\x02}."}))


def misfit_cases() -> Iterator[Case]:
    """State dicts that are sound files, but not weights of the architecture."""
    good = sound_weights()
    first = good[FIRST]
    misfits: dict[str, StateDict] = {
        "nothing": {},
        "weights of another architecture": {"conv1.weight": torch.zeros(64, 3, 7, 7)},
        "a tensor missing": {name: value for name, value in good.items() if name != FIRST},
        "a tensor too many": good | {"extra": torch.zeros(1)},
        "a transposed shape": good | {FIRST: first.transpose(0, 1).contiguous()},
        "a flat shape": good | {FIRST: first.flatten()},
        "a scalar": good | {FIRST: torch.tensor(1.0)},
        "a zero-size tensor": good | {FIRST: torch.zeros(0, *first.shape[1:])},
        "a head of no classes": good | {LAST: good[LAST][:0], "classifier.3.bias": torch.zeros(0)},
        "a head of two widths": good | {"classifier.3.bias": torch.zeros(4)},
        "NaN": good | {FIRST: torch.full_like(first, float("nan"))},
        "one infinity": good | {FIRST: torch.where(torch.arange(first.numel()).view_as(first) == 7, torch.inf, first)},
        "half-precision NaN": good | {FIRST: torch.full_like(first, float("nan"), dtype=torch.bfloat16)},
        "whole numbers": good | {FIRST: first.to(torch.int32)},
        "booleans": good | {FIRST: first > 0},
        "complex numbers": good | {FIRST: first.to(torch.complex64)},
        "a broken count": good | {COUNT: torch.tensor(0.5)},
    }
    for name in ("../../etc/passwd", "/etc/passwd", "features.0.0.wеight", "features.0.0.weight\0", "a" * 100_000, ""):
        rest = {key: value for key, value in good.items() if key != FIRST}
        misfits[f"a tensor called {name[:30]!r}"] = rest | {name: first}
    for number, (name, state_dict) in enumerate(misfits.items()):
        if number % 2:
            yield Case(f"{name}, safetensors", ".safetensors", canonical_block_bytes(state_dict))
        else:
            yield Case(f"{name}, pth", ".pth", saved(state_dict))


def sound_cases() -> Iterator[Case]:
    """Files that must be accepted, however unusual."""
    good = sound_weights()
    backwards = dict(reversed(good.items()))
    half = {name: value.half() if value.is_floating_point() else value for name, value in good.items()}
    shared = good | {"features.1.block.0.1.bias": good["features.1.block.0.1.weight"]}
    for name, value in {
        "plain": good,
        "another order": backwards,
        "half precision": half,
        "an OrderedDict": OrderedDict(good),
        "parallel": {f"module.{key}": one for key, one in good.items()},
        "a training checkpoint": {"state_dict": good, "epoch": 3, "betas": [(0.9, 0.999)] * 2, "note": "ü"},
        "two names for one tensor": shared,
        "parameters": {key: torch.nn.Parameter(one, requires_grad=False) for key, one in good.items()},
    }.items():
        yield Case(f"sound: {name}, zip", ".pth", saved(value), is_valid=True)
        yield Case(f"sound: {name}, legacy", ".bin", saved(value, legacy=True), is_valid=True)
    yield Case("sound: safetensors", ".safetensors", canonical_block_bytes(good), is_valid=True)
    with_metadata = safetensors.torch.save(half, {"format": "pt"})
    yield Case("sound: safetensors with metadata", ".safetensors", with_metadata, is_valid=True)


def header_cases() -> Iterator[Case]:
    """Malformed safetensors files, and one of a header of 100 MB."""
    for name, content in HOSTILE.items():
        yield Case(f"safetensors: {name}", ".safetensors", content)
    header = b'{"x":{"dtype":"F32","shape":[' + b"1," * 50_000_000 + b'1],"data_offsets":[0,4]}}'
    yield Case("safetensors: a header of 100 MB", ".safetensors", len(header).to_bytes(8, "little") + header + bytes(4))
    names = {f"{'x' * 100}{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(19_999)}
    text = json.dumps(names).encode()
    yield Case("safetensors: 19,999 tensors", ".safetensors", len(text).to_bytes(8, "little") + text)


def all_cases(folder: Path, *, every: bool) -> list[Case]:
    """Every case; with `every`, each gadget in each disguise."""
    return [
        *code_cases(folder, every=every),
        *misfit_cases(),
        *sound_cases(),
        *(replace(case, may_take_much=True) for case in bomb_cases(2**31 if every else 2**25)),
        *(replace(case, may_take_much=len(case.content) > LONG_HEADER) for case in header_cases()),
    ]
