"""Hostile files and stores: no code runs, nothing but weights is read as weights, no path outside is opened."""

import contextlib
import json
import math
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors
import torch
from blake3 import blake3

from raysnap.errors import RaysnapError, SnapshotNotFound, StoreDamaged, UsageError, WeightsError
from raysnap.models.blocks import split_state_dict
from raysnap.models.tensor_bytes import DTYPES, decode
from raysnap.store.exchange.weights_out import export_snapshot
from raysnap.store.manifest import parse_manifest
from raysnap.store.store import Store
from raysnap.testing.blocks import equal, make_blocks, put, read
from tests.support import ROOT, SUPPORT
from tests.support.hostile_weights import ARCHITECTURE, Case, all_cases, sound_weights
from tests.support.manifests import make_manifest

DEEP = os.environ.get("RAYSNAP_DEEP") == "1"
MOST_CPU_S, MOST_BYTES = 3.0 if DEEP else 10.0, 2**30  # slow processors take 2.1 s; without a limit, minutes
NUM_CASES = 60
NUM_HEADERS, NUM_MANIFESTS = (100_000, 50_000) if DEEP else (2_000, 1_000)
BATCH = 50

pytestmark = pytest.mark.timeout(3600 if DEEP else 180)


# Checkpoints


@dataclass(frozen=True)
class Read:
    """A case, and what reading it as weights gave."""

    case: Case
    outcome: str
    message: str
    cpu_s: float
    bytes: int


@pytest.fixture(scope="module")
def reads(tmp_path_factory) -> list[Read]:
    """Read every case once; those that may take much memory or time each begin a new process."""
    folder = tmp_path_factory.mktemp("hostile")
    cases = all_cases(folder, every=DEEP)
    files = [f"{number}{case.suffix}" for number, case in enumerate(cases)]
    batches: list[list[tuple[str, bool]]] = [[]]
    for file, case in zip(files, cases, strict=True):
        (folder / file).write_bytes(case.content)
        if case.may_take_much or len(batches[-1]) == BATCH:
            batches.append([])
        batches[-1].append((file, case.is_guarded))
    (folder / "batches.json").write_text(json.dumps(batches))
    script = SUPPORT / "hostile_runner.py"
    command = [sys.executable, str(script), str(folder), ARCHITECTURE]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [Read(case, **outcome) for case, outcome in zip(cases, json.loads(result.stdout), strict=True)]


@pytest.mark.slow
def test_weights_are_accepted_if_and_only_if_they_are_sound(reads):
    assert len({read.case.name for read in reads}) == len(reads) >= NUM_CASES
    expected = {read.case.name: "accepted" if read.case.is_valid else "refused" for read in reads}
    found = {read.case.name: read.outcome for read in reads}
    wrong = [(read.case.name, read.message) for read in reads if found[read.case.name] != expected[read.case.name]]
    assert not wrong


def test_no_code_of_a_checkpoint_runs(reads):
    armed = [read for read in reads if read.case.canary]
    assert len(armed) >= NUM_CASES
    assert not any(os.path.lexists(read.case.canary) for read in armed)


def test_each_gadget_and_disguise_runs_where_nothing_checks(tmp_path):
    script = SUPPORT / "hostile_pickles.py"
    result = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_refusal_is_one_line(reads):
    refused = [read for read in reads if read.outcome == "refused"]
    assert refused
    assert not [read.case.name for read in refused if "\n" in read.message or len(read.message) > 1500]


def test_a_refusal_takes_little_time_and_memory(reads):
    refused = [read for read in reads if read.outcome == "refused"]
    assert not [(read.case.name, read.cpu_s) for read in refused if read.cpu_s > MOST_CPU_S]
    assert not [(read.case.name, read.bytes) for read in refused if read.bytes > MOST_BYTES]


# Random safetensors headers


