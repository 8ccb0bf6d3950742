"""The reviews of aclImdb: what has no label is left out by name and counted, from an archive as from a folder."""

import pytest

from raysnap.prepare.convert import prepare_dataset
from tests.support.official_sources import imdb, published, write_folder


@pytest.mark.parametrize("is_packed", [True, False])
def test_what_has_no_label_is_left_out_and_counted(tmp_path, is_packed):
    source = write_folder(tmp_path / "source", published("imdb") if is_packed else imdb())
    results = [prepare_dataset("imdb", source, tmp_path / "data", allow_other_counts=True) for _ in range(2)]
    assert results[0] == results[1]
    account = results[0].account
    assert results[0].dataset.kind == "texts"
    assert (account.num_images, account.num_left_out) == ({"train": 6, "test": 6}, 5)
    assert "texts without a label: train/unsup" in account.lines()[0]
