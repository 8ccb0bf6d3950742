"""Trials are handed to Tune while there is room for them, with their shares; the cluster's resources are given here."""

import pytest
from ray.tune.search import Searcher

from raysnap.cluster.capacity import Capacity, Node
from raysnap.config.choices import Status
from raysnap.config.parts import ResourcesConfig
from raysnap.config.train import TrainConfig
from raysnap.training.trial import Trial
from raysnap.tune import resources, slots
from raysnap.tune.options import MeasuredTrial, Suggestions
from raysnap.tune.searcher import TrialFeed
from raysnap.tune.slots import Slots

OUT_OF_MEMORY = {"status": Status.OUT_OF_MEMORY.value, "error": "out of memory"}


def trial(name: str, architecture: str = "resnet18", **train) -> Trial:
    return Trial(
        id=name,
        role="finetune",
        architecture=architecture,
        dataset="shapes-shape-a",
        retrain_index=1,
        seed=0,
        train=TrainConfig(**train),
    )


@pytest.fixture
def cluster(monkeypatch):
    """Return what gives the cluster its resources."""

    def of(**amounts: float) -> None:
        for module in (resources, slots):
            monkeypatch.setattr(module, "read_capacity", lambda: Capacity([Node(amounts)]))

    return of


def feed_of(trials: list[Trial], **resources) -> TrialFeed:
    return TrialFeed(trials, Slots(ResourcesConfig(**resources)))


def taken(feed: TrialFeed, number: int) -> list[tuple[str, float]]:
    """Return the ids and GPUs of the trials that are handed out when Tune asks so often."""
    given = [feed.suggest(f"{number}-{index}") for index in range(number)]
    return [(one["trial"]["id"], one["share"]["GPU"]) for one in given if isinstance(one, dict)]


def test_no_more_trials_are_out_than_fit(cluster):
    cluster(CPU=2)
    feed = feed_of([trial(name) for name in "abcd"])
    assert taken(feed, 4) == [("a", 0), ("b", 0)]
    feed.on_trial_complete("4-0", {"status": "done"})
    assert taken(feed, 3) == [("c", 0)]


def test_one_trial_is_out_even_where_none_fits(cluster):
    cluster(CPU=1)
    feed = feed_of([trial("a"), trial("b")], cpus=4)
    assert taken(feed, 2) == [("a", 0)]


def test_cpus_that_come_while_trials_run_are_used(cluster, monkeypatch):
    monkeypatch.setattr(slots, "LOOK_EVERY_S", 0.0)
    cluster(CPU=1)
    feed = feed_of([trial(name) for name in "abcd"])
    assert taken(feed, 1) == [("a", 0)]
    assert taken(feed, 2) == []
    cluster(CPU=3)
    assert taken(feed, 4) == [("b", 0), ("c", 0)]


def test_a_trial_that_is_put_back_comes_next(cluster):
    cluster(CPU=1)
    feed = feed_of([trial(name) for name in "abc"])
    assert taken(feed, 1) == [("a", 0)]
    feed.on_trial_complete("1-0", error=True)
    feed.put_back(trial("a"))
    assert taken(feed, 1) == [("a", 0)]


def test_suggestions_follow_the_list_and_know_all_results(cluster):
    cluster(CPU=1)
    told: list[tuple[str, float | None]] = []
    suggested = iter([trial("s"), trial("t")])
    suggestions = Suggestions("val_loss", lambda: next(suggested, None), lambda *result: told.append(result))
    feed = TrialFeed([trial("a")], Slots(ResourcesConfig()), suggestions)
    assert taken(feed, 2) == [("a", 0)]
    feed.on_trial_complete("2-0", {"val_loss": 0.5})
    assert told == [("a", 0.5)]
    assert taken(feed, 1) == [("s", 0)]
    feed.on_trial_complete("1-0", {"val_loss": 0.4, "error": "it diverged"})
    assert taken(feed, 1) == [("t", 0)]
    feed.on_trial_complete("1-0", error=True)
    assert feed.suggest("end") == Searcher.FINISHED
    assert told == [("a", 0.5), ("s", None), ("t", None)]


def test_max_concurrent_limits_what_is_out(cluster):
    cluster(CPU=8)
    assert len(taken(feed_of([trial(name) for name in "abcd"], max_concurrent=3), 4)) == 3


