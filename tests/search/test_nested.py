"""`nested`: whom its rungs drop, when it stops, and how few images it takes."""

import itertools

import numpy as np
import pytest

from raysnap.config.parts import RetrainConfig
from raysnap.config.search_options import SearchOptions
from raysnap.models.block_facts import block_shapes
from raysnap.planning.sampling import draw_retrain_indices
from raysnap.search.contest import Contest
from raysnap.search.engine.items import ProbeItems
from raysnap.search.engine.source import Gathered
from raysnap.search.engine.work import Work
from raysnap.search.plan.rungs import plan_rungs
from raysnap.search.plan.tree import build_tree
from raysnap.search.plan.workload import image_forwards, models_of_first, whole_models
from raysnap.search.probes.proxies import CPU
from tests.support.search_stores import candidate, digest

# Image-forwards that nested needs at most for 36 ResNet-18 and 1,000 items where half are left when items have doubled.
MOST_FORWARDS = {
    "top_layers": 1910,
    "twenty_five_percent": 3150,
    "fifty_percent": 4800,
    "last_one_layer": 2000,
    "uniform": 5450,
}


class DrawnFeatures:
    """A source of features that are drawn: the clearer a candidate's classes are apart, the better it is."""

    def __init__(self, tree, labels, distances, seed=0):
        rng = np.random.default_rng(seed)
        self.work = Work()
        centres = rng.standard_normal((labels.max() + 1, 8))
        by_blocks = {one.blocks: rng.standard_normal((len(labels), 8)) for one in tree.candidates}
        self.features = [
            (distance * centres[labels] + by_blocks[one.blocks]).astype(np.float32)
            for one, distance in zip(tree.candidates, distances, strict=True)
        ]
        self.asked = []

    def gather(self, candidates, positions, *, is_last, border=None):  # noqa: ARG002 - the protocol's
        self.asked.append((sorted(candidates), list(positions)))
        return Gathered({number: self.features[number][positions] for number in candidates}, {})

    def keep(self, candidates):
        pass


def run_contest(distances, num_train=320, num_test=80, num_classes=4, paths=None, **options):
    """Run a whole contest of candidates with such distances between classes, without a store."""
    paths = paths or [[digest(f"{index}of{number}") for index in range(9)] for number in range(len(distances))]
    tree = build_tree([candidate(str(number), path) for number, path in enumerate(paths)], sharing=True)
    labels = np.arange(num_train + num_test) % num_classes
    items = ProbeItems({}, tuple(range(len(labels))), labels[:num_train], labels[num_train:], 0.0)
    source = DrawnFeatures(tree, labels, distances)
    contest = Contest(tree, source, items, SearchOptions(method="nested", **options), CPU)
    rungs = plan_rungs("nested", len(distances), num_train, num_test)
    for rung, following in itertools.zip_longest(rungs, rungs[1:]):
        contest.run_rung(rung, following)
        if contest.stopped:
            break
    return contest


def snapshots_of(distribution, seed, num_snapshots=36):
    """Return a prefix tree of ResNet-18 snapshots that share all but their last retrained blocks with one base."""
    config = RetrainConfig(distribution=distribution)
    indices = draw_retrain_indices(config, "resnet18", num_snapshots, np.random.default_rng(seed))
    paths = [
        [digest(f"{index}" if index < 9 - r else f"{index}of{number}") for index in range(9)]
        for number, r in enumerate(indices)
    ]
    return build_tree([candidate(str(number), path) for number, path in enumerate(paths)], sharing=True)


def test_a_clear_winner_ends_the_search_after_few_items():
    contest = run_contest([1.5, *[0.3] * 15])
    assert contest.stopped == "tolerance" and contest.expected_loss <= 0.01
    assert contest.ranking()[0].name == "0" and contest.reports[-1].num_train < 320


def test_a_hopeless_majority_is_dropped_at_once():
    contest = run_contest([0.9, 0.85, *[0.1] * 30], tolerance=0.001)
    assert contest.reports[0].num_kept <= 4
    assert {one.name for one in contest.ranking()[:2]} == {"0", "1"}


def test_equal_candidates_are_not_told_apart_at_any_cost():
    """More items would find a luckier one, hardly a better one."""
    contest = run_contest([0.6] * 24)
    work = sum(len(numbers) * len(positions) for numbers, positions in contest.source.asked)
    assert work < 0.4 * 24 * 400


def test_a_tolerance_of_zero_uses_all_items():
    contest = run_contest([0.6, 0.55, 0.5], tolerance=0)
    assert contest.stopped == "all_items" and contest.reports[-1].num_test == 80


def test_a_large_tolerance_takes_less_work():
    def num_passes(tolerance):
        asked = run_contest(np.linspace(0.4, 0.8, 12), tolerance=tolerance).source.asked
        return sum(len(numbers) * len(positions) for numbers, positions in asked)

    assert num_passes(0.1) < num_passes(0.001)


