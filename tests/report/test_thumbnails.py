"""Samples of datasets in a report."""

from tests.support.report_pages import render
from tests.support.report_runs import (
    trial,
    write_images,
    write_run,
)


def test_samples_of_an_available_dataset_are_shown(tmp_path):
    write_images(tmp_path / "data" / "shapes-shape-a", ["cat", "dog"], 6)
    page = render(write_run(tmp_path / "run", [trial(1)], data_dir=str(tmp_path / "data")))
    shown = page.values("alt")
    assert len(shown) == 10 and shown == sorted(shown), "classes are in order"
    assert set(shown) == {"An image of cat", "An image of dog"}
    assert "2 classes, 12 train, 12 test images" in page.text