def test_workers_count_as_often_as_there_are(cluster):
    cluster(CPU=8, GPU=8)
    assert len(taken(feed_of([trial(name) for name in "abcd"], num_workers=4), 4)) == 2


def test_the_end_of_the_list_is_told(cluster):
    cluster(CPU=2)
    feed = feed_of([trial("a")])
    assert taken(feed, 1) == [("a", 0)]
    assert feed.suggest("end") == Searcher.FINISHED


def test_each_architecture_has_its_resources(cluster):
    cluster(CPU=8, GPU=2, memory=100)
    resources = {"by_architecture": {"vit_*": {"gpus": 2, "cpus": 3, "memory_bytes": 90}}, "gpus": 0.5}
    slots = Slots(ResourcesConfig(**resources))
    assert slots.share(trial("a")) == {"CPU": 1, "GPU": 0.5}
    assert slots.share(trial("b", "vit_b_32")) == {"CPU": 3, "GPU": 2, "memory": 90}
    feed = feed_of([trial("a"), trial("b", "vit_b_32"), trial("c")], **resources)
    assert taken(feed, 3) == [("a", 0.5)], "the second waits for two whole GPUs"
    feed.on_trial_complete("3-0", {"status": "done"})
    assert taken(feed, 2) == [("b", 2)]


def test_a_measured_kind_shares_gpus_and_others_measure_first(cluster):
    cluster(CPU=16, GPU=2)
    feed = feed_of([*(trial(name) for name in "abcd"), trial("other", batch_size=8)], pack_gpus=True)
    assert taken(feed, 4) == [("a", 1), ("other", 1)], "one of each kind measures, with a GPU of its own"
    feed._slots.learn(trial("a"), 20, 100)
    assert feed.suggest("no room") is None
    feed.on_trial_complete("4-0", {"status": "done"})
    assert taken(feed, 5) == [("b", 0.25), ("c", 0.25), ("d", 0.25)]


def test_a_resumed_run_packs_by_its_rows_at_once(cluster):
    cluster(CPU=16, GPU=1)
    trials = [*(trial(name) for name in "bcd"), trial("other", batch_size=8)]
    feed = TrialFeed(trials, Slots(ResourcesConfig(pack_gpus=True), [MeasuredTrial(trial("a"), 20, 100)]))
    assert taken(feed, 4) == [("b", 0.25), ("c", 0.25), ("d", 0.25)], "another kind has yet to be measured"


def test_a_packed_trial_without_memory_comes_again_with_a_gpu(cluster):
    cluster(CPU=16, GPU=1)
    feed = feed_of([trial("a"), trial("b"), trial("c")], pack_gpus=True)
    assert taken(feed, 1) == [("a", 1)]
    feed._slots.learn(trial("a"), 20, 100)
    feed.on_trial_complete("1-0", {"status": "done"})
    assert taken(feed, 2) == [("b", 0.25), ("c", 0.25)]
    feed.on_trial_complete("2-0", OUT_OF_MEMORY)
    assert taken(feed, 3) == [], "it waits for a whole GPU"
    feed.on_trial_complete("2-1", {"status": "done"})
    assert taken(feed, 4) == [("b", 1)]
    feed.on_trial_complete("4-0", OUT_OF_MEMORY)
    assert feed.suggest("end") == Searcher.FINISHED, "more than a GPU there isn't"


def test_a_share_by_hand_that_is_too_small_is_final(cluster):
    cluster(CPU=16, GPU=1)
    feed = feed_of([trial("a")], gpus=0.5)
    assert taken(feed, 1) == [("a", 0.5)]
    feed.on_trial_complete("1-0", OUT_OF_MEMORY)
    assert feed.suggest("end") == Searcher.FINISHED


def test_without_gpus_nothing_is_packed(cluster):
    cluster(CPU=2)
    slots = Slots(ResourcesConfig(pack_gpus=True))
    assert not slots.packs_gpus, "a trial without memory is tried again with half its batch"
    assert slots.share(trial("a")) == {"CPU": 1, "GPU": 0}
    assert not slots.gives_more({"CPU": 1, "GPU": 0}, OUT_OF_MEMORY)
