"""Configurations load as the kind that they name, never change, and a dump of one loads as an equal one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raysnap.config.bench import BenchConfig
from raysnap.config.jobs import GenerateConfig
from raysnap.config.load import KINDS, dump_yaml, find_config, load_config
from raysnap.config.yaml_files import read_yaml
from raysnap.errors import ConfigError
from tests.support import ROOT
from tests.support.job_files import load, write

CONFIG_PATHS = sorted(ROOT.glob("configs/*.yaml"))


def test_a_configuration_never_changes(folder):
    config = load(folder, "datasets: [a]")
    with pytest.raises(ValidationError):
        config.seed = 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets: [a]", r"kind: expected one of generate, sweep, finetune, synthesize, bench, .*, found None"),
        ("kind: generat", r"found 'generat'; did you mean 'generate'\?"),
        ("kind: [generate]", r"kind: expected one of"),
        ("kind: {a: b}", r"kind: expected one of"),
        ("kind: bench\ndatasets: [a]\nmethods: [alsation]", r"methods\.0: .*did you mean 'alsatian'\?"),
        ("kind: bench\ndatasets: [a]\nmethods: [shift, shift]", r"`methods` lists 'shift' twice"),
        ("kind: bench\ndatasets: [a]\nproxies: []", r"proxies: expected at least 1"),
        ("kind: quickstart\nlr: 1", r"generate: missing.*bench: missing.*lr: unknown key; did you mean 'generate\."),
    ],
)
def test_a_file_says_what_kind_of_job_it_is(folder, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(folder, text), [])
    assert "\n" not in str(caught.value)


texts = st.text(st.characters(exclude_characters="\x00", codec="utf-8"), min_size=1, max_size=12) | st.sampled_from(
    ["1e-3", "1e3", "no", "on", "~", "null", "2024-11-05", "0x1f", "1_000", "=", "<<", "- a", "a: b", "#", "'", "1:30"]
)
train_configs = st.fixed_dictionaries(
    {
        "epochs": st.integers(1, 10_000),
        "lr": st.floats(0, 100, exclude_min=True),
        "optimizer": st.sampled_from(["adam", "adamw", "sgd"]),
        "momentum": st.floats(0, 1, exclude_max=True),
        "views": st.none() | st.integers(1, 1000),
        "precision": st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
        "channels_last": st.none() | st.booleans(),
        "compile": st.booleans(),
        "deterministic": st.booleans(),
        "checkpoint_every": st.none() | st.integers(1, 10_000),
    }
)
retrain_configs = st.one_of(
    st.fixed_dictionaries({"distribution": st.sampled_from(["top_layers", "uniform", "last_one_layer"])}),
    st.fixed_dictionaries({"distribution": st.just("fixed"), "values": st.lists(st.integers(0, 80), min_size=1)}),
    st.fixed_dictionaries(
        {"distribution": st.just("fixed"), "freeze_fraction": st.floats(0, 1), "stem": st.booleans()}
    ),
)
generate_documents = st.fixed_dictionaries(
    {"datasets": st.lists(texts, min_size=1, max_size=4, unique=True)},
    optional={
        "seed": st.integers(0, 2**32 - 1),
        "run_dir": texts,
        "store": texts,
        "train": train_configs,
        "retrain": retrain_configs,
        "base": st.fixed_dictionaries(
            {"weights": texts}, optional={"pretraining": st.fixed_dictionaries({"dataset": texts})}
        ),
        "num_train": st.none() | st.integers(1, 10**9),
        "resources": st.fixed_dictionaries({"gpus": st.none() | st.floats(0, 64), "cpus": st.floats(0.01, 1024)}),
    },
)


@given(document=generate_documents)
def test_a_dumped_configuration_loads_as_an_equal_one(folder, document):
    config = GenerateConfig.model_validate(document)
    path = folder / "dumped.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8", newline="")
    assert load_config(path, [], GenerateConfig) == config
    assert load_config(path, []) == config
    assert read_yaml(path) == config.model_dump(mode="json")


@pytest.mark.parametrize("path", CONFIG_PATHS, ids=lambda path: path.stem)
def test_a_shipped_configuration_equals_its_resolved_form(folder, path):
    config = load_config(path, [])
    assert config.kind in KINDS
    resolved = folder / "resolved.yaml"
    resolved.write_text(dump_yaml(config), encoding="utf-8")
    assert load_config(resolved, []) == config
    assert " /" not in resolved.read_text(encoding="utf-8")  # no path of somebody's machine


def test_every_default_is_valid_and_finite():
    for model in (GenerateConfig, BenchConfig):
        config = model(datasets=("a",))
        assert model.model_validate(config.model_dump(mode="json")) == config
        assert all(math.isfinite(value) for value in config.model_dump().values() if isinstance(value, float))


def test_a_configuration_that_does_not_ship_is_named():
    with pytest.raises(ConfigError, match=r"quickstar: .*\(bert_synthetic, .*\), found neither.*'quickstart'"):
        find_config("quickstar")


@pytest.mark.parametrize("path", CONFIG_PATHS, ids=lambda path: path.stem)
def test_a_bare_name_is_the_shipped_configuration(folder, monkeypatch, path):
    monkeypatch.chdir(folder)
    assert load_config(path.stem, ["seed=7"] if path.stem != "quickstart" else []).kind == load_config(path).kind


def test_a_file_goes_before_a_shipped_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "quickstart").write_text("kind: synthesize\nstore: s\nrun_dir: r\narchitectures: [resnet18]\n")
    assert load_config("quickstart").kind == "synthesize"
