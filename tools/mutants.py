"""Switch off the protections of files one at a time, and find out whether the tests notice.

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
FOLDERS = ("raysnap", "tests", "configs", "scripts", "benchmarks", "tools", "docs")
FAILED = 1  # pytest's exit code for tests that failed, and not for its own trouble

POWER = "faults/test_store_crashes.py::test_a_power_cut_leaves_the_old_or_the_reported_state"
FLIPPED = "faults/test_store_damage.py::test_every_flipped_bit_is_found"
HOSTILE = "models/test_tensor_bytes.py::test_a_hostile_file_is_refused"
SYNCED = "test_atomic.py::test_file_and_folder_are_synced_around_the_rename"
NOT_RAISED = "DID NOT RAISE"


@dataclass(frozen=True)
class Mutant:
    """One protection: where it is, what replaces it, the test that needs it and how that test must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str
    reason: str


MUTANTS = [
    Mutant(
        "fsync of a replaced file before its renaming",
        "atomic.py",
        "            os.fsync(file.fileno())\n        partial_path",
        "        partial_path",
        SYNCED,
        r"assert \['rename', ",
    ),
    Mutant(
        "fsync of the folder of a replaced file",
        "atomic.py",
        "        sync_dir(path.parent)\n    finally",
        "    finally",
        SYNCED,
        r"assert \['file', 'rename'\]",
    ),
    Mutant(
        "a replaced file appears whole",
        "atomic.py",
        "            yield file\n            file.flush()\n",
        "            partial_path.rename(path)\n            yield file\n            partial_path.touch()\n",
        "test_atomic.py::test_readers_see_the_old_file_until_the_block_ends",
        r"== b'old'",
    ),
    Mutant(
        "names of unfinished files are unique",
        "atomic.py",
        "{path.name}.{secrets.token_hex(8)}.partial",
        "{path.name}.partial",
        "test_atomic.py::test_two_writers_at_once_do_not_mix",
        r"FileExistsError",
    ),
    Mutant(
        "a cache evicts nothing that is in use",
        "datasets/disk_cache.py",
        "if not _is_held(usage.path)), None)",
        "if True), None)",
        "datasets/test_disk_cache.py::test_a_held_entry_stays_until_it_is_let_go",
        r"assert not True",
    ),
    Mutant(
        "fsync of a file before its renaming",
        "store/backends/folder.py",
        "                os.fsync(file.fileno())\n",
        "",
        f"{POWER}[beside shared blocks]",
        r"AssertionError: \{'ok': False, 'damaged'",
    ),
    Mutant(
        "fsync of the folder after a renaming",
        "store/backends/folder.py",
        "            sync_dir(target.parent)\n        return True\n\n    # Documents",
        "        return True\n\n    # Documents",
        f"{POWER}[under an old name]",
        r"which is not in the store|assert found in allowed",
    ),
    Mutant(
        "a new store's marker replaces no other",
        "store/store_file.py",
        "place.create(STORE_FILE, STORE_CONTENTS[FORMAT_1])",
        "place.write(STORE_FILE, STORE_CONTENTS[FORMAT_1])",
        "laws/test_store_concurrency.py::test_a_store_created_by_another_process_is_opened",
        r"assert \[\d+\] == \[\d+\]",
    ),
    Mutant(
        "fsync of the folders above a new store",
        "store/backends/folder.py",
        "            for folder in made:\n                sync_dir(folder.parent)\n",
        "",
        f"{POWER}[in no store]",
        r"num_done == 0",
    ),
    Mutant(
        "fsync of the folders of blocks that others wrote",
        "store/backends/folder.py",
        "        self._folder.sync_shards(self._digests)\n",
        "",
        "store/backends/test_folder.py::test_shards_are_synced_before_the_manifest",
        r"assert set\(\) ==|assert set\(synced",
    ),
    Mutant(
        "fsync of a manifest that a killed writer published",
        "store/publishing.py",
        "                    place.sync(key)\n",
        "",
        "faults/test_store_crashes.py::test_putting_again_syncs_what_a_killed_writer_left",
        r"which is not in the store|assert found in allowed",
    ),
    Mutant(
        "fsync of a name that a killed writer published",
        "store/backends/folder.py",
        "            self.sync(key)\n        else:",
        "            pass\n        else:",
        "faults/test_store_crashes.py::test_putting_again_syncs_what_a_killed_writer_left",
        r"assert found in allowed",
    ),
    Mutant(
        "a name that is given stays with the snapshot that has it",
        "store/catalog.py",
        "if current not in (None, snapshot) and",
        "if False and",
        "store/test_catalog.py::test_a_given_name_is_never_taken_from_a_snapshot",
        r"\['mine', 'mine', 'mine'\]",
    ),
    Mutant(
        "one bad candidate doesn't end a search",
        "search/engine/executor.py",
        "except Exception as error:  # noqa: BLE001 - one bad",
        "except ZeroDivisionError as error:  # one bad",
        "search/test_contest.py::test_a_block_that_raises_skips_its_candidates_only",
        r"NotImplementedError: a fault",
    ),
    Mutant(
        "digest of what is read",
        "store/backends/disk.py",
        "if num_read != num_bytes or hasher.hexdigest() != digest:",
        "if num_read != num_bytes:",
        f"{FLIPPED}[block]",
        "assert not True|" + NOT_RAISED,
    ),
    Mutant(
        "digest of what is written",
        "store/backends/folder.py",
        "if digest is not None and hasher.hexdigest() != digest:",
        "if False:",
        "store/test_store.py::test_tensors_that_change_during_a_write_are_not_stored",
        NOT_RAISED,
    ),
    Mutant(
        "checksum of a manifest",
        "store/manifest.py",
        "    if found.hexdigest() != member[1].decode():",
        "    if False:",
        "store/test_garbage.py::test_nothing_is_deleted_while_a_manifest_is_damaged",
        NOT_RAISED,
    ),
    Mutant(
        "a manifest's id follows from its blocks",
        "store/manifest.py",
        "        if self.id != expected:",
        "        if False:",
        "store/test_manifest.py::test_a_hostile_manifest_with_a_sound_checksum_is_refused",
        NOT_RAISED,
    ),
    Mutant(
        "a manifest lies under its own id",
        "store/manifest.py",
        "    if expected_id is not None and manifest.id != expected_id:",
        "    if False:",
        "store/test_manifest.py::test_another_snapshots_manifest_under_this_id_is_refused",
        NOT_RAISED,
    ),
    Mutant(
        "gc stops at a manifest of another id",
        "store/garbage.py",
        "            if not is_draft and not any(mark in raw for mark in marks):",
        "            if False:",
        "faults/test_store_damage.py::test_a_file_that_is_not_what_it_was_is_found[manifest-swapped]",
        NOT_RAISED,
    ),
    Mutant(
        "gc stops at a draft that it can't read",
        "store/garbage.py",
        "        except FileNotFoundError:\n            return []  #",
        "        except (FileNotFoundError, *[StoreDamaged] * is_draft):\n            return []  #",
        "store/test_garbage.py::test_nothing_is_deleted_while_a_draft_can_not_be_read",
        NOT_RAISED,
    ),
    Mutant(
        "grace",
        "store/garbage.py",
        "    return newest_ns is None or entry.written_ns <= newest_ns",
        "    return True",
        "store/test_garbage.py::test_what_is_younger_than_the_grace_stays",
        r"assert 1 == 0",
    ),
    Mutant(
        "a touch restarts a block's age",
        "store/backends/folder.py",
        "                os.utime(path)\n",
        "                path.stat()\n",
        "store/test_garbage.py::test_putting_a_block_again_restarts_its_grace",
        r"assert 1 == 0",
    ),
    Mutant(
        "gc scans a second time",
        "store/garbage.py",
        "as condemned:\n        reached.scan()\n",
        "as condemned:\n",
        "store/test_garbage.py::test_a_snapshot_published_after_the_mark_keeps_its_blocks",
        r"assert 3 == 0",
    ),
    Mutant(
        "drafts keep their blocks",
        "store/garbage.py",
        "        self._add(self._place.drafts(), is_draft=True)\n",
        "",
        "store/test_garbage.py::test_a_draft_counts_as_a_manifest",
        r"assert False",
    ),
    Mutant(
        "drafts of the dead are swept before the first scan",
        "store/garbage.py",
        "    num_swept = place.sweep(newest_ns)\n    reached.scan()\n",
        "    reached.scan()\n    num_swept = place.sweep(newest_ns)\n",
        "store/test_garbage.py::test_a_dead_writers_draft_keeps_no_block_from_collection",
        r"assert",
    ),
    Mutant(
        "what a gc set aside is restored",
        "store/backends/folder.py",
        "                if not self.restore(digest):\n                    return False\n",
        "                return False\n",
        "store/test_garbage.py::test_a_writer_puts_back_what_a_collector_set_aside",
        r"new_blocks",
    ),
    Mutant(
        "no manifest before its blocks",
        "store/backends/folder.py",
        "if not self._folder.has_object(one.digest, one.num_bytes)]",
        "if False]",
        "store/test_garbage.py::test_a_write_by_digest_that_came_too_late_leaves_no_manifest",
        NOT_RAISED,
    ),
    Mutant(
        "a header's tensors tile the file",
        "models/tensor_bytes.py",
        "        if span.start != end:",
        "        if False:",
        HOSTILE,
        NOT_RAISED,
    ),
    Mutant(
        "no key appears twice",
        "canonical_json.py",
        "    if len(result) != len(pairs):",
        "    if False:",
        HOSTILE,
        NOT_RAISED,
    ),
    Mutant(
        "cap on the number of tensors",
        "models/tensor_bytes.py",
        "    if len(header) > MAX_TENSORS:",
        "    if False:",
        HOSTILE,
        NOT_RAISED,
    ),
    Mutant(
        "cap on the bytes of a manifest",
        "store/new_snapshot.py",
        "            if len(content) > MAX_MANIFEST_BYTES:",
        "            if False:",
        "store/test_store.py::test_a_snapshot_that_can_not_be_described_is_refused",
        NOT_RAISED,
    ),
    Mutant(
        "a name moves from what is expected",
        "store/catalog.py",
        "    if expected is not None and (current or ABSENT) != expected:",
        "    if False:",
        "store/test_catalog.py::test_a_name_moves_only_from_what_is_expected",
        NOT_RAISED,
    ),
    Mutant(
        "a digest is checked before it is a path",
        "store/backends/place.py",
        '    check_digest(digest, "block digest")\n',
        "",
        "store/test_store.py::test_a_digest_that_is_a_path_opens_nothing",
        r"raise StoreDamaged|BlockDamaged|NotADirectory|" + NOT_RAISED,
    ),
    Mutant(
        "a name is checked before it is a path",
        "store/catalog.py",
        'return f"{REFS}/{check_ref_name(name)}"',
        'return f"{REFS}/{name}"',
        "store/test_catalog.py::test_a_name_that_is_a_path_is_rejected",
        NOT_RAISED,
    ),
    Mutant(
        "a newer format is left alone",
        "store/store_file.py",
        "    if type(found) is int and found > newest:",
        "    if False:",
        "store/test_store_file.py::test_a_newer_format_is_rejected_unchanged",
        r"StoreDamaged",
    ),
    Mutant(
        "checksum of the index",
        "store/index.py",
        ' and zlib.crc32(content).to_bytes(4, "big") == stored:',
        ":",
        f"{FLIPPED}[index]",
        r"Error",
    ),
    Mutant(
        "nothing is unpickled",
        "models/weight_files.py",
        """    check_checkpoint(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location=device, weights_only=True)
""",
        """    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location=device, weights_only=False)
""",
        "store/exchange/test_weights_in.py::test_a_checkpoint_that_would_run_code_does_not",
        r"pickle|canary|" + NOT_RAISED,
    ),
    Mutant(
        "a link back to a folder that contains it is not followed",
        "datasets/layout/walk.py",
        "        if identity in ancestors:\n",
        "        if identity in ancestors[1:]:\n",
        "datasets/layout/test_walk.py::test_a_link_back_is_named_and_ends",
        r"num_images == 2|a link to a folder that contains it",
    ),
    Mutant(
        "images beside the splits are accounted for",
        "datasets/layout/recognise.py",
        "        if other.path not in chosen:\n",
        "        if other.path in chosen:\n",
        "datasets/layout/test_recognise.py::test_folders_beside_the_splits_are_named",
        r"holdout",
    ),
    Mutant(
        "folders nested in classes are refused",
        "datasets/layout/recognise.py",
        "    if reading.level is None:\n        _refuse_nested",
        "    if reading.level is not None:\n        _refuse_nested",
        "datasets/layout/test_recognise.py::test_nested_classes_are_refused_at_any_depth",
        NOT_RAISED,
    ),
    Mutant(
        "a class that train lacks is refused where it is read",
        "datasets/splits.py",
        '    check_classes(dataset, ("val", "test"))\n',
        "",
        "datasets/test_splits.py::test_a_class_that_train_lacks_matters_where_it_is_read",
        NOT_RAISED,
    ),
    Mutant(
        "samples are scaled by the bits that they use",
        "datasets/deep_samples.py",
        "    return max(MIN_BITS, needed + needed % 2)\n",
        "    return max(16, needed + needed % 2)\n",
        "datasets/test_deep_samples.py::test_gray_of_few_bits_is_not_black",
        r"array_equal",
    ),
    Mutant(
        "a drawing that another process made is not taken for one's own",
        "datasets/dataset.py",
        "        if _is_drawn(root, shapes):  # another process may have put its own drawing there meanwhile\n",
        "        if root.exists():\n",
        "datasets/test_dataset.py::test_a_drawing_that_another_process_makes_first_stays",
        r"== 8",
    ),
    Mutant(
        "a pixel cache without room is refused before it is filled",
        "datasets/pixel_cache.py",
        "        if needed_bytes > free_bytes:\n",
        "        if needed_bytes > 2 * free_bytes:\n",
        "datasets/test_pixel_cache.py::test_what_the_disk_has_no_room_for_is_refused_before",
        NOT_RAISED,
    ),
]


