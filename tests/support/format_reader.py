"""A reader of stores of format 1, written from the README's section alone; it knows nothing of raysnap."""

import json
from pathlib import Path

from blake3 import blake3
from safetensors import deserialize

HEXADECIMAL = set("0123456789abcdef")


def read_snapshot(store: Path, name_or_id: str) -> tuple[dict, dict[str, tuple[str, list[int], bytes]]]:
    """Return the manifest, and each tensor's dtype, shape and bytes by name; every promise of the format is checked."""
    assert json.loads((store / "store.json").read_bytes()) == {"digest": "blake3", "format": 1}
    manifest = read_manifest(store, resolve(store, name_or_id))
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
    assert manifest["format"] == 1
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
