"""One search over a store whose snapshots come from three libraries, see images in three ways, and have records."""

import json

import pytest

from raysnap.datasets.dataset import open_dataset
from raysnap.models.architecture import architecture, shown
from raysnap.search import search
from raysnap.store.preprocessing import Preprocessing
from raysnap.store.records import StartFacts
from raysnap.store.store import Store
from tests.support.hf_architectures import VISION
from tests.support.report_pages import render
from tests.support.search_families import DATA, NUM_ITEMS, SHAPES
from tests.support.search_stores import one_thread, put, random_blocks, variant
from tests.support.start_records import record

pytestmark = pytest.mark.xdist_group("searches")

HALF = (0.5, 0.5, 0.5)
LIBRARIES = {
    "mobilenet_v3_small": Preprocessing(resize_size=36, image_size=32),
    "timm/mobilenetv3_small_050": Preprocessing(resize_size=56, image_size=48, interpolation="bicubic"),
    str(architecture("hf", "vit", VISION["vit"])): Preprocessing(
        resize_size=32, image_size=32, resize_mode="squash", mean=HALF, std=HALF
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a dataset, and a store of a base and a fine-tune from each library, with their records."""
    folder = tmp_path_factory.mktemp("libraries")
    open_dataset(DATA, folder / "data", SHAPES)
    store = Store.open(folder / "store", create=True)
    for number, (network, preprocessing) in enumerate(LIBRARIES.items()):
        base = put(store, f"base-{number}", random_blocks(network, 0), network, preprocessing=preprocessing)
        more = {"base": base, "retrain_index": 1, "preprocessing": preprocessing}
        tuned = put(store, f"tuned-{number}", variant(network, 1, 1), network, **more)
        for dataset in ("cats", "dogs"):
            for snapshot, lineage, accuracy in ((base, (), 0.3 + 0.1 * number), (tuned, (base,), 0.4 + 0.1 * number)):
                start = StartFacts(snapshot=snapshot, architecture=network, lineage=lineage)
                store.put_record(record("any", dataset, accuracy).model_copy(update={"start": start}))
    return folder


@pytest.fixture(scope="module")
def find(place):
    """Return a search of the store, on one thread."""

    def run(**options):
        with one_thread():
            return search(place / "store", DATA, data_dir=place / "data", shapes=SHAPES, **options)

    return run


@pytest.fixture(scope="module")
def found(find):
    return find(method="shared")


def scores_of(result) -> dict[str, float]:
    return {line.name: line.score for line in result.ranking}


def test_every_snapshot_is_ranked_and_none_is_skipped(found):
    assert sorted(scores_of(found)) == [f"{kind}-{number}" for kind in ("base", "tuned") for number in range(3)]
    assert found.skipped == ()


def test_each_way_to_see_images_is_decoded_once(found, find):
    assert found.work["images_decoded"] == len(LIBRARIES) * NUM_ITEMS
    assert find(method="shared", proxy="knn").work["images_decoded"] == 0
    assert sorted((group.image_size, group.num_candidates) for group in found.inputs) == [(32, 2), (32, 2), (48, 2)]


def test_all_are_scored_on_the_same_items(found):
    assert len({(line.num_train, line.num_test, line.num_scored) for line in found.ranking}) == 1


def test_a_score_does_not_depend_on_the_company(found, find):
    for number, network in enumerate(LIBRARIES):
        alone = find(method="shared", where=f"name == 'tuned-{number}'")
        assert scores_of(alone) == {f"tuned-{number}": scores_of(found)[f"tuned-{number}"]}, network


def test_sharing_blocks_changes_no_score(found, find):
    baseline = find(method="baseline")
    assert scores_of(baseline) == scores_of(found)
    assert baseline.work["block_item_passes"] > found.work["block_item_passes"]


def test_records_of_all_libraries_join_the_rank(found, find):
    assert (found.records.num_records, found.records.num_datasets) == (12, 2) and found.records.share > 0
    standings = {line.name: line.standing for line in found.ranking}
    assert standings["tuned-2"] == max(standings.values()) and standings["base-0"] == min(standings.values())
    assert find(method="shared", use_records=False).records is None


def test_the_report_tells_libraries_and_inputs_apart(found, tmp_path):
    (tmp_path / "found.json").write_text(json.dumps(found.to_dict()))
    page = render(tmp_path / "found.json")
    for network in LIBRARIES:
        assert shown(network) in page.text
    assert "hidden_size" not in page.text, "a configuration is shown as its digest"
    assert (
        "Candidates see items in 3 ways: 32 px (2 candidates), 32 px (2 candidates), 48 px (2 candidates)." in page.text
    )