def random_file(rng: random.Random) -> bytes:
    """Return a sound safetensors file: any dtypes, shapes and order, metadata or none, a header that ends in blanks."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}} if rng.random() < 0.3 else {}
    data = b""
    for index in range(rng.randint(1, 5)):
        dtype = rng.choice([name for name in DTYPES if name != "BOOL"])
        shape = [rng.randint(0, 3) for _ in range(rng.randint(0, 3))]
        num_bytes = math.prod(shape) * DTYPES[dtype].itemsize
        header[f"{rng.choice(['w', 'ü', '../w'])}{index}"] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + num_bytes],
        }
        data += rng.randbytes(num_bytes)
    names = list(header)
    rng.shuffle(names)
    text = json.dumps({name: header[name] for name in names}).encode() + b" " * rng.randint(0, 9)
    return len(text).to_bytes(8, "little") + text + data


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """Return the file with bytes of its header changed, cut, doubled or moved."""
    header_end = 8 + int.from_bytes(raw[:8], "little")
    changed = bytearray(raw)
    for _ in range(rng.randint(1, 3)):
        where = rng.randrange(min(header_end, len(changed)) + 1)
        match rng.randrange(5):
            case 0:
                changed[where : where + 1] = rng.randbytes(1)
            case 1:
                changed[where : where + 1] = bytes([rng.choice(b'0123456789{}[],:"-.eE \\')])
            case 2:
                del changed[where : where + rng.randint(1, 8)]
            case 3:
                changed[where:where] = changed[where : where + rng.randint(1, 40)]
            case 4:
                changed = changed[: rng.randrange(len(changed) + 1)]
        if rng.random() < 0.5 and len(changed) >= 8:  # so that changes in length get past the first check
            moved = max(0, int.from_bytes(raw[:8], "little") + len(changed) - len(raw))
            changed[:8] = moved.to_bytes(8, "little")
    return bytes(changed)


def decoded(raw: bytes) -> dict[str, torch.Tensor] | None:
    try:
        return decode(memoryview(bytearray(raw)), "fuzz")
    except WeightsError:
        return None


def test_random_and_changed_files_are_read_as_the_library_does():
    num_refused = 0
    for seed in range(NUM_HEADERS):
        rng = random.Random(seed)
        raw = random_file(rng)
        assert same_tensors(decoded(raw), raw), raw
        broken = mutated(raw, rng)
        found = decoded(broken)
        num_refused += found is None
        assert found is None or same_tensors(found, broken), broken
    assert num_refused > NUM_HEADERS // 2


def same_tensors(found: dict[str, torch.Tensor] | None, raw: bytes) -> bool:
    """Return whether what was read of the file is what the safetensors library reads of it."""
    expected = safetensors.deserialize(raw)
    if found is None or found.keys() != {name for name, _ in expected}:
        return False
    return all(
        list(found[name].shape) == tensor["shape"]
        and DTYPES[tensor["dtype"]] == found[name].dtype
        and found[name].reshape(-1).view(torch.uint8).numpy().tobytes() == bytes(tensor["data"])
        for name, tensor in expected
    )


# Manifests, ids and refs


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.open(tmp_path / "store", create=True)


_opened: list[str] | None = None


def _note_path(event: str, arguments: tuple) -> None:
    if _opened is not None and event in _PATH_EVENTS:
        named = arguments[: _PATH_EVENTS[event]]
        _opened.extend(os.fsdecode(path) for path in named if isinstance(path, str | bytes | os.PathLike))


_ONE_PATH = ("open", "os.listdir", "os.scandir", "os.remove", "os.mkdir", "os.utime")
_PATH_EVENTS = {"os.rename": 2} | dict.fromkeys(_ONE_PATH, 1)  # how many of their arguments are paths
sys.addaudithook(_note_path)


def is_within(path: str, folder: Path) -> bool:
    """Return whether the path is in the folder, or where Python and raysnap themselves are imported from."""
    allowed = (folder, Path(sys.prefix), Path(sys.base_prefix), ROOT)
    return any(Path(os.path.normpath(path)).is_relative_to(parent) for parent in allowed)


@contextlib.contextmanager
def opened_paths() -> Iterator[list[str]]:
    """Record the paths that anything in this process opens, lists, changes or removes during the block."""
    global _opened
    _opened = found = []
    try:
        yield found
    finally:
        _opened = None


PATHS = [
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "\0",
    "0" * 63 + "/",
    "../" + "0" * 61,
    "0" * 64 + "\n",
    "0" * 64 + "/..",
    "０" * 64,
    "A" * 65 + "/",
    "%2e%2e%2f" + "0" * 55,
    "0" * 100_000,
    "~root",
    "$HOME",
    "con\r\n",
]
DIGEST_TAKERS = {
    "read_block": lambda store, text: store.read_block(text),
    "block_bytes": lambda store, text: store.block_bytes(text),
    "put_snapshot": lambda store, text: store.put_snapshot(
        architecture="resnet18", blocks=[("stem", text)], num_classes=4
    ),
    "set_ref": lambda store, text: store.set_ref("name", text),
}
NAME_TAKERS = {
    "set_ref": lambda store, text: store.set_ref(text, "0" * 64),
    "remove_ref": lambda store, text: store.remove_ref(text),
    "put_snapshot": lambda store, text: put(store, name=text),
}
FINDERS = {
    "manifest": lambda store, text: store.manifest(text),
    "remove_snapshot": lambda store, text: store.remove_snapshot(text),
    "base": lambda store, text: put(store, base=text),
}


@pytest.mark.parametrize("text", PATHS, ids=lambda text: repr(text[:20]))
@pytest.mark.parametrize("take", [*DIGEST_TAKERS.values()], ids=[*DIGEST_TAKERS])
def test_what_is_no_digest_is_refused_before_any_path_is_opened(store, take, text):
    lock = str(store.path / "store.json")
    with opened_paths() as paths, pytest.raises(UsageError):
        take(store, text)
    assert set(paths) <= {lock}


@pytest.mark.parametrize("text", PATHS, ids=lambda text: repr(text[:20]))
@pytest.mark.parametrize("take", [*NAME_TAKERS.values()], ids=[*NAME_TAKERS])
def test_what_is_no_name_is_refused_before_any_path_is_opened(store, take, text):
    with opened_paths() as paths, pytest.raises(UsageError):
        take(store, text)
    assert not paths


@pytest.mark.parametrize("text", PATHS, ids=lambda text: repr(text[:20]))
@pytest.mark.parametrize("find", [*FINDERS.values()], ids=[*FINDERS])
def test_what_names_no_snapshot_is_looked_for_in_the_store_alone(store, find, text):
    put(store, seed=1, name="mine")
    with opened_paths() as paths, pytest.raises(SnapshotNotFound) as caught:
        find(store, text)
    assert all(is_within(path, store.path) for path in paths)
    assert len(str(caught.value)) < 1000
    assert [summary.names for summary in store.summaries()] == [("mine",)]


def with_checksum(document: object) -> bytes:
    """Return the bytes of a manifest with a sound checksum, whatever it says."""
    checksum = blake3(loose_json(document)).hexdigest()
    return loose_json(document | {"checksum": checksum})


def loose_json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def hostile(sound: dict) -> dict[str, Callable[[], bytes]]:
    """Return what makes hostile manifests of a sound one, by what is wrong with them; their checksums are right."""

    def block(**changes: object) -> bytes:
        return with_checksum(sound | {"blocks": [sound["blocks"][0] | changes, *sound["blocks"][1:]]})

    def text(old: str, new: str) -> bytes:
        raw = loose_json(sound)
        assert old.encode() in raw
        raw = raw.replace(old.encode(), new.encode(), 1)
        member = b'"checksum":"' + blake3(raw).hexdigest().encode() + b'",'
        where = raw.index(b'"created"')
        return raw[:where] + member + raw[where:]

    def many() -> list[dict]:
        return [sound["blocks"][0] | {"name": f"b{index}"} for index in range(100_001)]

    nested: object = 1
    for _ in range(900):
        nested = {"a": nested}
    return {
        "a digest that climbs": lambda: block(digest="../" * 20 + "etc/passwd"),
        "an absolute digest": lambda: block(digest="/etc/passwd"),
        "a digest in capitals": lambda: block(digest=sound["blocks"][0]["digest"].upper()),
        "a digest and a newline": lambda: block(digest=sound["blocks"][0]["digest"] + "\n"),
        "a digest that is a number": lambda: block(digest=7),
        "another block's digest": lambda: block(digest=sound["blocks"][1]["digest"]),
        "a digest of no block": lambda: block(digest="0" * 64),
        "a negative length": lambda: block(num_bytes=-1),
        "a length of 2**63": lambda: block(num_bytes=2**63),
        "a length of 10**400": lambda: text('"num_bytes":', f'"num_bytes":{10**400},"x":'),
        "a length of 1e2": lambda: text('"num_bytes":', '"num_bytes":1e2,"x":'),
        "a length with a fraction": lambda: block(num_bytes=8.5),
        "a length of true": lambda: block(num_bytes=True),
        "a length in quotes": lambda: block(num_bytes="8"),
        "a length of null": lambda: block(num_bytes=None),
        "a block without a length": lambda: with_checksum(sound | {"blocks": [{"name": "stem", "digest": "0" * 64}]}),
        "a name twice": lambda: block(name=sound["blocks"][1]["name"]),
        "an empty name": lambda: block(name=""),
        "no blocks": lambda: with_checksum(sound | {"blocks": []}),
        "blocks that are no list": lambda: with_checksum(sound | {"blocks": {"0": sound["blocks"][0]}}),
        "blocks in another order": lambda: with_checksum(sound | {"blocks": sound["blocks"][::-1]}),
        "100,001 blocks": lambda: with_checksum(sound | {"blocks": many()}),
        "an id that climbs": lambda: with_checksum(sound | {"id": "../" + sound["id"][3:]}),
        "another id": lambda: with_checksum(sound | {"id": "0" * 64}),
        "another architecture": lambda: with_checksum(sound | {"architecture": "resnet34"}),
        "an architecture that climbs": lambda: with_checksum(sound | {"architecture": "../resnet18"}),
        "a base that climbs": lambda: with_checksum(sound | {"base": "../../etc/passwd"}),
        "a future format": lambda: with_checksum(sound | {"format": 2}),
        "a format of 1.0": lambda: text('"format":1', '"format":1.0'),
        "a format of true": lambda: with_checksum(sound | {"format": True}),
        "a member more": lambda: with_checksum(sound | {"__class__": "os.system"}),
        "a member less": lambda: with_checksum({key: value for key, value in sound.items() if key != "created"}),
        "a key twice": lambda: text('"num_classes":', '"num_classes":4,"num_classes":'),
        "NaN": lambda: text('"metrics":{', '"metrics":{"loss":NaN'),
        "infinity": lambda: text('"metrics":{', '"metrics":{"loss":-Infinity'),
        "a float that overflows": lambda: text('"metrics":{', '"metrics":{"loss":1e999'),
        "a float written at length": lambda: text('"metrics":{', '"metrics":{"loss":0.50'),
        "an accuracy in words": lambda: with_checksum(sound | {"metrics": {"val_accuracy": "best"}}),
        "nested 900 deep": lambda: with_checksum(sound | {"train": nested}),
        "nested 100,000 deep": lambda: text('"train":{', '"train":{"a":' + "[" * 100_000 + "]" * 100_000),
        "a number of 100,000 digits": lambda: text('"train":{', '"train":{"a":' + "1" * 100_000),
        "a lone surrogate": lambda: text('"train":{', '"train":{"a":"\\ud800"'),
        "a date of its own": lambda: with_checksum(sound | {"created": "2026-01-01T00:00:00+99:99"}),
        "a negative retrain index": lambda: with_checksum(sound | {"retrain_index": -1}),
        "no classes": lambda: with_checksum(sound | {"num_classes": 0}),
        "blanks": lambda: text('"format":1', '"format": 1'),
        "an escape that needs none": lambda: text('"format"', '"\\u0066ormat"'),
        "a list": lambda: b'[{"checksum":"' + b"0" * 64 + b'",}]',
        "nothing": lambda: b"",
        "16 MB and more": lambda: with_checksum(sound | {"train": {"a": "x" * 2**24}}),
    }


HOSTILE_MANIFESTS = [*hostile(make_manifest().model_dump(mode="json"))]


@pytest.mark.parametrize("kind", HOSTILE_MANIFESTS)
def test_a_hostile_manifest_is_refused_named_and_harms_no_other(store, kind, caplog):
    good = put(store, seed=1, name="good").manifest
    victim = put(store, seed=2).manifest
    path = store.path / "snapshots" / f"{victim.id}.json"
    path.write_bytes(hostile(victim.model_dump(mode="json"))[kind]())
    with opened_paths() as paths:
        with pytest.raises(StoreDamaged, match=victim.id):
            store.manifest(victim.id)
        assert [summary.id for summary in store.summaries()] == [good.id]
        assert victim.id in caplog.text
        report = store.verify()
        assert [row["file"] for row in report["damaged_files"]] == [f"snapshots/{victim.id}.json"]
        assert equal(read(store, "good"), make_blocks(1))
    assert all(is_within(path, store.path) for path in paths)


@pytest.mark.parametrize("size", [2**24 + 1, 2**30])
def test_a_manifest_larger_than_any_is_not_read_whole(store, size):
    victim = put(store).manifest
    with (store.path / "snapshots" / f"{victim.id}.json").open("r+b") as file:
        file.truncate(size)
    before_bytes = peak_bytes()
    with pytest.raises(StoreDamaged, match="found more"):
        store.manifest(victim.id)
    assert store.summaries() == []
    with pytest.raises(StoreDamaged, match="nothing is deleted"):
        store.gc(grace_s=0)
    assert peak_bytes() - before_bytes < 2**28


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_a_changed_manifest_is_refused_or_says_the_same():
    sound = make_manifest().model_dump(mode="json")
    for seed in range(NUM_MANIFESTS):
        rng = random.Random(seed)
        document = json.loads(json.dumps(sound))
        target = rng.choice([document, *document["blocks"], document["metrics"], document["preprocessing"]])
        key = rng.choice(list(target))
        target[key] = rng.choice([None, True, -1, 0, 1.5, 2**70, "", "../x", [], {}, [[]], "0" * 64, target[key]])
        raw = with_checksum(document)
        try:
            manifest = parse_manifest(raw, "fuzz", expected_id=sound["id"])
        except StoreDamaged:
            continue
        assert manifest.to_bytes() == raw
        assert [block.digest for block in manifest.blocks] == [block["digest"] for block in sound["blocks"]]


def test_bases_that_form_a_ring_end_the_lineage(store, tmp_path):
    state_dict = sound_weights()
    blocks = split_state_dict(ARCHITECTURE, state_dict)
    one = store.put_snapshot(architecture=ARCHITECTURE, blocks=blocks, num_classes=3, name="one").manifest
    other = [*blocks[:-1], (blocks[-1][0], {name: value + 1 for name, value in blocks[-1][1].items()})]
    two = store.put_snapshot(architecture=ARCHITECTURE, blocks=other, num_classes=3, base="one").manifest
    document = one.model_dump(mode="json") | {"base": two.id}
    (store.path / "snapshots" / f"{one.id}.json").write_bytes(with_checksum(document))
    card = export_snapshot(store, "one", tmp_path / "out" / "weights.safetensors").card_path.read_text()
    assert card.count(two.id[:12]) == 1
    assert store.verify()["ok"]


@pytest.mark.parametrize("place", ["snapshots", "refs", "objects", "index", "store.json"])
def test_a_pipe_in_the_place_of_a_file_blocks_no_reader(store, place):
    manifest = put(store, name="mine").manifest
    digest = manifest.blocks[0].digest
    path = {
        "snapshots": store.path / "snapshots" / f"{manifest.id}.json",
        "refs": store.path / "refs" / "mine",
        "objects": store.path / "objects" / digest[:2] / digest,
        "index": store.path / "index.sqlite",
        "store.json": store.path / "store.json",
    }[place]
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    if place == "index":
        assert len(store.summaries()) == 1
        return
    with pytest.raises(RaysnapError, match="regular file"):
        Store.open(store.path).read_block(digest) if place == "objects" else Store.open(store.path).manifest("mine")
