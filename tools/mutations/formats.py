"""Format 2 of a store, records of fine-tunes and their cache."""

from __future__ import annotations

from tools.mutations.mutant import NOT_RAISED, OTHER_WORDS, Mutant

MANIFEST, RECORDS, STORE_FILE = "store/manifest.py", "store/records.py", "store/store_file.py"
FORMAT_TESTS, RECORD_TESTS = "store/test_store_file.py", "store/test_records.py"
POWER = "faults/test_store_crashes.py"
DAMAGED = "faults/test_store_damage.py::test_every_flipped_bit_is_found"

MUTANTS = [
    Mutant(
        "a store says format 2 before its first manifest does",
        "store/publishing.py",
        "    raise_format(place, manifest.format)\n    for _ in range(MAX_ATTEMPTS):\n",
        "    for _ in range(MAX_ATTEMPTS):\n",
        f"{FORMAT_TESTS}::test_format_2_is_written_before_its_first_manifest",
        r"assert b",
    ),
    Mutant(
        "fsync of a format that a killed writer raised",
        STORE_FILE,
        "        place.sync(STORE_FILE)\n        return\n",
        "        return\n",
        f"{POWER}::test_putting_again_syncs_what_a_killed_writer_left[first of format 2]",
        r"assert not newest or|assert \(?not",
    ),
    Mutant(
        "a store's file is that of its format, byte for byte",
        STORE_FILE,
        "    if raw != STORE_CONTENTS[found]:",
        "    if False:",
        f"{FORMAT_TESTS}::test_a_damaged_store_file_is_damage",
        NOT_RAISED,
    ),
    Mutant(
        "a manifest is of the oldest format that can say it",
        MANIFEST,
        "        if manifest.format != expected:",
        "        if False:",
        "store/test_manifest.py::test_a_manifest_is_of_the_oldest_format_that_can_say_it",
        NOT_RAISED,
    ),
    Mutant(
        "a manifest has one spelling",
        MANIFEST,
        "    if not is_canonical:",
        "    if False:",
        "faults/test_hostile_files.py::test_a_hostile_manifest_is_refused_named_and_harms_no_other[blanks]",
        NOT_RAISED,
    ),
    Mutant(
        "an architecture has one spelling",
        MANIFEST,
        "    if str(parsed) != architecture:",
        "    if False:",
        "store/test_manifest.py::test_a_manifest_is_of_the_oldest_format_that_can_say_it",
        NOT_RAISED,
    ),
    Mutant(
        "format 1 is written as it always was",
        "store/preprocessing.py",
        " if not self.is_narrow else {key: document[key] for key in document if key not in _WIDER}",
        "",
        "laws/test_old_stores.py::test_old_manifest_is_written_byte_for_byte",
        r"assert b|StoreDamaged",
    ),
    Mutant(
        "gc knows manifests of format 2",
        "store/garbage.py",
        "for number in FORMATS)",
        "for number in FORMATS[:1])",
        f"{FORMAT_TESTS}::test_a_store_gets_format_2_with_what_format_1_can_not_say",
        r"found something else",
    ),
    Mutant(
        "a snapshot of texts has its tokenizer",
        MANIFEST,
        "        return (*self.blocks, how.tokenizer) if isinstance(how, TextPreprocessing) else self.blocks",
        "        return self.blocks",
        "store/test_texts.py::test_a_snapshot_without_its_tokenizer_is_not_stored",
        OTHER_WORDS,
    ),
    # Records
    Mutant(
        "digest of a record",
        RECORDS,
        '    if found != digest:\n        raise StoreDamaged(f"{where}: damaged',
        '    if False:\n        raise StoreDamaged(f"{where}: damaged',
        f"{RECORD_TESTS}::test_a_damaged_record_is_left_out_and_named",
        r"assert \[",
    ),
    Mutant(
        "a record has one spelling",
        RECORDS,
        "    if not is_canonical:",
        "    if False:",
        f"{RECORD_TESTS}::test_a_record_has_one_spelling",
        NOT_RAISED,
    ),
    Mutant(
        "cap on the bytes of a record",
        RECORDS,
        "    if len(content) > MAX_RECORD_BYTES:",
        "    if False:",
        f"{RECORD_TESTS}::test_a_record_too_large_to_be_read_is_not_written",
        NOT_RAISED,
    ),
    Mutant(
        "verify looks at records",
        "store/audit.py",
        " + _check_records(place, unreadable) + ",
        " + ",
        f"{DAMAGED}[record]",
        r"assert not True",
    ),
    Mutant(
        "one damaged record leaves the others",
        RECORDS,
        '        except (StoreDamaged, StoreUnreadable) as error:\n            logger.warning("a record is left out',
        '        except StoreUnreadable as error:\n            logger.warning("a record is left out',
        f"{RECORD_TESTS}::test_a_damaged_record_is_left_out_and_named",
        r"StoreDamaged",
    ),
    Mutant(
        "checksum of the cache of records",
        RECORDS,
        "        if _crc_of(raw[:-CRC_BYTES]) != raw[-CRC_BYTES:]:",
        "        if False:",
        f"{DAMAGED}[records.cache]",
        r"Error|assert",
    ),
    Mutant(
        "a cache of records of another version is none",
        RECORDS,
        '            if names["version"] != CACHE_VERSION:',
        "            if False:",
        f"{RECORD_TESTS}::test_a_cache_of_another_version_is_rebuilt",
        r"assert",
    ),
    Mutant(
        "a cache of records settles when its clock moved on",
        RECORDS,
        "    is_settled = changed_ns is not None and place.now_ns() - changed_ns > SETTLED_NS",
        "    is_settled = changed_ns is not None",
        f"{RECORD_TESTS}::test_what_is_recorded_within_a_tick_of_the_clock_is_seen",
        r"assert 1 == 2",
    ),
]
