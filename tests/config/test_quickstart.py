"""The quickstart keeps both of its jobs in one folder."""

from pathlib import Path

import pytest

from raysnap.config.load import find_config, load_config
from raysnap.config.quickstart import QuickstartConfig
from raysnap.errors import ConfigError


def test_the_quickstart_is_found_and_moves_into_a_folder():
    config = load_config(find_config("quickstart"), [], QuickstartConfig).inside(Path("here"))
    assert (config.generate.store, config.bench.store) == (Path("here/store"), (Path("here/store"),))
    assert config.generate.data_dir == config.bench.data_dir == Path("here/data")
    assert (config.generate.run_dir, config.bench.run_dir) == (Path("here/run"), Path("here/run/bench"))


def test_a_quickstart_times_one_grid(tmp_path):
    config = load_config(find_config("quickstart"), ["bench.groups.a.repeats=1"])
    with pytest.raises(ConfigError, match=r"bench\.groups"):
        config.inside(tmp_path)


@pytest.mark.parametrize("key", ["generate.store", "bench.run_dir", "bench.data_dir"])
def test_a_folder_named_in_the_file_is_refused(tmp_path, key):
    config = load_config(find_config("quickstart"), [f"{key}=elsewhere"])
    with pytest.raises(ConfigError, match=rf"{key}: a quickstart keeps everything in one folder; choose it with --dir"):
        config.inside(tmp_path)
