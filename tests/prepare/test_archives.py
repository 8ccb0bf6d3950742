"""Archives that mean harm: each is refused in one line or harmless; nothing is written and little is held."""

import gzip
import os
import random
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest

from raysnap.errors import DataError
from raysnap.prepare.archives import Limits, checked_name, read_archive, unpack_gzip
from raysnap.prepare.convert import prepare_dataset
from tests.support.hostile_archives import IMAGE, Case, all_cases, header, many_entries, member, sound_archives, tar
from tests.support.official_sources import inaturalist, pack, tar_bytes, zip_bytes

DEEP = os.environ.get("RAYSNAP_DEEP") == "1"
NUM_MUTANTS = 5_000 if DEEP else 400
MOST_HELD_BYTES = 48 << 20
CASES = all_cases(every=DEEP)

pytestmark = pytest.mark.timeout(3600 if DEEP else 180)


def read_all(path: Path, limits: Limits | None = None) -> dict[str, bytes]:
    with closing(read_archive(path) if limits is None else read_archive(path, limits)) as entries:
        return {entry.name: entry.read() for entry in entries}


def read_nested(path: Path) -> list[str]:
    with closing(read_archive(path)) as entries:
        return [file.name for entry in entries for file in entry.entries()]


def num_read(path: Path) -> int:
    """How many entries can be read one by one, none of them held."""
    with closing(read_archive(path)) as entries:
        return sum(len(entry.read()) >= 0 for entry in entries)


def fault_of(path: Path) -> str | None:
    """Why the archive is refused; None if it can be read, and then all its names are plain ones."""
    try:
        names = list(read_all(path))
    except DataError as error:
        return str(error)
    assert [checked_name(name, "") for name in names] == names
    return None


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_there_are_enough_hostile_archives():
    assert len({case.name for case in CASES}) == len(CASES) >= 40
    assert sum(case.refusal is not None for case in CASES) >= 40


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_archive_is_refused_in_one_line_or_harmless(tmp_path, case: Case):
    path = tmp_path / f"archive{case.suffix}"
    path.write_bytes(case.make())
    tracemalloc.start()
    try:
        if case.refusal is None:
            assert tuple(read_all(path)) == case.names
        else:
            with pytest.raises(DataError, match=case.refusal) as caught:
                num_read(path)
        _, held_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    if case.refusal is not None:
        message = str(caught.value)
        assert message.isprintable() and len(message) < 1000
        assert str(path) in message
        assert case.entry is None or ascii(case.entry)[:100] in message
    assert held_bytes < MOST_HELD_BYTES
    assert files_below(tmp_path) == [path.name]


@pytest.mark.parametrize("case", [case for case in CASES if case.refusal], ids=lambda case: case.name)
def test_nothing_is_prepared_from_a_hostile_archive(tmp_path, case: Case):
    (tmp_path / "here").mkdir()
    path = tmp_path / "here" / f"archive{case.suffix}"
    path.write_bytes(case.make())
    with pytest.raises(DataError) as caught:
        prepare_dataset("inaturalist-12k", path, tmp_path / "here" / "data", allow_other_counts=True)
    assert str(caught.value).isprintable()
    assert files_below(tmp_path) == ["here", f"here/{path.name}"]


@pytest.mark.parametrize("suffix", [".tgz", ".tar", ".zip"])
def test_links_to_images_give_no_images(tmp_path, suffix):
    outside = tmp_path / "secret.jpg"
    outside.write_bytes(IMAGE)
    path = tmp_path / f"archive{suffix}"
    content = pack(path.name, inaturalist())
    if suffix == ".tar":
        content = tar(header("inaturalist_12K/train/Aves/x.jpg", 0, b"2", str(outside)), end=b"") + content
    path.write_bytes(content)
    result = prepare_dataset("inaturalist-12k", path, tmp_path / "data", allow_other_counts=True)
    assert result.counts == {"train": 9, "val": 0, "test": 6}
    assert not any(file.is_symlink() or file.stat().st_nlink > 1 for file in (tmp_path / "data").rglob("*.jpg"))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(num_entries=3), "at most 3 entries"),
        (Limits(total_bytes=5000), "at most 5,000 bytes unpacked|0 to 5,000 bytes"),
        (Limits(entry_bytes=100), "at most 100 bytes, found"),
    ],
)
@pytest.mark.parametrize("suffix", [".tgz", ".tar", ".zip"])
def test_what_is_larger_than_the_limits_is_refused(tmp_path, limits, message, suffix):
    path = tmp_path / f"archive{suffix}"
    path.write_bytes(pack(path.name, {f"{number}.jpg": random.Random(number).randbytes(2000) for number in range(5)}))
    assert len(read_all(path)) == 5
    with pytest.raises(DataError, match=message):
        read_all(path, limits)


