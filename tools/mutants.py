"""Switches off the store's protections one at a time, and finds out whether the tests notice.

Each mutant is a copy of the package with one line changed, the tests that must fail for it, and words of the failure
that show they fail for this reason. A line per mutant, one JSON line last; exit code 1 where a mutant survives.
`tools/mutants.py NAME …` tries only the mutants whose names hold one of the words.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
NUM_JOBS = 2
FAILED = 1  # pytest's exit code for tests that failed, and not for its own trouble

POWER = "test_store_crashes.py::test_a_power_cut_leaves_the_old_state_or_the_new_and_all_that_was_reported"
FLIPPED = "test_store_damage.py::test_every_flipped_bit_is_found"
HOSTILE = "test_objects.py::test_a_hostile_file_is_refused"
NOT_RAISED = "DID NOT RAISE"


@dataclass(frozen=True)
class Mutant:
    """One protection: where it stands, what takes its place, the test that needs it and how that test must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str
    reason: str


MUTANTS = [
    Mutant(
        "fsync of a file before its renaming",
        "files.py",
        "                os.fsync(file.fileno())\n",
        "",
        f"{POWER}[beside shared blocks]",
        r"AssertionError: \{'ok': False, 'damaged'",
    ),
    Mutant(
        "fsync of the folder after a renaming",
        "files.py",
        "            sync_dir(target.parent)\n        return True\n\n    def write",
        "        return True\n\n    def write",
        f"{POWER}[under an old name]",
        r"which is not in the store|assert found in allowed",
    ),
    Mutant(
        "a new store's marker replaces no other",
        "store.py",
        "store._files.write_new(path / STORE_FILE",
        "store._files.write(path / STORE_FILE",
        "test_store_concurrency.py::test_a_store_that_another_process_makes_and_fills_meanwhile_is_opened_as_it_is",
        r"assert \[\d+\] == \[\d+\]",
    ),
    Mutant(
        "fsync of the folders above a new store",
        "files.py",
        "            for folder in made:\n                sync_dir(folder.parent)\n",
        "",
        f"{POWER}[in no store]",
        r"num_done == 0",
    ),
    Mutant(
        "fsync of the folders of blocks that others wrote",
        "store.py",
        "                self._files.sync_shards(entry.digest for entry in manifest.blocks)\n",
        "",
        "test_store.py::test_folders_of_blocks_that_others_wrote_are_on_the_disk_before_the_manifest",
        r"assert set\(\) ==|assert set\(synced",
    ),
    Mutant(
        "fsync of a manifest that a killed writer published",
        "store.py",
        "                    self._files.sync(target)\n",
        "",
        "test_store_crashes.py::test_what_a_killed_writer_left_unsynced_is_on_the_disk_once_it_is_put_again",
        r"which is not in the store|assert found in allowed",
    ),
    Mutant(
        "fsync of a name that a killed writer published",
        "catalog.py",
        "            files.sync(path)\n",
        "            pass\n",
        "test_store_crashes.py::test_what_a_killed_writer_left_unsynced_is_on_the_disk_once_it_is_put_again",
        r"assert found in allowed",
    ),
    Mutant(
        "digest of what is read",
        "files.py",
        "if num_read != num_bytes or hasher.hexdigest() != digest:",
        "if num_read != num_bytes:",
        f"{FLIPPED}[block]",
        "assert not True|" + NOT_RAISED,
    ),
    Mutant(
        "digest of what is written",
        "files.py",
        "if digest is not None and hasher.hexdigest() != digest:",
        "if False:",
        "test_store.py::test_tensors_that_change_while_they_are_written_are_not_stored",
        NOT_RAISED,
    ),
    Mutant(
        "checksum of a manifest",
        "manifest.py",
        "    if found.hexdigest() != member[1].decode():",
        "    if False:",
        "test_garbage.py::test_nothing_is_deleted_while_a_manifest_is_damaged",
        NOT_RAISED,
    ),
    Mutant(
        "a manifest's id follows from its blocks",
        "manifest.py",
        "        if self.id != expected:",
        "        if False:",
        "test_manifest.py::test_a_hostile_manifest_with_a_sound_checksum_is_refused",
        NOT_RAISED,
    ),
    Mutant(
        "a manifest lies under its own id",
        "manifest.py",
        "    if expected_id is not None and manifest.id != expected_id:",
        "    if False:",
        "test_manifest.py::test_another_snapshots_manifest_under_this_id_is_refused",
        NOT_RAISED,
    ),
    Mutant(
        "gc stops at a manifest of another id",
        "garbage.py",
        "            if not is_draft and f'",
        "            if False and f'",
        "test_store_damage.py::test_a_file_that_is_not_what_it_was_is_found[manifest-swapped]",
        NOT_RAISED,
    ),
    Mutant(
        "gc stops at a draft that it can't read",
        "garbage.py",
        "        except FileNotFoundError:\n            return  #",
        "        except (FileNotFoundError, *[StoreDamaged] * is_draft):\n            return  #",
        "test_garbage.py::test_nothing_is_deleted_while_a_draft_can_not_be_read",
        NOT_RAISED,
    ),
    Mutant(
        "grace",
        "garbage.py",
        "    return newest_ns is None or status.st_mtime_ns <= newest_ns",
        "    return True",
        "test_garbage.py::test_what_is_younger_than_the_grace_stays",
        r"assert 1 == 0",
    ),
    Mutant(
        "a touch starts a block's age anew",
        "files.py",
        "                os.utime(path)\n",
        "                path.stat()\n",
        "test_garbage.py::test_putting_a_block_again_starts_its_age_anew",
        r"assert 1 == 0",
    ),
    Mutant(
        "gc looks a second time",
        "garbage.py",
        "        try:\n            reached.look()\n",
        "        try:\n            pass\n",
        "test_garbage.py::test_a_snapshot_published_after_the_mark_keeps_its_blocks",
        r"assert 3 == 0",
    ),
    Mutant(
        "drafts keep their blocks",
        "garbage.py",
        '            if name.startswith("draft-"):\n',
        "            if False:\n",
        "test_garbage.py::test_a_draft_counts_as_a_manifest",
        r"assert False",
    ),
    Mutant(
        "drafts of the dead are swept before the first look",
        "garbage.py",
        "        num_swept = _sweep(files, newest_ns)\n        reached.look()\n",
        "        reached.look()\n        num_swept = _sweep(files, newest_ns)\n",
        "test_garbage.py::test_a_dead_writers_draft_keeps_no_block_from_collection",
        r"assert",
    ),
    Mutant(
        "what a gc set aside is put back",
        "files.py",
        "                if not self.put_back(digest):\n                    return False\n",
        "                return False\n",
        "test_garbage.py::test_a_writer_puts_back_what_a_collector_set_aside",
        r"new_blocks",
    ),
    Mutant(
        "no manifest before its blocks",
        "store.py",
        "if not self._files.refresh(entry.digest, entry.num_bytes)]",
        "if False]",
        "test_garbage.py::test_a_write_by_digest_that_came_too_late_leaves_no_manifest",
        NOT_RAISED,
    ),
    Mutant(
        "a header's tensors tile the file",
        "objects.py",
        "        if span.start != end:",
        "        if False:",
        HOSTILE,
        NOT_RAISED,
    ),
    Mutant(
        "no key stands twice",
        "manifest.py",
        "    if len(result) != len(pairs):",
        "    if False:",
        HOSTILE,
        NOT_RAISED,
    ),
    Mutant(
        "cap on the number of tensors",
        "objects.py",
        "    if len(header) > MAX_TENSORS:",
        "    if False:",
        HOSTILE,
        NOT_RAISED,
    ),
    Mutant(
        "cap on the bytes of a manifest",
        "store.py",
        "            if len(content) > MAX_MANIFEST_BYTES:",
        "            if False:",
        "test_store.py::test_a_snapshot_that_can_not_be_described_is_refused",
        NOT_RAISED,
    ),
    Mutant(
        "a name moves from what is expected",
        "catalog.py",
        "    if expected is not None and (current or ABSENT) != expected:",
        "    if False:",
        "test_store.py::test_a_name_moves_only_from_what_is_expected",
        NOT_RAISED,
    ),
    Mutant(
        "a digest is checked before it is a path",
        "files.py",
        '        check_digest(digest, "block digest")\n',
        "",
        "test_store.py::test_a_digest_that_is_a_path_opens_nothing",
        r"raise StoreDamaged|BlockDamaged|NotADirectory|" + NOT_RAISED,
    ),
    Mutant(
        "a name is checked before it is a path",
        "catalog.py",
        "    path = files.refs_dir / check_ref_name(name)\n    with files.ref_lock():\n        if not",
        "    path = files.refs_dir / name\n    with files.ref_lock():\n        if not",
        "test_store.py::test_a_name_moves_only_from_what_is_expected",
        NOT_RAISED,
    ),
    Mutant(
        "a newer format is left alone",
        "store.py",
        "    if type(found) is int and found > FORMAT:",
        "    if False:",
        "test_store.py::test_a_newer_format_is_refused_without_touching_anything",
        r"StoreDamaged",
    ),
    Mutant(
        "checksum of the index",
        "index.py",
        ' and zlib.crc32(content).to_bytes(4, "big") == stored:',
        ":",
        f"{FLIPPED}[index]",
        r"Error",
    ),
    Mutant(
        "nothing is unpickled",
        "weights.py",
        """    check_checkpoint(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
""",
        """    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=False)
""",
        "test_weights.py::test_a_checkpoint_that_would_run_code_does_not",
        r"pickle|canary|" + NOT_RAISED,
    ),
]


