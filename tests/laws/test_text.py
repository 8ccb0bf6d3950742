"""Texts obey the laws of images: what blocks compute, what searches share, and what a fine-tune changes."""

import numpy as np
import pytest
import torch

from raysnap.config.search_options import SearchOptions
from raysnap.datasets.dataset import open_dataset
from raysnap.datasets.text.tokenizer import PaddedTokenizer
from raysnap.datasets.text.words import words_tokenizer
from raysnap.errors import UsageError
from raysnap.jobs.predict import evaluate, predict
from raysnap.models.blocks import build_model
from raysnap.search import search
from raysnap.search.candidates import find_candidates
from raysnap.search.plan.tree import build_tree
from tests.support.search_families import lines
from tests.support.search_stores import one_thread, put, random_blocks
from tests.support.texts import BERT, SIZES, TOKENS, synthetic_store, train_bert

DATA = "words-topic-b"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("texts")


@pytest.fixture(scope="module")
def store(folder):
    """Return a store of synthetic snapshots; tests add nothing to it."""
    return synthetic_store(folder)


@pytest.fixture(scope="module")
def trained(folder):
    """Return a store with a BERT that knows topics, one that knows sentiments, and one that began as the first."""
    store = synthetic_store(folder / "trained", num_snapshots=1)
    topic = train_bert(store, folder, "words-topic-a")
    sentiment = train_bert(store, folder, "words-sentiment-a")
    later = train_bert(store, folder, "words-negation-a", base=topic, retrain=1)
    return store, {"topic": topic, "sentiment": sentiment, "later": later}


@pytest.fixture(scope="module")
def find(store, folder):
    """Return a search of the synthetic snapshots; equal searches run once."""
    found = {}

    def run(method, **keywords):
        key = (method, *sorted(keywords.items()))
        if key not in found:
            options = SearchOptions.of(None, {"method": method, "num_train": 32, "num_test": 16, **keywords})
            found[key] = search(store, DATA, options, data_dir=folder / "data", shapes=SIZES)
        return found[key]

    return run


def texts_of(folder, split="test"):
    return open_dataset(DATA, folder / "data", SIZES).splits[split]


def test_blocks_compose_to_the_models_own_forward(store, folder):
    manifest = store.manifests()[0]
    blocks = build_model(BERT, [store.read_block(block.digest) for block in manifest.blocks])
    texts = [item.path.read_text() for item in texts_of(folder)]
    tokens = PaddedTokenizer(words_tokenizer(), TOKENS, 0)([*texts, ""])
    model = store.load_model(manifest.id)
    with torch.inference_mode():
        own = model(input_ids=tokens, attention_mask=(tokens != 0).long()).logits
        assert torch.equal(blocks(tokens), own)


def test_sharing_changes_no_score(find):
    assert lines(find("shared")) == lines(find("baseline"))


def test_sharing_changes_no_rung(find):
    assert lines(find("alsatian")) == lines(find("shift"))


@pytest.mark.parametrize("method", ["nested", "auto"])
def test_the_other_methods_rank_all_texts_snapshots(find, store, method):
    assert {line.snapshot for line in find(method).ranking} == {one.id for one in store.manifests()}


def test_each_block_runs_once_per_text(store, find):
    tree = build_tree(find_candidates(store, None, None), sharing=True)
    assert len(tree.nodes) < 5 * len(tree.candidates), "snapshots share blocks"
    assert find("shared").work["block_item_passes"] == 48 * len(tree.nodes)


def test_a_budget_bounds_activations_and_keeps_the_ranking(find):
    shared = find("shared")
    tight = find("shared", budget_bytes=shared.peak_activation_bytes // 2)
    assert tight.peak_activation_bytes <= shared.peak_activation_bytes // 2
    assert lines(tight) == lines(shared)


def test_a_second_search_computes_nothing(find, store, folder):
    cached = {"feature_cache_bytes": 10**8, "seed": 1}
    first = find("shared", **cached)
    again = search(
        store, DATA, data_dir=folder / "data", shapes=SIZES, method="shared", num_train=32, num_test=16, **cached
    )
    assert first.work["block_item_passes"] > again.work["block_item_passes"] == 0
    assert lines(again) == lines(first)


def test_snapshots_of_images_are_no_candidates(folder, tmp_path):
    store = synthetic_store(tmp_path, num_snapshots=2)
    put(store, "picture", random_blocks("resnet18", 0), "resnet18")
    keywords = {"data_dir": folder / "data", "shapes": SIZES, "method": "shared", "num_train": 16, "num_test": 8}
    result = search(store, DATA, **keywords)
    assert (result.skipped, result.num_candidates, len(result.ranking)) == ((), 2, 2)
    with pytest.raises(UsageError, match="expected snapshots that see texts as the dataset has, found 1"):
        search(store, DATA, where="architecture == 'resnet18'", **keywords)


@pytest.mark.parametrize(("data", "related"), [("words-topic-b", "topic"), ("words-sentiment-b", "sentiment")])
def test_the_snapshot_of_the_related_task_ranks_first(trained, folder, data, related):
    store, ids = trained
    where = " or ".join(f"id == '{ids[name]}'" for name in ("topic", "sentiment"))
    result = search(store, data, data_dir=folder / "data", shapes=SIZES, where=where, num_train=64, num_test=100)
    assert result.ranking[0].snapshot == ids[related]
    assert result.ranking[0].score > result.ranking[1].score + 0.1


def test_a_fine_tune_keeps_frozen_blocks_and_the_tokenizer(trained):
    store, ids = trained
    topic, later = (store.manifest(ids[name]) for name in ("topic", "later"))
    assert topic.metrics["test_accuracy"] > 0.9
    assert [one.digest for one in later.blocks[:3]] == [one.digest for one in topic.blocks[:3]]
    assert later.blocks[3].digest != topic.blocks[3].digest
    assert later.preprocessing == topic.preprocessing
    assert store.verify()["ok"]


def test_predictions_are_what_the_fine_tune_measured(trained, folder):
    store, ids = trained
    dataset = open_dataset("words-topic-a", folder / "data", SIZES)
    found, metrics = evaluate(store, ids["topic"], dataset)
    assert metrics["accuracy"] == pytest.approx(store.manifest(ids["topic"]).metrics["test_accuracy"])
    assert np.allclose(found.probabilities_NC.sum(axis=1), 1)


def test_a_folder_of_texts_is_predicted_bad_ones_named(trained, folder, tmp_path):
    store, ids = trained
    dataset = open_dataset("words-topic-a", folder / "data", SIZES)
    known, _ = evaluate(store, ids["topic"], dataset)
    (tmp_path / "a.txt").write_bytes(known.files[5].read_bytes())
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    found = predict(store, ids["topic"], tmp_path)
    assert found.labels == known.labels[5:6]
    assert found.bad[0].startswith(f"{tmp_path / 'b.txt'}: expected UTF-8")
