"""The built-in texts: seeded, balanced, of one vocabulary, and about what their names say."""

import pytest

from raysnap.config.parts import ShapesConfig
from raysnap.datasets.dataset import open_dataset
from raysnap.datasets.text.tokenizer import PaddedTokenizer
from raysnap.datasets.text.words import TASKS, vocabulary_of_words, words_tokenizer, write_text

SIZE = ShapesConfig(num_train=48, num_val=4, num_test=4)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_written_balanced_and_read_as_texts(tmp_path, name):
    dataset = open_dataset(name, tmp_path, SIZE)
    assert dataset.kind == "texts"
    assert dataset.classes == tuple(sorted(TASKS[name]))
    assert {split: len(items) for split, items in dataset.splits.items()} == {"train": 48, "val": 4, "test": 4}
    labels = [item.label for item in dataset.splits["train"]]
    assert set(labels) == set(range(len(dataset.classes)))
    assert len({labels.count(label) for label in labels}) == 1


def test_equal_seeds_write_equal_texts_and_others_do_not(tmp_path):
    digests = [open_dataset("words-topic-a", tmp_path / str(n), SIZE).digest for n in range(2)]
    other = open_dataset("words-topic-a", tmp_path / "2", SIZE.model_copy(update={"seed": 1})).digest
    assert digests[0] == digests[1] != other


def test_another_size_is_written_beside_the_first(tmp_path):
    first = open_dataset("words-order-a", tmp_path, SIZE)
    other = open_dataset("words-order-a", tmp_path, SIZE.model_copy(update={"num_train": 60}))
    assert (first.name, len(first.splits["train"])) == ("words-order-a", 48)
    assert (other.name, len(other.splits["train"])) == ("words-order-a", 60)
    assert first.root != other.root


@pytest.mark.parametrize(
    ("name", "class_name", "words"),
    [
        ("words-negation-a", "denied", {"not", "never", "hardly"}),
        (
            "words-sentiment-a",
            "negative",
            {"awful", "dreadful", "boring", "terrible", "nasty", "poor", "horrid", "dull"},
        ),
    ],
)
def test_the_factor_decides_the_class(name, class_name, words):
    for index in range(60):
        found, text = write_text(name, "train", index, seed=3)
        assert bool(words & set(text.split())) == (found == class_name), text


def test_the_tokenizer_knows_all_words_and_letters_of_others():
    content = words_tokenizer()
    tokenize = PaddedTokenizer(content, 32, padding=0)
    texts = [write_text(name, "val", index, 0)[1] for name in TASKS for index in range(8)]
    ids = tokenize(texts)
    vocabulary = vocabulary_of_words()
    assert vocabulary.index("[UNK]") not in ids
    for text, row in zip(texts, ids.tolist(), strict=True):
        tokens = [vocabulary[number] for number in row if number]
        assert tokens == ["[CLS]", *text.split(), "[SEP]"]
    other = [vocabulary[number] for number in tokenize(["Zebra!"])[0].tolist() if number]
    assert other == ["[CLS]", "z", "##e", "##b", "##r", "##a", "!", "[SEP]"]