def copy_project(target: Path) -> None:
    """Puts what the tests need into a folder where it may be changed."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("raysnap", "tests", "configs", "scripts"):
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", target)


def run_tests(project: Path, tests: list[str]) -> subprocess.CompletedProcess:
    """Runs the tests on the package of this folder, up to the first that fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *(f"tests/{one}" for one in tests)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAYSNAP_")}
    environment |= {"PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def try_mutant(mutant: Mutant) -> str:
    """`caught`, or what happened instead."""
    with TemporaryDirectory(prefix="raysnap-mutant-") as folder:
        project = Path(folder)
        copy_project(project)
        path = project / "raysnap" / mutant.file
        text = path.read_text()
        if text.count(mutant.old) != 1:
            return f"no mutant: {mutant.file} holds the line {text.count(mutant.old)} times, expected once"
        path.write_text(text.replace(mutant.old, mutant.new))
        ended = run_tests(project, [mutant.test])
    if ended.returncode == 0:
        return "survived"
    if ended.returncode != FAILED:
        return f"no verdict: pytest ended with {ended.returncode}: {ended.stdout[-400:]}{ended.stderr[-400:]}"
    if not re.search(mutant.reason, ended.stdout):
        return f"failed for another reason than {mutant.reason!r}: {ended.stdout[-1500:]}"
    return "caught"


def main(words: list[str]) -> int:
    """Tries the mutants after making sure that all is well without them."""
    started = time.perf_counter()
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    with TemporaryDirectory(prefix="raysnap-mutant-") as folder:
        copy_project(Path(folder))
        sound = run_tests(Path(folder), sorted({mutant.test for mutant in chosen}))
    if sound.returncode:
        sys.stdout.write(f"the tests fail without any mutant:\n{sound.stdout[-3000:]}")
        return FAILED
    survived = []
    with ThreadPoolExecutor(NUM_JOBS) as pool:
        for mutant, verdict in zip(chosen, pool.map(try_mutant, chosen), strict=True):
            sys.stdout.write(f"{mutant.name}: {verdict}\n")
            sys.stdout.flush()
            survived += [mutant.name] if verdict != "caught" else []
    result = {
        "num_mutants": len(chosen),
        "num_caught": len(chosen) - len(survived),
        "survived": survived,
        "wall_s": round(time.perf_counter() - started, 1),
    }
    sys.stdout.write(json.dumps(result) + "\n")
    return FAILED if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
