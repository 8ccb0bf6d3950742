"""Answers that are kept for who asks the same again: what a question is, and what becomes of answers on the disk."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from raysnap.config.search_options import SearchOptions
from raysnap.search import answers
from raysnap.search.answers import AnswerFile
from raysnap.search.engine.setup import Setup
from raysnap.search.narrowing import Field
from raysnap.search.result import SkippedSnapshot
from tests.support.searches import DATA, copy_store
from tests.support.start_records import record

pytestmark = [pytest.mark.usefixtures("single_thread"), pytest.mark.xdist_group("searches")]

SEARCH = """
import json, sys
from raysnap.search import search
result = search(sys.argv[1], sys.argv[2], method="shared", feature_cache_bytes=10**8)
print(json.dumps([result.to_dict(), "torch" in sys.modules]))
"""
# What of a result says how it was found, and not what.
HOW = ("answered", "bound_s", "peak_activation_bytes", "peak_memory_bytes", "timings_s", "work")


@pytest.fixture
def photos(data_dir, tmp_path):
    shutil.copytree(data_dir / DATA, tmp_path / "photos", ignore=shutil.ignore_patterns(".raysnap"))
    return tmp_path / "photos"


@pytest.fixture
def store(resnets, tmp_path):
    return copy_store(resnets, tmp_path)[0]


@pytest.fixture
def answer(tmp_path):
    return AnswerFile(tmp_path / "answers" / ("0" * 32))


def ask(store, photos, **options):
    setup = Setup(store.path, str(photos), SearchOptions(**{"feature_cache_bytes": 10**8} | options))
    field = Field(store, setup.options, store.summaries(setup.options.where))
    candidates = field.first_round()
    return AnswerFile.of(setup, field, candidates, setup.draw_items(setup.open_dataset(), candidates))


def plain(result):
    return json.loads(json.dumps(result.to_dict()))


def found(result):
    return {key: value for key, value in result.items() if key not in HOW}


def test_a_process_that_asks_again_needs_no_torch(store, photos):
    command = [sys.executable, "-c", SEARCH, store.path, photos]
    (first, has_torch), (again, has_torch_again) = (json.loads(subprocess.check_output(command)) for _ in range(2))
    assert (has_torch, has_torch_again) == (True, False)
    assert found(again) == found(first) and first["answered"] is None and again["answered"]
    assert not any(again["work"].values()) and again["timings_s"].keys() == first["timings_s"].keys()
    assert again["timings_s"]["inference"] == 0 < first["timings_s"]["inference"]


def test_the_same_question_has_the_same_answer(store, photos):
    assert ask(store, photos) == ask(store, photos)
    assert ask(store, photos, feature_cache_bytes=1) == ask(store, photos)


@pytest.mark.parametrize(
    "options",
    [{"tolerance": 0.02}, {"seed": 1}, {"num_train": 40}, {"proxy": "knn"}, {"where": "retrain_index != 2"}],
    ids=str,
)
def test_other_options_are_another_question(store, photos, options):
    assert ask(store, photos, **options) != ask(store, photos)


def test_changed_images_are_another_question(store, photos):
    before = ask(store, photos)
    image = next(photos.rglob("train/*/*.jpg"))
    os.utime(image, ns=(0, 1))
    touched = ask(store, photos)
    image.unlink()
    assert len({before, touched, ask(store, photos)}) == 3


def test_a_changed_store_is_another_question(store, photos):
    before = ask(store, photos)
    store.set_ref("another-name", store.refs()["base"])
    named = ask(store, photos)
    store.remove_ref("three")
    store.gc(grace_s=0)
    assert len({before, named, ask(store, photos)}) == 3


def test_names_of_snapshots_that_were_left_out_count(store, photos):
    before = ask(store, photos, max_candidates=2)
    options = SearchOptions(max_candidates=2)
    tried = {one.snapshot for one in Field(store, options, store.summaries()).first_round()}
    left_out = next(snapshot for snapshot in store.refs().values() if snapshot not in tried)
    store.set_ref("another-name", left_out)
    assert ask(store, photos, max_candidates=2) != before, "a second round may try it"


def test_new_records_are_another_question_unless_unused(store, photos):
    before, without = (ask(store, photos, use_records=use_records) for use_records in (True, False))
    store.put_record(record("base", "pets", 0.5))
    assert ask(store, photos) != before
    assert ask(store, photos, use_records=False) == without


def test_another_build_or_machine_is_another_question(store, photos, monkeypatch):
    asked = {ask(store, photos)}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    asked.add(ask(store, photos))
    monkeypatch.setattr(answers, "package_version", lambda library: "0.1")
    asked.add(ask(store, photos))
    monkeypatch.setattr(answers, "cpu_name", lambda: "another")
    assert len(asked | {ask(store, photos)}) == 4


def test_answers_that_depend_on_time_are_not_kept(store, photos):
    assert ask(store, photos, time_budget_s=10) is None
    assert ask(store, photos, feature_cache_bytes=0) is None


def test_an_answer_is_read_as_it_was_kept(find, resnets, answer):
    result = find(resnets, method="nested")
    assert answer.read() is None
    answer.keep(result)
    kept = answer.read()
    assert kept.answered and plain(replace(kept, answered=None)) == plain(result)
    assert type(kept.ranking) is tuple and type(kept.ranking[0]) is type(result.ranking[0])


@pytest.mark.parametrize(
    "change", [lambda raw: raw[:-9], lambda raw: raw.replace(b"shared", b"nested"), lambda raw: b""]
)
def test_a_damaged_answer_is_found_anew(find, resnets, answer, change, caplog):
    answer.keep(find(resnets, method="shared"))
    answer.path.write_bytes(change(answer.path.read_bytes()))
    assert answer.read() is None and "is damaged" in caplog.text
    assert not answer.path.exists()


def test_an_answer_without_some_snapshots_is_not_kept(find, resnets, answer):
    skipped = (SkippedSnapshot("id", "name", "its block is damaged"),)
    answer.keep(replace(find(resnets, method="shared"), skipped=skipped))
    assert answer.read() is None


def test_a_disk_that_takes_no_answer_costs_none(find, resnets, answer, caplog):
    answer.path.parent.write_text("a file")
    answer.keep(find(resnets, method="shared"))
    assert "the answer can't be kept" in caplog.text
    assert answer.read() is None


def test_answers_that_were_asked_long_ago_make_room(find, resnets, tmp_path, monkeypatch):
    result = find(resnets, method="shared")
    files = [AnswerFile(tmp_path / "answers" / (digit * 32)) for digit in "012"]
    files[0].keep(result)
    monkeypatch.setattr(answers, "BUDGET_BYTES", int(2.5 * files[0].path.stat().st_size))
    files[1].keep(result)
    for time_ns, file in enumerate(files[:2]):
        os.utime(file.path, ns=(time_ns, time_ns))
    assert files[0].read()  # it is now the one used last
    files[2].keep(result)
    assert [file.path.exists() for file in files] == [True, False, True]
