"""Manifests: canonical bytes, ids that follow from content, and no tolerance for anything else."""

import json

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raysnap.canonical_json import canonical_json
from raysnap.errors import StoreDamaged, UsageError
from raysnap.models.architecture import parse
from raysnap.store.manifest import BlockEntry, block_digests, check_digest, check_ref_name, parse_manifest, snapshot_id
from raysnap.store.preprocessing import Preprocessing
from tests.support.manifests import BLOCKS, DIGESTS, make_manifest


def test_a_manifest_comes_back_equal_from_its_bytes():
    manifest = make_manifest()
    assert parse_manifest(manifest.to_bytes(), "m", expected_id=manifest.id) == manifest


def test_the_id_is_the_blake3_of_architecture_and_blocks_alone():
    manifest = make_manifest()
    pairs = ",".join(f'["{block.name}","{block.digest}"]' for block in BLOCKS)
    identity = f'{{"architecture":"resnet18","blocks":[{pairs}]}}'
    assert manifest.id == blake3(identity.encode()).hexdigest()
    assert make_manifest(metrics={}, dataset=None, train={}).id == manifest.id


def test_a_body_is_all_that_features_follow_from():
    one, another = "1" * 64, "2" * 64
    bodies = [make_manifest().body]
    for position, digest in ((2, one), (1, another)):
        blocks = tuple(
            BlockEntry(block.name, digest if index == position else block.digest, 8)
            for index, block in enumerate(BLOCKS)
        )
        pairs = [(block.name, block.digest) for block in blocks]
        bodies.append(make_manifest(blocks=blocks, id=snapshot_id("resnet18", pairs)).body)
    bodies.append(make_manifest(preprocessing=Preprocessing.cropping(64)).body)
    assert bodies[0] == bodies[1], "only the heads differ"
    assert len(set(bodies)) == 3


def test_the_file_is_readable_by_its_specification():
    raw = make_manifest().to_bytes()
    document = json.loads(raw)
    checksum = document.pop("checksum")
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert checksum == blake3(text.encode()).hexdigest()
    assert block_digests(raw) == [digest.encode() for digest in DIGESTS]


@pytest.mark.parametrize("where", range(0, len(make_manifest().to_bytes()), 7))
def test_every_flipped_bit_is_found(where):
    raw = bytearray(make_manifest().to_bytes())
    raw[where] ^= 1 << (where % 8)
    with pytest.raises(StoreDamaged):
        parse_manifest(bytes(raw), "m")


@given(st.integers(0, 10_000))
def test_every_cut_is_found(length):
    raw = make_manifest().to_bytes()
    with pytest.raises(StoreDamaged):
        parse_manifest(raw[: length % len(raw)], "m")


def _sealed(document: dict) -> bytes:
    checksum = blake3(canonical_json(document)).hexdigest()
    return canonical_json(document | {"checksum": checksum})


def _document(**changes) -> dict:
    return make_manifest().model_dump(mode="json") | changes


FAMILIAR = 'timm/resnet18{"stem_width":32}'
WAYS = {"preprocessing": Preprocessing(resize_mode="squash")}


def familiar(**changes):
    """Return a manifest of format 2, of an architecture with a configuration."""
    identity = snapshot_id(FAMILIAR, [(block.name, block.digest) for block in BLOCKS])
    return make_manifest(**{"format": 2, "id": identity, "architecture": FAMILIAR} | changes)


@pytest.mark.parametrize("manifest", [familiar(), familiar(**WAYS), make_manifest(format=2, **WAYS)])
def test_format_2_comes_back_equal_from_its_bytes(manifest):
    raw = manifest.to_bytes()
    assert parse_manifest(raw, "m", expected_id=manifest.id) == manifest
    document = json.loads(raw)
    assert str(parse(manifest.architecture)) == manifest.architecture
    assert document["family"] == parse(manifest.architecture).family
    assert document["configuration"] == parse(manifest.architecture).options
    assert {"resize_mode", "crop_rounding"} <= document["preprocessing"].keys()


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"architecture": "timm/resnet18"},
        {"preprocessing": Preprocessing(interpolation="nearest")},
        {"format": 2, "architecture": "resnet-18"},
        {"format": 2, "architecture": 'timm/resnet18{"b":1, "a":2}'},
        {"format": 2, "architecture": "mxnet/resnet18"},
        {"format": 3},
    ],
)
def test_a_manifest_is_of_the_oldest_format_that_can_say_it(changes):
    architecture = changes.get("architecture", "resnet18")
    identity = snapshot_id(architecture, [(block.name, block.digest) for block in BLOCKS])
    with pytest.raises(ValidationError):
        make_manifest(**changes, id=identity)