@pytest.mark.parametrize("num_candidates", [1, 2, 3])
@pytest.mark.parametrize(("num_train", "num_test"), [(2, 1), (8, 3), (100, 20)])
def test_few_candidates_and_items_end_with_a_winner(num_candidates, num_train, num_test):
    contest = run_contest([0.8] * num_candidates, num_train, num_test, num_classes=2)
    ranking = contest.ranking()
    assert len(ranking) == num_candidates and ranking[0].within_tolerance and ranking[0].tied_with_best
    assert contest.stopped and contest.expected_loss >= 0


def test_each_rung_adds_items_for_the_candidates_that_are_left():
    contest = run_contest(np.linspace(0.3, 0.7, 16), tolerance=0.002)
    seen = [set(positions) for _, positions in contest.source.asked]
    assert all(not one & other for one, other in itertools.combinations(seen, 2))
    alive = [set(numbers) for numbers, _ in contest.source.asked]
    assert all(later <= earlier for earlier, later in itertools.pairwise(alive))


def test_candidates_with_equal_features_stay_together():
    paths = [[digest(f"{index}of{number // 2}") for index in range(9)] for number in range(8)]
    contest = run_contest(np.repeat([0.9, 0.6, 0.5, 0.4], 2), paths=paths)
    by_name = {one.name: one for one in contest.ranking()}
    for number in range(0, 8, 2):
        one, other = by_name[str(number)], by_name[str(number + 1)]
        assert (one.score, one.num_train) == (other.score, other.num_train)
        assert one.within_tolerance == other.within_tolerance
    assert by_name["0"].within_tolerance and not by_name["7"].within_tolerance


def test_the_loss_of_a_rung_includes_what_was_dropped_before():
    contest = run_contest(np.linspace(0.4, 0.7, 30), tolerance=0.003)
    assert len(contest.reports) > 1
    assert all(report.expected_loss > 0 for report in contest.reports[:-1])
    assert contest.reports[-1].expected_loss == contest.expected_loss


@pytest.mark.parametrize("proxy", ["knn", "hscore", "logme"])
def test_other_proxies_stop_by_the_same_rule(proxy):
    contest = run_contest([1.5, *[0.2] * 9], proxy=proxy, tolerance=0.05)
    assert contest.ranking()[0].name == "0" and contest.reports[-1].num_train < 320


@pytest.mark.parametrize("distribution", MOST_FORWARDS)
@pytest.mark.parametrize("num_items", [1000, 2000])
def test_image_forwards_of_the_published_workload(distribution, num_items):
    num_train, num_test = num_items * 4 // 5, num_items // 5
    rungs = {method: plan_rungs(method, 36, num_train, num_test) for method in ("shared", "nested")}
    for seed in range(5):
        tree = snapshots_of(distribution, seed)
        order = np.random.default_rng(seed).permutation(36).tolist()
        entrants = {
            method: [order, *(order[: rung.num_kept] for rung in planned[:-1])] for method, planned in rungs.items()
        }
        full, nested = (image_forwards(tree, rungs[method], entrants[method]) for method in rungs)
        assert full == pytest.approx(num_items * whole_models(tree, order))
        assert nested <= MOST_FORWARDS[distribution] * num_items / 1000
        everyone = image_forwards(tree, rungs["nested"], [order] * len(rungs["nested"]))
        assert everyone == pytest.approx(full), "at worst nested is shared"


def test_a_whole_model_is_one_image_forward():
    shapes = block_shapes("resnet18", 32)[:-1]
    own = [digest(index) for index in range(9)]
    tree = build_tree([candidate("one", own), candidate("other", [*own[:8], digest("f")])], sharing=True)
    assert whole_models(tree, [0]) == pytest.approx(1.0)
    last = shapes[8].flops / sum(shape.flops for shape in shapes)
    assert whole_models(tree, [0, 1]) == pytest.approx(1 + last)
    assert whole_models(tree, []) == 0


@pytest.mark.parametrize("distribution", MOST_FORWARDS)
def test_the_models_of_the_first_candidates_add_up(distribution):
    tree = snapshots_of(distribution, seed=0)
    order = np.random.default_rng(0).permutation(36).tolist()
    expected = [whole_models(tree, order[:number]) for number in range(1, 37)]
    assert models_of_first(tree, order) == pytest.approx(expected)


def test_candidates_that_cost_few_passes_are_kept_longer():
    """Candidates that share all but their last block cost little to keep: fewer are dropped than of separate ones."""
    distances = np.linspace(0.5, 0.6, 12)
    shared = [[*map(digest, "12345678"), digest(f"9of{number}")] for number in range(12)]
    num_kept = [
        sum(report.num_kept for report in run_contest(distances, paths=paths, tolerance=0.03).reports[:4])
        for paths in (shared, None)
    ]
    assert num_kept[0] > num_kept[1]
