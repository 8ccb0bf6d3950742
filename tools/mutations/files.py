"""Files of weights that others wrote, and a search over candidates that fail."""

from __future__ import annotations

from tools.mutations.mutant import NOT_RAISED, Mutant

HOSTILE = "models/test_tensor_bytes.py::test_a_hostile_file_is_refused"

MUTANTS = [
    Mutant(
        "one bad candidate doesn't end a search",
        "search/engine/executor.py",
        "except Exception as error:  # noqa: BLE001 - one bad",
        "except ZeroDivisionError as error:  # one bad",
        "search/test_contest.py::test_a_block_that_raises_skips_its_candidates_only",
        r"NotImplementedError: a fault",
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
        "cap on the number of tensors",
        "models/tensor_bytes.py",
        "    if len(header) > MAX_TENSORS:",
        "    if False:",
        HOSTILE,
        NOT_RAISED,
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
]