@pytest.mark.parametrize("suffix", [".tgz", ".tar", ".zip"])
def test_entries_may_be_left_unread_and_come_in_order(tmp_path, suffix):
    files = {f"{number}.jpg": bytes([number]) * 3000 for number in range(9)}
    path = tmp_path / f"archive{suffix}"
    path.write_bytes(pack(path.name, files))
    entries = read_archive(path)
    assert [(entry.name, entry.read() if number % 3 == 0 else b"") for number, entry in enumerate(entries)] == [
        (name, content if number % 3 == 0 else b"") for number, (name, content) in enumerate(files.items())
    ]


@pytest.mark.parametrize("outer", [".tgz", ".tar", ".zip"])
@pytest.mark.parametrize("packing", ["gz", ""])
def test_an_archive_within_is_read_where_it_is_asked_for(tmp_path, outer, packing):
    inner = {f"{number}.jpg": random.Random(number).randbytes(100_000) for number in range(20)}
    path = tmp_path / f"archive{outer}"
    path.write_bytes(pack(path.name, {"a.jpg": IMAGE, "inner.tar": tar_bytes(inner, packing), "z.jpg": IMAGE}))
    names = []
    for entry in read_archive(path):
        names.append(entry.name)
        if entry.name == "inner.tar":
            assert {file.name: file.read() for file in entry.entries()} == inner
    assert names == ["a.jpg", "inner.tar", "z.jpg"]


def test_memory_grows_only_by_the_names_of_entries(tmp_path):
    path = tmp_path / "archive.tgz"
    path.write_bytes(many_entries(20_000))
    tracemalloc.start()
    try:
        assert num_read(path) == 20_000
        _, held_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 8 << 20


def test_a_hostile_archive_within_is_refused_by_both_names(tmp_path):
    path = tmp_path / "archive.zip"
    path.write_bytes(zip_bytes({"inner.tar": tar(member("../x.jpg"))}))
    with pytest.raises(DataError, match=r"archive\.zip: inner\.tar: entry '\.\./x\.jpg': expected a name below"):
        read_nested(path)


def test_a_gzip_stream_that_holds_too_much_is_refused():
    assert unpack_gzip(gzip.compress(b"abc"), "x.gz", 3) == b"abc"
    with pytest.raises(DataError, match="at most 2 bytes unpacked"):
        unpack_gzip(gzip.compress(b"abc"), "x.gz", 2)


@pytest.mark.parametrize(("name", "checked"), [("a/b.jpg", "a/b.jpg"), ("./a//b.jpg", "a/b.jpg"), ("a/./b/", "a/b")])
def test_a_name_is_brought_into_its_plain_form(name, checked):
    assert checked_name(name, "here") == checked


def test_a_mutated_archive_is_read_or_refused_and_nothing_else(tmp_path):
    rng = random.Random(0)
    sound = sound_archives()
    num_refused = 0
    for number in range(NUM_MUTANTS):
        suffix, content = sound[number % len(sound)]
        mutant = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 8))):
            match rng.randrange(4):
                case 0:
                    mutant[rng.randrange(len(mutant))] ^= 1 << rng.randrange(8)
                case 1:
                    mutant[rng.randrange(len(mutant))] = rng.randrange(256)
                case 2:
                    start = rng.randrange(len(mutant))
                    mutant[start : start + rng.randrange(1, 600)] = rng.randbytes(rng.randrange(20))
                case 3:
                    start = rng.randrange(len(mutant))
                    mutant[start:start] = mutant[max(0, start - rng.randrange(1, 1100)) : start]
            if len(mutant) < 2:
                mutant = bytearray(content)
        path = tmp_path / f"archive{suffix}"
        path.write_bytes(mutant)
        if (fault := fault_of(path)) is not None:
            num_refused += 1
            assert fault.isprintable() and str(path) in fault, (number, fault)
    assert files_below(tmp_path) == ["archive.tar", "archive.tgz", "archive.zip"]
    assert NUM_MUTANTS // 4 < num_refused < NUM_MUTANTS
