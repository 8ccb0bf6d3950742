"""Generating from texts on a real local Ray: workers find the tokenizer in the store."""

from raysnap.config.jobs import GenerateConfig
from raysnap.jobs.generate import generate
from raysnap.report.page import write_report
from raysnap.store.store import Store
from tests.support.texts import BERT, TOKENS


def test_texts_end_in_the_store_and_in_the_report(ray_local, tmp_path):
    config = GenerateConfig(
        architectures=(BERT,),
        datasets=("words-topic-a",),
        num_snapshots=2,
        image_size=TOKENS,
        shapes={"num_train": 64, "num_val": 8, "num_test": 8},
        base={"tokenizer": "words"},
        train={"epochs": 1},
        retrain={"distribution": "fixed", "values": [1, 0]},
        resources={"max_concurrent": 1},
        store=tmp_path / "store",
        data_dir=tmp_path / "data",
        run_dir=tmp_path / "run",
    )
    summary = generate(config)
    assert (summary.num_done, summary.failures) == (2, [])
    store = Store.open(config.store)
    manifests = store.manifests()
    assert len(manifests) == 3
    assert len({manifest.preprocessing for manifest in manifests}) == 1
    assert store.verify()["ok"]
    assert store.gc(0)["num_blocks_deleted"] == 0
    page = write_report(config.run_dir).read_text()
    assert page.count("<blockquote>") > 4
    assert " was " in page.partition("<blockquote>")[2].partition("</blockquote>")[0]
