"""A reader of stores of formats 1 and 2, written from the specification alone; it knows nothing of raysnap."""

import json
from pathlib import Path

from blake3 import blake3
from safetensors import deserialize

KEYS = {
    *("format", "id", "checksum", "architecture", "num_classes", "blocks", "base", "retrain_index", "dataset"),
    *("preprocessing", "metrics", "train", "trial", "created", "raysnap_version"),
}
ADDED = {"family", "configuration"}
WAYS = {"resize_size", "image_size", "mean", "std", "interpolation"}
ADDED_WAYS = {"resize_mode", "crop_rounding"}
TEXT_WAYS = {"kind", "tokenizer", "max_length", "padding"}
HEXADECIMAL = set("0123456789abcdef")


def read_snapshot(store: Path, name_or_id: str) -> tuple[dict, dict[str, tuple[str, list[int], bytes]]]:
    """Return the manifest, and each tensor's dtype, shape and bytes by name; every promise of the format is checked."""
    raw = (store / "store.json").read_bytes()
    assert raw in (b'{"digest":"blake3","format":1}\n', b'{"digest":"blake3","format":2}\n')
    manifest = read_manifest(store, resolve(store, name_or_id))
    assert manifest["format"] <= json.loads(raw)["format"]
    tensors = {}
    for block in manifest["blocks"]:
        found = read_block(store, block["digest"], block["num_bytes"])
        assert not tensors.keys() & found.keys()
        tensors.update(found)
    return manifest, tensors


def resolve(store: Path, name_or_id: str) -> str:
    """Return the snapshot id that is given, or that a name stands for."""
    if is_digest(name_or_id):
        return name_or_id
    raw = (store / "refs" / name_or_id).read_bytes()
    assert len(raw) == 65 and raw[-1:] == b"\n" and is_digest(raw[:-1].decode("ascii"))
    return raw[:-1].decode("ascii")


def read_manifest(store: Path, snapshot: str) -> dict:
    raw = (store / "snapshots" / f"{snapshot}.json").read_bytes()
    manifest = json.loads(raw)
    assert manifest["format"] in (1, 2)
    assert set(manifest) == KEYS | (ADDED if manifest["format"] == 2 else set())
    check_preprocessing(manifest)
    check_architecture(manifest)
    assert canonical(manifest) == raw
    checksum = manifest["checksum"]
    start = raw.index(b'"checksum":"')
    rest = raw[:start] + raw[start + len(f'"checksum":"{checksum}",') :]
    assert blake3(rest).hexdigest() == checksum
    identity = {
        "architecture": manifest["architecture"],
        "blocks": [[block["name"], block["digest"]] for block in manifest["blocks"]],
    }
    assert blake3(canonical(identity)).hexdigest() == manifest["id"] == snapshot
    return manifest


def check_preprocessing(manifest: dict) -> None:
    """Check that it says what images, or texts, need, and no more."""
    how = manifest["preprocessing"]
    if manifest["format"] == 2 and "kind" in how:
        assert set(how) == TEXT_WAYS and how["kind"] == "text"
        assert how["max_length"] >= 1 and how["padding"] >= 0
        assert set(how["tokenizer"]) == {"digest", "num_bytes"} and is_digest(how["tokenizer"]["digest"])
    else:
        assert set(how) == WAYS | (ADDED_WAYS if manifest["format"] == 2 else set())


def check_architecture(manifest: dict) -> None:
    """Check that the parts of the architecture's name are those that it has, and its format the oldest that will do."""
    name, brace, rest = manifest["architecture"].partition("{")
    family, slash, own = name.partition("/")
    assert (own or family).replace("_", "").replace(".", "").replace("-", "").isalnum() and name.isascii()
    if not slash:
        family = "torchvision"
    assert family in ("torchvision", "timm", "hf") and not (family == "torchvision" and brace)
    configuration = json.loads(brace + rest) if brace else {}
    assert brace + rest == (canonical(configuration).decode() if configuration else "")
    how = manifest["preprocessing"]
    if "kind" in how:
        assert (manifest["format"], manifest["family"], manifest["configuration"]) == (2, family, configuration)
        return
    is_plain = how["interpolation"] in ("bilinear", "bicubic")
    if manifest["format"] == 1:
        assert family == "torchvision" and is_plain
        return
    assert (manifest["family"], manifest["configuration"]) == (family, configuration)
    is_usual = how["resize_mode"] == "shorter_side" and how["crop_rounding"] == "even"
    assert not (family == "torchvision" and is_plain and is_usual)
    assert how["interpolation"] in ("nearest", "bilinear", "bicubic", "lanczos")
    assert how["resize_mode"] in ("shorter_side", "squash") and how["crop_rounding"] in ("even", "down")


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def read_block(store: Path, digest: str, num_bytes: int) -> dict[str, tuple[str, list[int], bytes]]:
    assert is_digest(digest)
    raw = (store / "objects" / digest[:2] / digest).read_bytes()
    assert len(raw) == num_bytes
    assert blake3(raw).hexdigest() == digest
    check_canonical_block(raw)
    return {name: (tensor["dtype"], tensor["shape"], bytes(tensor["data"])) for name, tensor in deserialize(raw)}


def check_canonical_block(raw: bytes) -> None:
    """Check that the file is the one way to write its tensors: its order, keys, offsets and padding."""
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0
    text = raw[8 : 8 + length]
    header = json.loads(text)
    assert "__metadata__" not in header
    compact = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    assert text == compact + b" " * (-len(compact) % 8)
    end, order = 0, []
    for name, tensor in header.items():
        assert list(tensor) == ["dtype", "shape", "data_offsets"]
        start, stop = tensor["data_offsets"]
        assert start == end
        end = stop
        order.append((-int("".join(filter(str.isdigit, tensor["dtype"].split("_")[0]))), name))
    assert end == len(raw) - 8 - length
    assert order == sorted(order)


def list_snapshots(store: Path) -> dict[str, list[str]]:
    """Return the names of each snapshot, by id."""
    snapshots = {path.stem: [] for path in (store / "snapshots").iterdir() if is_digest(path.stem)}
    for path in sorted((store / "refs").iterdir()):
        snapshots[resolve(store, path.name)].append(path.name)
    return snapshots


def is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= HEXADECIMAL
