"""Datasets: what is read, kept and refused."""

from __future__ import annotations

from tools.mutations.mutant import NOT_RAISED, Mutant

MUTANTS = [
    Mutant(
        "a cache evicts nothing that is in use",
        "datasets/disk_cache.py",
        "if not _is_held(usage.path)), None)",
        "if True), None)",
        "datasets/test_disk_cache.py::test_a_held_entry_stays_until_it_is_let_go",
        r"assert not True",
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
