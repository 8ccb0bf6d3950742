"""Model families, weights that come in, and the checkpoints that they come in."""

from __future__ import annotations

from tools.mutations.mutant import NOT_RAISED, OTHER_WORDS, Mutant

WEIGHTS_IN, WEIGHT_FILES = "store/exchange/weights_in.py", "models/weight_files.py"
IN_TESTS, TEXT_TESTS = "store/exchange/test_weights_in.py", "store/test_texts.py"
UNFIT = f"{IN_TESTS}::test_unfit_weights_are_rejected_before_any_write"
ADAPTERS, ADAPTER_TEST = (
    "models/checkpoints/adapters.py",
    "models/checkpoints/test_adapters.py::test_what_cannot_be_merged_is_refused",
)
DISTRIBUTED, CHUNK_TEST = (
    "models/checkpoints/distributed.py",
    "models/checkpoints/test_distributed.py::test_chunks_that_are_not_the_tensor_are_refused",
)

MUTANTS = [
    # Families
    Mutant(
        "weights are exactly those of the model",
        "models/families/family.py",
        "    model.load_state_dict(tensors, strict=True, assign=True)",
        "    model.load_state_dict(tensors, strict=False, assign=True)",
        "models/families/test_family.py::test_weights_of_another_model_are_rejected",
        NOT_RAISED,
    ),
    Mutant(
        "blocks share no tensor",
        "models/families/cutting.py",
        "    left = [cut for cut in cuts if not any(start < cut.start <= end for start, end in shared.values())]",
        "    left = list(cuts)",
        "models/families/test_timm.py::test_what_cannot_be_built_is_refused",
        OTHER_WORDS,
    ),
    Mutant(
        "a size that takes another path is refused",
        "models/families/family.py",
        "    if not cut.calls or item_shape(text) == item_shape(text, image_size):",
        "    if True:",
        "models/families/test_timm.py::test_a_size_that_takes_another_path_is_refused",
        OTHER_WORDS + "|RuntimeError|AssertionError",
    ),
    Mutant(
        "a configuration says nothing of the head",
        "models/families/hf.py",
        "    if wrong := sorted(_NOT_OF_A_NETWORK & options.keys()):",
        "    if wrong := sorted(set()):",
        "models/families/test_hf.py::test_what_cannot_be_built_is_refused",
        OTHER_WORDS,
    ),
    Mutant(
        "padding of texts is masked",
        "models/families/hf.py",
        "    mask = carry(items != _padding(model.config))",
        "    mask = items != _padding(model.config)",
        "models/families/test_hf.py::test_texts_with_padding_need_their_mask",
        r"assert|ArchitectureError",
    ),
    # Weights that come in
    Mutant(
        "a taken name is seen before any write",
        WEIGHTS_IN,
        "        if current != found:",
        "        if False:",
        f"{IN_TESTS}::test_a_taken_name_is_rejected_before_any_write",
        OTHER_WORDS,
    ),
    Mutant(
        "a name that was given meanwhile stays",
        WEIGHTS_IN,
        "        store.set_ref(name, written.manifest.id, expected=ABSENT)",
        "        store.set_ref(name, written.manifest.id)",
        f"{IN_TESTS}::test_a_name_given_while_weights_come_in_stays",
        NOT_RAISED,
    ),
    Mutant(
        "a store begins once its weights were read",
        WEIGHTS_IN,
        "    weights = _read(base_store, path, architecture, entry, base)\n",
        "    Store.open(store_dir, create=True)\n    weights = _read(base_store, path, architecture, entry, base)\n",
        f"{TEXT_TESTS}::test_weights_without_a_tokenizer_are_refused",
        r"assert not True",
    ),
    Mutant(
        "a base has the architecture of what came of it",
        WEIGHTS_IN,
        "    if base.architecture != architecture:",
        "    if False:",
        f"{IN_TESTS}::test_a_base_of_another_architecture_is_refused",
        r"ValueError|" + NOT_RAISED,
    ),
    Mutant(
        "weights are finite",
        WEIGHT_FILES,
        " and not bool(torch.isfinite(tensor.float()).all()):",
        " and False:",
        UNFIT,
        NOT_RAISED,
    ),
    Mutant(
        "a tensor's values are in its file",
        WEIGHT_FILES,
        "        if value.layout != torch.strided or value.nbytes > file_bytes:",
        "        if value.layout != torch.strided:",
        f"{IN_TESTS}::test_a_tensor_larger_than_its_file_is_refused_by_its_name",
        OTHER_WORDS,
    ),
    Mutant(
        "a tokenizer is that of its weights",
        "datasets/text/tokenizer_file.py",
        "    if last >= vocab_size:",
        "    if False:",
        f"{TEXT_TESTS}::test_another_models_tokenizer_is_refused",
        NOT_RAISED,
    ),
    Mutant(
        "code beside a tokenizer is not trusted",
        "datasets/text/tokenizer_file.py",
        "trust_remote_code=False",
        "trust_remote_code=True",
        f"{TEXT_TESTS}::test_code_beside_a_tokenizer_does_not_run",
        r"assert not|" + NOT_RAISED,
    ),
    Mutant(
        "texts are no longer than their weights take",
        WEIGHTS_IN,
        "        if facts.longest is not None and self.image_size > facts.longest:",
        "        if False:",
        f"{TEXT_TESTS}::test_options_that_texts_do_not_take_are_refused",
        NOT_RAISED,
    ),
    Mutant(
        "an export replaces a file only if asked",
        "store/exchange/weights_out.py",
        "        if not overwrite and path.exists() and not _is_card_of(path, to.name):",
        "        if False:",
        f"{IN_TESTS}::test_an_export_replaces_a_file_only_if_asked",
        NOT_RAISED,
    ),
    # Adapters and checkpoints of trainers
    Mutant(
        "an adapter of another kind is refused",
        ADAPTERS,
        '    if kind != "LORA":',
        "    if False:",
        ADAPTER_TEST,
        OTHER_WORDS,
    ),
    Mutant(
        "an adapter that is more than a product is refused",
        ADAPTERS,
        "    if more is not None:",
        "    if False:",
        ADAPTER_TEST,
        OTHER_WORDS,
    ),
    Mutant(
        "an adapter of a changed base is refused",
        ADAPTERS,
        "    if start not in _PLAIN_STARTS:",
        "    if False:",
        ADAPTER_TEST,
        OTHER_WORDS,
    ),
    Mutant(
        "a pattern of an adapter can't take for ever",
        ADAPTERS,
        "        if not _PLAIN_PATTERN.fullmatch(pattern):",
        "        if False:",
        ADAPTER_TEST,
        OTHER_WORDS,
    ),
    Mutant(
        "a tensor is no larger than its storage",
        "models/checkpoints/inert_pickles.py",
        "    if last >= storage.num_values or num_values > storage.num_values:",
        "    if last > storage.num_values:",
        "models/checkpoints/test_inert_pickles.py::test_a_tensor_beyond_its_storage_is_refused",
        NOT_RAISED,
    ),
    Mutant(
        "a storage is in its file in full",
        "models/checkpoints/inert_pickles.py",
        "            if file.tell() + num_bytes > end:",
        "            if False:",
        "models/checkpoints/test_inert_pickles.py::test_a_file_that_is_cut_off_is_refused",
        NOT_RAISED,
    ),
    Mutant(
        "chunks of a folder lie beside its index",
        DISTRIBUTED,
        "        if not isinstance(name, str) or Path(name).name != name:",
        "        if not isinstance(name, str):",
        CHUNK_TEST,
        NOT_RAISED,
    ),
    Mutant(
        "chunks are the whole of their tensor",
        DISTRIBUTED,
        "        if sum(math.prod(chunk.shape) for chunk in found) != math.prod(shape) or not all(",
        "        if not all(",
        CHUNK_TEST,
        NOT_RAISED,
    ),
    Mutant(
        "chunks do not overlap",
        DISTRIBUTED,
        " or any(_overlap(one, other) for one, other in combinations(found, 2)):",
        ":",
        CHUNK_TEST,
        NOT_RAISED,
    ),
]
