"""Texts are tokenised once, as their tokenizer does; what is no UTF-8 is a bad item."""

import shutil

import pytest
import torch

from raysnap.config.parts import ShapesConfig
from raysnap.datasets.dataset import Dataset, open_dataset, read_folder
from raysnap.datasets.disk_cache import clear_cache, find_caches
from raysnap.datasets.text.text_file import MAX_TEXT_BYTES
from raysnap.datasets.text.token_cache import TokenCache
from raysnap.datasets.text.tokenizer import PaddedTokenizer
from raysnap.datasets.text.tokenizing import Tokenizing
from raysnap.datasets.text.words import words_tokenizer
from raysnap.errors import DataError

FORM = Tokenizing("0" * 64, 24, 0)


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    return open_dataset("words-topic-a", tmp_path, ShapesConfig(num_train=12, num_val=4, num_test=4))


def open_cache(dataset: Dataset, form: Tokenizing = FORM) -> TokenCache:
    return TokenCache.with_tokenizer(dataset.splits["train"], dataset, form, lambda _: words_tokenizer())


def refuse(digest: str) -> bytes:
    raise AssertionError(f"{digest} is asked for again")


def test_cached_tokens_are_those_of_the_tokenizer(dataset):
    cache = open_cache(dataset)
    assert cache.num_missing(range(12)) == 12
    tokens = cache.read(range(12))
    texts = [item.path.read_text() for item in dataset.splits["train"]]
    assert torch.equal(tokens, PaddedTokenizer(words_tokenizer(), 24, 0)(texts))
    assert (tokens.dtype, tokens.shape, cache.num_decoded) == (torch.int64, (12, 24), 12)


def test_texts_are_tokenised_once(dataset):
    before = open_cache(dataset).read(range(12))
    again = TokenCache.with_tokenizer(dataset.splits["train"], dataset, FORM, refuse)
    assert torch.equal(again.read([3, 1]), before[[3, 1]])
    assert again.num_decoded == 0


@pytest.mark.parametrize("form", [FORM._replace(max_length=16), FORM._replace(tokenizer="0" * 63 + "1")])
def test_another_length_or_tokenizer_is_another_cache(dataset, form):
    open_cache(dataset).load(range(12))
    other = open_cache(dataset, form)
    assert other.num_missing(range(12)) == 12
    assert other.read([0]).shape == (1, form.max_length)


def test_a_long_text_is_cut_with_its_end_mark(dataset):
    path = dataset.splits["train"][0].path
    path.write_text("soup " * 100)
    tokens = open_cache(read_folder(dataset.root)).read([0])[0].tolist()
    assert (tokens[0], tokens[-1], len(set(tokens[1:-1]))) == (2, 3, 1)


def test_a_byte_order_mark_is_removed(dataset):
    first, second = (item.path for item in dataset.splits["train"][:2])
    first.write_bytes(b"\xef\xbb\xbfthe soup")
    second.write_bytes(b"the soup")
    tokens = open_cache(read_folder(dataset.root)).read([0, 1])
    assert torch.equal(tokens[0], tokens[1])


def test_what_is_no_utf8_is_bad_counted_and_named(dataset):
    path = dataset.splits["train"][2].path
    path.write_bytes("café".encode("latin-1"))
    cache = open_cache(read_folder(dataset.root))
    assert cache.load(range(12)) == [0, 1, *range(3, 12)]
    assert list(cache.bad) == [2]
    assert cache.bad[2].startswith(f"{path}: expected UTF-8, found")
    with pytest.raises(DataError, match=r"expected UTF-8.*read only what load\(\) returns"):
        cache.read([2])


def test_a_text_of_many_megabytes_is_bad(dataset):
    path = dataset.splits["train"][2].path
    path.write_bytes(b"soup " * (MAX_TEXT_BYTES // 5 + 1))
    cache = open_cache(read_folder(dataset.root))
    cache.load([2])
    assert cache.bad[2] == f"{path}: expected a text of at most 16 MiB, found more"


def test_what_another_process_tokenised_is_not_tokenised_again(dataset):
    def load_late(digest: str) -> bytes:
        open_cache(dataset).load(range(12))
        return words_tokenizer()

    cache = TokenCache.with_tokenizer(dataset.splits["train"], dataset, FORM, load_late)
    assert cache.load(range(12)) == list(range(12)) and cache.num_decoded == 0


def test_many_bad_texts_are_an_error(dataset):
    for item in dataset.splits["train"][:3]:
        item.path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="3 of 12 texts are bad, expected at most 1"):
        open_cache(read_folder(dataset.root)).load(range(12))


def test_a_tokenizer_that_is_none_is_refused(dataset):
    cache = TokenCache.with_tokenizer(dataset.splits["train"], dataset, FORM, lambda _: b"{}")
    with pytest.raises(DataError, match=r"expected a tokenizer\.json, found what tokenizers rejects"):
        cache.load([0])


def test_token_caches_are_listed_and_cleared(dataset):
    open_cache(dataset).load(range(12))
    (found,) = find_caches([dataset.root], with_others=False)
    assert found.kind == "tokens"
    clear_cache(found)
    assert open_cache(dataset).num_missing(range(12)) == 12


def test_a_dataset_that_cannot_be_written_is_cached_elsewhere(dataset):
    shutil.rmtree(dataset.root / ".raysnap", ignore_errors=True)
    (dataset.root / ".raysnap").touch()
    cache = open_cache(dataset)
    assert dataset.root not in cache.directory.parents
    assert len(cache.load(range(12))) == 12
