"""A full check of a dataset of texts: what is bad, what leaks, and what is there twice."""

from raysnap.cli.dataset_tables import check_failures
from raysnap.config.parts import ShapesConfig
from raysnap.datasets.dataset import open_dataset, read_folder
from raysnap.datasets.inspection import check_dataset


def test_bad_texts_and_leaks_are_found(tmp_path):
    dataset = open_dataset("words-topic-b", tmp_path, ShapesConfig(num_train=8, num_val=4, num_test=4))
    first, second, third, *_ = (item.path for item in dataset.splits["train"])
    test = dataset.splits["test"][0].path
    test.write_text(f"  {first.read_text()} \n")
    second.write_bytes(b"\xff")
    third.write_bytes(b"\xef\xbb\xbf" + dataset.splits["train"][3].path.read_bytes())
    result = check_dataset(read_folder(dataset.root))
    assert (result.kind, result.num_images, result.is_sound, result.width_px) == ("texts", 16, False, None)
    assert [file.path for file in result.bad] == [second]
    assert [leak.paths for leak in result.leaks] == [(first, test)]
    assert len(result.copies) == 1
    assert "expected UTF-8" in check_failures(result)[0]["error"]


def test_a_sound_dataset_of_texts_has_no_faults(tmp_path):
    dataset = open_dataset("words-order-a", tmp_path, ShapesConfig(num_train=8, num_val=0, num_test=0))
    result = check_dataset(dataset)
    assert (result.formats, result.num_small, result.bad, result.leaks) == ({"text": 8}, 0, (), ())
