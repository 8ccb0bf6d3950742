"""The tokenizer belongs to the weights: it is stored once, kept, checked, and goes in and out with them."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from blake3 import blake3

from raysnap.datasets.text.tokenizer import PaddedTokenizer
from raysnap.datasets.text.words import words_tokenizer
from raysnap.errors import BlockDamaged, StoreError, WeightsError
from raysnap.models.blocks import random_tensors
from raysnap.models.tensor_bytes import canonical_block_bytes
from raysnap.store.exchange.weights_in import InputOptions, add_path, import_snapshot
from raysnap.store.exchange.weights_out import export_snapshot
from raysnap.store.preprocessing import TOKENIZER_TENSOR, TextPreprocessing, TokenizerEntry, tokenizer_object
from raysnap.store.store import Store
from tests.support import format_reader
from tests.support.texts import BERT, OPTIONS, text_preprocessing

BLOCKS = random_tensors(BERT, 2, 0)


def put(store: Store, how: TextPreprocessing | None = None, name: str = "bert"):
    how = how or text_preprocessing(store)
    return store.put_snapshot(architecture=BERT, blocks=BLOCKS, num_classes=2, preprocessing=how, name=name).manifest


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.open(tmp_path / "store", create=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Return a folder into which transformers saved a model and its tokenizer."""
    import transformers

    folder = tmp_path_factory.mktemp("saved")
    config = transformers.BertConfig(**OPTIONS, num_labels=2)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    source = folder / "words.json"
    source.write_bytes(words_tokenizer())
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(source), pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=48
    )
    fast.save_pretrained(folder)
    source.unlink()
    return folder


def test_a_tokenizer_is_one_canonical_block():
    content = words_tokenizer()
    entry, stored = tokenizer_object(content)
    tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    assert stored == canonical_block_bytes({TOKENIZER_TENSOR: tensor})
    assert entry == TokenizerEntry(digest=blake3(stored).hexdigest(), num_bytes=len(stored))


def test_a_tokenizer_is_stored_once_and_read_as_it_was(store):
    entries = {store.put_tokenizer(words_tokenizer()) for _ in range(2)}
    assert len(entries) == store.stats()["num_blocks"] == 1
    assert store.read_tokenizer(entries.pop().digest) == words_tokenizer()


def test_the_format_says_all_that_a_reader_needs(store):
    written = put(store)
    manifest, tensors = format_reader.read_snapshot(store.path, "bert")
    assert manifest["format"] == 2
    how = manifest["preprocessing"]
    assert set(how) == {"kind", "tokenizer", "max_length", "padding"}
    (tokenizer,) = format_reader.read_block(store.path, **how["tokenizer"]).values()
    assert tokenizer == ("U8", [len(words_tokenizer())], words_tokenizer())
    assert set(tensors) == {name for _, block in BLOCKS for name in block}
    assert store.manifest("bert") == written


def test_gc_keeps_the_tokenizer_while_a_snapshot_needs_it(store):
    digest = put(store).preprocessing.tokenizer.digest
    assert store.gc(0)["num_blocks_deleted"] == 0
    assert store.snapshots_with([digest])[digest] == [store.resolve("bert")]
    store.remove_snapshot("bert")
    assert store.gc(0)["num_blocks_deleted"] == len(BLOCKS) + 1


def test_a_snapshot_without_its_tokenizer_is_not_stored(store):
    how = TextPreprocessing(tokenizer=tokenizer_object(words_tokenizer())[0], max_length=16)
    with pytest.raises(StoreError, match=r"\(tokenizer\): expected it in .* found it gone"):
        put(store, how)
    assert store.summaries() == []


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_verify_finds_a_damaged_tokenizer(store, damage):
    manifest = put(store)
    digest = manifest.preprocessing.tokenizer.digest
    path = store.path / "objects" / digest[:2] / digest
    path.chmod(0o644)
    content = path.read_bytes()
    path.unlink()
    if damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (found,) = store.verify()["damaged"]
    assert (found["block"], found["snapshots"]) == (digest, [manifest.id])
    with pytest.raises(BlockDamaged, match="block damaged"):
        store.read_tokenizer(digest)


def test_a_block_of_weights_is_no_tokenizer(store):
    digest = store.put_block(BLOCKS[0][1]).digest
    with pytest.raises(BlockDamaged, match="expected a tokenizer, found another block"):
        store.read_tokenizer(digest)


