"""Blocks as bytes: bit-equal round trips, one canonical form, and a parser that accepts nothing but the format."""

import copy
import json

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysnap.errors import WeightsError
from raysnap.models.tensor_bytes import DTYPES, block_digest, canonical_block_bytes, decode, encode
from tests.support.hostile_tensors import GOOD, HOSTILE, entry, file_of


def decode_bytes(raw: bytes) -> dict[str, torch.Tensor]:
    return decode(memoryview(bytearray(raw)), "block")


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return canonical_block_bytes({"x": one}) == canonical_block_bytes({"x": other})


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    width = dtype.itemsize
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (*shape, width), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_and_shape_comes_back_bit_for_bit(dtype, shape):
    tensors = {"x": random_tensor(dtype, shape), "y": torch.arange(3)}
    back = decode_bytes(canonical_block_bytes(tensors))
    assert same_bits(back["x"], tensors["x"])
    assert same_bits(back["y"], tensors["y"])


def test_the_canonical_form_is_what_safetensors_writes():
    tensors = {
        "bn.weight": torch.randn(7),
        "bn.num_batches_tracked": torch.tensor(12),
        "conv.weight": torch.randn(3, 2, 3, 3),
        'odd "name" \n ü': torch.ones(2),
    }
    assert canonical_block_bytes(tensors) == safetensors.torch.save(tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.uint16, torch.bool, torch.complex64])
def test_the_safetensors_library_reads_our_bytes(dtype):
    tensor = random_tensor(dtype, (4, 3))
    assert same_bits(safetensors.torch.load(canonical_block_bytes({"x": tensor}))["x"], tensor)


def test_how_a_tensor_lies_in_memory_does_not_matter():
    plain = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    strided = torch.empty(6, 4).t().copy_(plain)
    shared = torch.arange(48, dtype=torch.float32)[:24].reshape(4, 6)
    parameter = torch.nn.Parameter(plain.clone())
    digests = {block_digest({"x": one}) for one in (plain, strided, shared, parameter)}
    assert len(digests) == 1
    conjugated = torch.tensor([1 + 2j], dtype=torch.complex64).conj()
    assert same_bits(decode_bytes(canonical_block_bytes({"x": conjugated}))["x"], conjugated.resolve_conj())


def test_a_digest_depends_on_names_shapes_and_dtypes_alone():
    one, two = torch.zeros(4), torch.ones(4)
    digest = block_digest({"a": one, "b": two})
    assert block_digest({"b": two, "a": one}) == digest
    others = [
        {"a": two, "b": one},
        {"a": one.reshape(2, 2), "b": two},
        {"a": one.int(), "b": two},
        {"a": one},
        {"a": one, "c": two},
    ]
    assert digest not in {block_digest(other) for other in others}


def test_read_tensors_are_writable_and_private():
    raw = canonical_block_bytes({"x": torch.zeros(4)})
    first, second = decode_bytes(raw)["x"], decode_bytes(raw)["x"]
    first += 1
    assert second.sum() == 0


def test_a_change_of_one_tensor_read_is_no_change_of_another():
    one, other = decode_bytes(canonical_block_bytes({"one": torch.ones(1000), "other": torch.ones(3)})).values()
    one += 1
    assert other._version == 0, "else autograd refuses to train with both"
    assert copy.deepcopy(other).untyped_storage().nbytes() == 12


def test_tensors_for_a_device_are_the_same():
    raw = canonical_block_bytes({"b": torch.randn(3, 2), "a": torch.arange(5), "c": torch.rand(7).bool()})
    plain = decode_bytes(raw)
    there = decode(memoryview(bytearray(raw)), "block", torch.device("cpu"))
    assert all(same_bits(there[name], plain[name]) for name in plain | there)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"x": torch.zeros(2, dtype=torch.complex128)},
        {"x": torch.zeros(2, device="meta")},
        {"x": torch.zeros(2).to_sparse()},
        {"x": [1.0]},
        {"__metadata__": torch.zeros(2)},
        {"\ud800": torch.zeros(2)},
        {3: torch.zeros(2)},
    ],
    ids=str,
)
def test_what_safetensors_can_not_hold_is_refused(tensors):
    with pytest.raises(WeightsError):
        encode(tensors)


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused(raw):
    with pytest.raises(WeightsError, match="^block"):
        decode_bytes(raw)


def test_a_sound_file_of_the_same_making_is_accepted():
    assert decode_bytes(GOOD)["x"].tolist() == [0.0]


@given(st.data())
def test_a_mutated_header_is_accepted_only_by_both_parsers(data):
    raw = bytearray(canonical_block_bytes({"w": torch.zeros(2, 2), "n": torch.tensor(1)}))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 21))] = data.draw(st.integers(0, 255))
    try:
        ours = decode_bytes(bytes(raw))
    except WeightsError:
        return
    theirs = safetensors.torch.load(bytes(raw))
    assert ours.keys() == theirs.keys()
    assert all(same_bits(ours[name], theirs[name]) for name in ours)


def test_a_tensor_that_lies_askew_is_read_all_the_same():
    header = {"a": entry("U8", (1,), (0, 1)), "x": entry("F32", (1,), (1, 5))}
    raw = file_of(json.dumps(header).encode().ljust(128), b"\7" + torch.tensor([1.5]).numpy().tobytes())
    assert decode_bytes(raw)["x"].tolist() == [1.5]
