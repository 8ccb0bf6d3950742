"""Searches: what makes a question another one, which answers are kept, and what is read before the search begins."""

from __future__ import annotations

from tools.mutations.mutant import Mutant

ANSWERS = "search/test_answers.py::"
AHEAD = "search/test_read_ahead.py::"
ANOTHER_MACHINE = f"{ANSWERS}test_another_build_or_machine_is_another_question"

MUTANTS = [
    Mutant(
        "a kept answer knows the snapshots that were left out",
        "search/answers.py",
        "            field.summaries,\n",
        "",
        f"{ANSWERS}test_names_of_snapshots_that_were_left_out_count",
        r"a second round may try it",
    ),
    Mutant(
        "a kept answer knows the files of the dataset",
        "search/answers.py",
        "[cache.directory.name for cache in drawn.caches.values()],",
        "[],",
        f"{ANSWERS}test_changed_images_are_another_question",
        r"assert 2 == 3",
    ),
    Mutant(
        "a kept answer knows what computes",
        "search/answers.py",
        "return files, [package_version(library) for library in LIBRARIES]",
        "return files, []",
        ANOTHER_MACHINE,
        r"assert 3 == 4",
    ),
    Mutant(
        "a kept answer knows the environment of what computes",
        "search/answers.py",
        "gpus, variables\n",
        "gpus, []\n",
        ANOTHER_MACHINE,
        r"assert 3 == 4",
    ),
    Mutant(
        "a kept answer knows the records",
        "search/answers.py",
        "field.records and (field.records.digests_R32.tobytes(), field.store.lineages()),\n",
        "None,\n",
        f"{ANSWERS}test_new_records_are_another_question_unless_unused",
        r"assert AnswerFile\(.*\) != AnswerFile",
    ),
    Mutant(
        "an answer under a time budget is not kept",
        "search/answers.py",
        "if not options.feature_cache_bytes or options.time_budget_s is not None:",
        "if not options.feature_cache_bytes:",
        f"{ANSWERS}test_answers_that_depend_on_time_are_not_kept",
        r"is None",
    ),
    Mutant(
        "an answer without some snapshots is not kept",
        "search/answers.py",
        "        if result.skipped:\n            return\n",
        "",
        f"{ANSWERS}test_an_answer_without_some_snapshots_is_not_kept",
        r"is None",
    ),
    Mutant(
        "a kept answer is verified",
        "search/answers.py",
        'if digest.decode("ascii", "replace") != blake3(content).hexdigest():',
        "if not digest:",
        f"{ANSWERS}test_a_damaged_answer_is_found_anew",
        r"JSONDecodeError|is None",
    ),
    Mutant(
        "blocks are read ahead within the bound on memory",
        "search/read_ahead.py",
        "options.memory_bytes is not None or options.time_budget_s",
        "options.time_budget_s",
        f"{AHEAD}test_nothing_is_read_where_a_bound_forbids_it",
        r"assert not",
    ),
    Mutant(
        "blocks are read ahead within the room for them",
        "search/read_ahead.py",
        "if room_bytes < 0 or is_over():",
        "if is_over():",
        f"{AHEAD}test_reading_ends_with_the_import_and_with_the_room",
        r"assert \[",
    ),
    Mutant(
        "blocks read ahead are given once",
        "search/read_ahead.py",
        "self._contents.pop(digest, None)",
        "self._contents.get(digest)",
        f"{AHEAD}test_what_was_read_is_given_once_and_then_read_again",
        r"assert \d+ == \(?3",
    ),
]