@pytest.mark.parametrize(
    "changes",
    [
        {"family": "hf"},
        {"family": None},
        {"configuration": {}},
        {"configuration": {"stem_width": 64}},
        {"configuration": None},
        {"format": 1},
        {"format": 2.0},
        {"architecture": "timm/resnet18"},
    ],
)
def test_a_hostile_manifest_of_format_2_is_refused(changes):
    with pytest.raises(StoreDamaged):
        parse_manifest(_sealed(familiar().model_dump(mode="json") | changes), "m")


@pytest.mark.parametrize("key", ["family", "configuration"])
def test_format_2_needs_all_its_members(key):
    document = familiar().model_dump(mode="json")
    del document[key]
    with pytest.raises(StoreDamaged):
        parse_manifest(_sealed(document), "m")
    document = familiar().model_dump(mode="json")
    del document["preprocessing"]["resize_mode"]
    with pytest.raises(StoreDamaged):
        parse_manifest(_sealed(document), "m")


def _block(**changes) -> list[dict]:
    first = {"name": "stem", "digest": DIGESTS[0], "num_bytes": 8} | changes
    rest = [{"name": one.name, "digest": one.digest, "num_bytes": 8} for one in BLOCKS[1:]]
    return [first, *rest]


@pytest.mark.parametrize(
    "document",
    [
        _document(id="0" * 64),
        _document(format=2),
        _document(format=True),
        _document(architecture="../resnet18"),
        _document(unknown=1),
        _document(blocks=[]),
        _document(blocks=_block(digest="../../etc/passwd")),
        _document(blocks=_block(digest=DIGESTS[0].upper())),
        _document(blocks=_block(digest=DIGESTS[0] + "\n")),
        _document(blocks=_block(num_bytes=-1)),
        _document(blocks=_block(num_bytes=2**80)),
        _document(blocks=_block(num_bytes=8.0)),
        _document(blocks=_block(num_bytes="8")),
        _document(blocks=_block(name="head")),
        _document(blocks=_block(extra=1)),
        _document(retrain_index=-1),
        _document(num_classes=0),
        _document(metrics={"val_accuracy": "0.5"}),
        _document(created="yesterday"),
        _document(base="abc"),
    ],
)
def test_a_hostile_manifest_with_a_sound_checksum_is_refused(document):
    with pytest.raises(StoreDamaged):
        parse_manifest(_sealed(document), "m")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b'{"checksum":"' + b"0" * 64 + b'",}',
        b"\xff" * 100,
        b'{"a":' * 100_000,
        b"[" * 1_000_000,
        make_manifest().to_bytes() + b"\n",
        make_manifest().to_bytes().replace(b'"num_classes":4', b'"num_classes":4,"num_classes":4'),
        make_manifest().to_bytes().replace(b'"num_classes":4', b'"num_classes":NaN'),
    ],
)
def test_bytes_that_are_no_manifest_are_refused(raw):
    with pytest.raises(StoreDamaged):
        parse_manifest(raw, "m")


@pytest.mark.parametrize("deep", [b'{"a":' * 5_000 + b"1" + b"}" * 5_000])
def test_deep_nesting_with_a_sound_checksum_is_refused(deep):
    checksum = blake3(b'{"architecture":' + deep + b"}").hexdigest().encode()
    raw = b'{"architecture":' + deep + b',"checksum":"' + checksum + b'",}'
    with pytest.raises(StoreDamaged):
        parse_manifest(raw, "m")


def test_another_snapshots_manifest_under_this_id_is_refused():
    manifest = make_manifest()
    with pytest.raises(StoreDamaged, match="expected the manifest of"):
        parse_manifest(manifest.to_bytes(), "m", expected_id="1" * 64)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_can_not_hold_are_refused(value):
    with pytest.raises(ValidationError):
        make_manifest(metrics={"val_accuracy": value})
    with pytest.raises(ValueError, match="Out of range"):
        make_manifest(train={"lr": value})


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "a\\b", "-x", "a b", "a\n", "ä", "x" * 201, "0" * 64]
)
def test_a_name_that_is_no_name_is_refused(name):
    with pytest.raises(UsageError):
        check_ref_name(name)


@pytest.mark.parametrize(
    "digest", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "../" + "0" * 61, "0" * 64 + "\n", None]
)
def test_a_digest_that_is_no_digest_is_refused(digest):
    with pytest.raises(UsageError):
        check_digest(digest)