def test_the_tokenizer_of_a_folder_comes_with_its_weights(tmp_path, saved):
    added = add_path(tmp_path / "store", saved, architecture=BERT)
    store = Store.open(tmp_path / "store")
    how = added.written.manifest.preprocessing
    assert (how.kind, how.max_length, how.padding, added.remarks) == ("text", 48, 0, ())
    assert store.read_tokenizer(how.tokenizer.digest) == (saved / "tokenizer.json").read_bytes()


def transformers_tokens(folder: Path, text: str, length: int) -> list[int]:
    import transformers

    own = transformers.AutoTokenizer.from_pretrained(folder)
    return own(text, padding="max_length", truncation=True, max_length=length)["input_ids"]


def test_texts_get_the_tokens_that_transformers_gives(saved):
    import transformers

    texts = ["Yesterday ANN told bob: the soup was great.", "zebra " * 40, "", "naïve café"]
    fast = transformers.AutoTokenizer.from_pretrained(saved)
    own = fast(texts, padding="max_length", truncation=True, max_length=20, return_tensors="pt")["input_ids"]
    assert torch.equal(PaddedTokenizer((saved / "tokenizer.json").read_bytes(), 20, 0)(texts), own)


@pytest.mark.parametrize("lower", [True, False])
def test_settings_beside_a_tokenizer_have_the_last_word(tmp_path, saved, lower):
    folder = without(saved, tmp_path / "set")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower, "pad_token": "[PAD]", "strip_accents": None}
    marks = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "tokenize_chinese_chars": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | marks))
    (folder / "tokenizer.json").write_bytes(words_tokenizer())
    manifest = add_path(tmp_path / "store", folder, architecture=BERT).written.manifest
    content = Store.open(tmp_path / "store").read_tokenizer(manifest.preprocessing.tokenizer.digest)
    unknown, known = PaddedTokenizer(content, 6, 0)(["The Soup", "the soup"]).tolist()
    assert (unknown == known) is lower
    assert unknown == transformers_tokens(folder, "The Soup", 6)


def test_code_beside_a_tokenizer_does_not_run(tmp_path, saved):
    folder, canary = without(saved, tmp_path / "own"), tmp_path / "canary"
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    (folder / "own.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass OwnTokenizer: pass\n")
    with suppress(WeightsError):  # transformers may ask to trust it, or take a class of its own
        add_path(tmp_path / "store", folder, architecture=BERT)
    assert not canary.exists()


def test_an_export_is_imported_with_its_tokenizer(tmp_path, store):
    manifest = put(store)
    export_snapshot(store, "bert", tmp_path / "out" / "bert.safetensors")
    other = Store.open(tmp_path / "other", create=True)
    copy = import_snapshot(other, tmp_path / "out" / "bert.safetensors", BERT).manifest
    assert copy.id == manifest.id
    assert copy.preprocessing.tokenizer == manifest.preprocessing.tokenizer
    assert other.verify()["ok"]


def without(saved: Path, folder: Path, *names: str) -> Path:
    copy = shutil.copytree(saved, folder)
    for name in names:
        (copy / name).unlink()
    return copy


def test_weights_without_a_tokenizer_are_refused(tmp_path, saved):
    folder = without(saved, tmp_path / "bare", "tokenizer.json")
    with pytest.raises(
        WeightsError, match=r"expected a tokenizer\.json with the weights, found none; give --tokenizer"
    ):
        add_path(tmp_path / "store", folder, architecture=BERT)
    (folder / "vocab.txt").touch()
    with pytest.raises(WeightsError, match=r"expected tokenizer\.json, found vocab\.txt; `AutoTokenizer"):
        add_path(tmp_path / "store", folder, architecture=BERT)
    assert not (tmp_path / "store").exists()
    options = InputOptions(tokenizer=saved / "tokenizer.json", image_size=32)
    added = add_path(tmp_path / "store", folder, architecture=BERT, options=options)
    assert added.written.manifest.preprocessing.max_length == 32


def test_another_models_tokenizer_is_refused(tmp_path, saved):
    folder = without(saved, tmp_path / "other")
    content = words_tokenizer().replace(b'"yesterday": 194', b'"yesterday": 900')
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(WeightsError, match="expected tokens below the weights' vocab_size 195, found 900"):
        add_path(tmp_path / "store", folder, architecture=BERT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (InputOptions(image_size=65), "expected at most the 64 tokens"),
        (InputOptions(resize=("squash", 64)), "expected no options of images, found weights that see texts"),
    ],
)
def test_options_that_texts_do_not_take_are_refused(tmp_path, saved, options, message):
    with pytest.raises(WeightsError, match=message):
        add_path(tmp_path / "store", saved, architecture=BERT, options=options)