def copy_project(target: Path) -> None:
    """Copy what the tests need into a folder where it may be changed."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for path in (path for path in ROOT.iterdir() if path.is_file()):
        shutil.copy(path, target)


def run_tests(project: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    """Run tests on the package of this folder, up to the first that fails."""
    paths = [f"tests/{test}" for test in tests]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *paths]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAYSNAP_")}
    environment |= {"PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def misfit(mutant: Mutant) -> str | None:
    """Return why this mutant can't be tried on the code as it is; None if it can."""
    path, (test_file, _, test) = ROOT / "raysnap" / mutant.file, mutant.test.partition("::")
    if not path.is_file():
        return f"expected a file {path.relative_to(ROOT)}, found none"
    if (count := path.read_text().count(mutant.old)) != 1:
        return f"{mutant.file}: expected the line {mutant.old!r} once, found it {count} times"
    test_path, name = ROOT / "tests" / test_file, test.partition("[")[0]
    if not test_path.is_file() or f"def {name}(" not in test_path.read_text():
        return f"tests/{test_file}: expected a test {name}, found none"
    return None


def try_mutant(mutant: Mutant) -> str:
    """Return `caught`, or what happened instead."""
    with TemporaryDirectory(prefix="raysnap-mutant-") as folder:
        project = Path(folder)
        copy_project(project)
        if fault := misfit(mutant):
            return f"no mutant: {fault}"
        path = project / "raysnap" / mutant.file
        path.write_text(path.read_text().replace(mutant.old, mutant.new))
        ended = run_tests(project, [mutant.test])
    if ended.returncode == 0:
        return "survived"
    if ended.returncode != FAILED:
        return f"no verdict: pytest ended with {ended.returncode}: {ended.stdout[-400:]}{ended.stderr[-400:]}"
    if not re.search(mutant.reason, ended.stdout):
        return f"failed for another reason than {mutant.reason!r}: {ended.stdout[-1500:]}"
    return "caught"


def main(words: list[str]) -> int:
    """Try the mutants after making sure that the tests pass without them."""
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
