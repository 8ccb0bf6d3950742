"""What datasets there are, what is missing and where it can be had."""

import shutil

import pytest

from raysnap.cli.dataset_tables import datasets_table, sources_table
from raysnap.config.parts import ShapesConfig
from raysnap.datasets.dataset import BUILT_IN, open_dataset
from raysnap.datasets.inventory import how_to_get, list_datasets
from raysnap.datasets.published import SOURCES
from raysnap.errors import DataError

TINY = ShapesConfig(image_size=16, num_train=8, num_val=4, num_test=4)


def shown(table, width, capsys):
    from rich.console import Console

    Console(width=width).print(table)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_every_known_name_is_listed_and_nothing_is_made(tmp_path):
    summaries = list_datasets(tmp_path / "nowhere")
    assert [summary.name for summary in summaries] == [*BUILT_IN, *sorted(SOURCES)]
    assert all(summary.path is None and summary.note and summary.num_classes for summary in summaries)
    assert not (tmp_path / "nowhere").exists()


def test_what_is_there_is_listed_with_its_counts_or_its_fault(tmp_path):
    open_dataset("shapes-shape-a", tmp_path, TINY)
    shutil.copytree(tmp_path / "shapes-shape-a", tmp_path / "mine")
    (tmp_path / "broken").mkdir()
    by_name = {summary.name: summary for summary in list_datasets(tmp_path)}
    assert by_name["mine"].counts == by_name["shapes-shape-a"].counts == {"train": 8, "val": 4, "test": 4}
    assert by_name["mine"].num_classes == 4
    assert by_name["mine"].note == "your own folder"
    assert "found no folders" in by_name["broken"].fault


def test_folders_with_a_dot_are_no_datasets(tmp_path):
    (tmp_path / ".downloads" / "imagenette").mkdir(parents=True)
    assert {summary.name for summary in list_datasets(tmp_path)} == {*BUILT_IN, *SOURCES}


def test_a_data_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "data").touch()
    with pytest.raises(DataError, match="expected a folder, found a file"):
        list_datasets(tmp_path / "data")


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_named_dataset_states_source_and_terms(tmp_path, name):
    summary = next(one for one in list_datasets(tmp_path) if one.name == name)
    source = SOURCES[name]
    assert (summary.page, summary.licence, summary.overlap) == (source.page, source.licence, source.overlap)
    assert summary.num_files == (len(source.files) if source.is_downloadable else 0)
    assert source.page in how_to_get(name) and "--source" in how_to_get(name)
    assert ("--download" in how_to_get(name)) == source.is_downloadable


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_fits_the_terminal_and_hides_nothing(tmp_path, capsys, width):
    summaries = list_datasets(tmp_path)
    lines = shown(datasets_table(summaries), width, capsys)
    assert max(map(len, lines)) <= width
    assert all(any(line.startswith(one.name) for line in lines) for one in summaries)
    assert " ".join(lines).count("[ImageNet overlap]") == sum(bool(one.overlap) for one in summaries)
    assert "5994/0/5794" in "".join(lines)
    pages = "".join(line.strip() for line in shown(sources_table(summaries), width, capsys)).replace(" ", "")
    assert all(source.page in pages and source.licence.replace(" ", "") in pages for source in SOURCES.values())


def test_counts_that_are_not_official_are_shown_beside_those(tmp_path, capsys):
    shutil.copytree(open_dataset("shapes-shape-a", tmp_path, TINY).root, tmp_path / "fashion-mnist")
    (line,) = (one for one in shown(datasets_table(list_datasets(tmp_path)), 80, capsys) if one.startswith("fashion"))
    assert line.split() == ["fashion-mnist", "yes", "4", "8/4/4", "of", "60000/0/10000"]
