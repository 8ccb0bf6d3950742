"""Grids of timed searches as people write them: one value or a list, groups that differ in a few keys."""

import pytest

from raysnap.config.bench import BenchConfig
from raysnap.config.load import dump_yaml, load_config
from raysnap.errors import ConfigError

TEXT = """
kind: bench
datasets: pets
image_size: [32, 64]
repeats: 2
groups:
  sizes: {title: More items, num_train: [800, 1600], num_test: [200, 400]}
  memory: {image_size: 224, budget_bytes: [null, 5_000_000_000], store: [stores/a, made]}
synthetic_sets:
  made: {num_snapshots: 4}
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "job.yaml").write_text(TEXT)
    return tmp_path / "job.yaml"


def test_a_group_has_the_keys_outside_but_for_its_own(path):
    config = load_config(path, ["groups.memory.repeats=1"], BenchConfig)
    sizes, memory = config.grids["sizes"], config.grids["memory"]
    assert (sizes.datasets, sizes.image_size, sizes.repeats) == (("pets",), (32, 64), 2)
    assert sizes.item_counts == ((800, 200), (1600, 400))
    assert (memory.image_size, memory.budget_bytes, memory.repeats) == ((224,), (None, 5_000_000_000), 1)
    assert memory.item_counts == ((None, None),)


def test_one_test_count_goes_with_every_train_count(path):
    config = load_config(path, ["groups={}", "num_train=[10, 20]", "num_test=5"], BenchConfig)
    assert config.grids == {None: config}
    assert config.item_counts == ((10, 5), (20, 5))


def test_a_written_configuration_is_read_back_equal(path, tmp_path):
    config = load_config(path, [], BenchConfig)
    (tmp_path / "again.yaml").write_text(dump_yaml(config))
    assert load_config(tmp_path / "again.yaml", []) == config
    document = config.model_dump(mode="json")
    assert (document["datasets"], document["store"], document["image_size"]) == ("pets", "store", [32, 64])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("image_size=8", r"image_size: expected at least 16, found 8"),
        ("image_size=[8, 32]", r"image_size\.0: expected at least 16, found 8"),
        ("cache=hot", r"cache: expected 'warm' or 'cold', found 'hot'"),
        ("cache=true", r"cache: found the boolean true"),
        ("detail=fine", r"detail: expected 'end_to_end', 'rungs', 'steps' or 'step_details', found 'fine'"),
        ("io_limit_mib_per_s=0", r"io_limit_mib_per_s: expected more than 0"),
        ("datasets=[]", r"datasets: expected at least 1 in the list"),
        ("datasets=[a, a]", r"`datasets` lists 'a' twice"),
        ("num_train=[0]", r"num_train\.0: expected at least 1"),
        ("groups.sizes.num_test=[1, 2, 3]", r"groups\.sizes: .*are paired: expected lists of equal length.* 2 and 3"),
        ("groups.sizes.metods=shift", r"groups\.sizes\.metods: unknown key; did you mean 'methods'\?"),
        ("groups.sizes.repeats=0", r"groups\.sizes\.repeats: expected at least 1"),
        ("groups.sizes={num_train: [8, 8], num_test: 2}", r"lists \(8, 2\) twice"),
        ("groups.memory.store=[x, x]", r"groups\.memory: `store` lists 'x' twice"),
        (
            "groups.Sizes={}",
            r"expected a name of lower-case letters, digits and underscores that begins with a letter, found 'Sizes'",
        ),
        ("groups=3", r"groups: expected `key: value` lines, found 3"),
        ("synthetic_sets.made.num_snapshots=0", r"synthetic_sets\.made\.num_snapshots: expected at least 1"),
        ("synthetic_sets.made.architectures=[a, a]", r"`architectures` lists 'a' twice"),
        ("synthetic_sets.made.run_dir=x", r"synthetic_sets\.made\.run_dir: unknown key"),
    ],
)
def test_a_mistake_is_reported_in_one_line_with_its_path(path, override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path, [override], BenchConfig)
    assert "\n" not in str(caught.value)


def test_a_grid_without_datasets_is_refused(tmp_path):
    (tmp_path / "job.yaml").write_text("kind: bench\ngroups: {a: {datasets: pets}, b: {}}")
    with pytest.raises(ConfigError, match=r"groups\.b\.datasets: missing"):
        load_config(tmp_path / "job.yaml", [])


def test_groups_are_chosen_by_name(path):
    config = load_config(path, [], BenchConfig)
    assert list(config.only(["sizes"]).grids) == ["sizes"]
    assert config.only([]) == config
    with pytest.raises(ConfigError, match=r"group 'size': expected one of sizes, memory.*did you mean 'sizes'\?"):
        config.only(["size"])
