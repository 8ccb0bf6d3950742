"""Configurations: what loads, what is refused and how it is told, and that a dump reruns the job."""

import json
import math
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raysnap.config.bench import BenchConfig
from raysnap.config.jobs import GenerateConfig
from raysnap.config.load import KINDS, dump_yaml, find_config, load_any_config, load_config
from raysnap.config.quickstart import QuickstartConfig
from raysnap.config.yaml_files import MAX_CONFIG_BYTES, apply_overrides, read_yaml
from raysnap.errors import ConfigError
from tests.support import ROOT

CONFIG_PATHS = sorted(ROOT.glob("configs/*.yaml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("configs")


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "job.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def load(folder: Path, text: str, *overrides: str) -> GenerateConfig:
    return load_config(write(folder, text), list(overrides), GenerateConfig)


def refusal(folder: Path, text: str | bytes, *overrides: str) -> str:
    """The message that a generate job of this text is refused with; always one line that names the file."""
    path = write(folder, text)
    started_s = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        load_config(path, list(overrides), GenerateConfig)
    assert time.perf_counter() - started_s < 10  # about 1 s at most, on a machine that does nothing else
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


# YAML


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"job\.yaml line 3: the key 'a' appears twice"),
        ("train:\n  lr: 1\n  lr: 2\n", r"line 3: .*the key 'lr' appears twice"),
        ("a: !!python/object:os.system x", r"line 1: .*could not determine a constructor for the tag"),
        ("a: !!python/object/apply:os.system ['touch canary']", r"could not determine a constructor"),
        ("a: !!python/name:os.system", r"could not determine a constructor"),
        ("a: &x 1\nb: *x\n", r"line 2: .*aliases \(\*name\) are not supported"),
        ("a: &a [x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]\n", r"aliases"),
        ("train:\n\tlr: 1\n", r"line 2: not valid YAML: found character '\\t'"),
        ("? [a, b]\n: c\n", r"line 1: expected text as a key, found a list or a mapping"),
        ("? {a: b}\n: c\n", r"line 1: expected text as a key"),
        ("a: [1, 2", r"not valid YAML"),
        ("a: 'x", r"not valid YAML"),
        ("--- {a: 1}\n--- {a: 2}\n", r"expected a single document"),
        ('a: !!int ""', r"not valid YAML"),
        ("a: !!int x", r"not valid YAML"),
        ("a: !!bool perhaps", r"not valid YAML"),
        ("a: !!timestamp yesterday", r"not valid YAML"),
        ("a: 1" + "0" * 5000, r"not valid YAML"),
        ("a: \x00", r"not valid YAML"),
        ("[" * 20_000, r"not valid YAML: .*recursion"),
        ("", r"expected `key: value` lines, found nothing"),
        ("# nothing but a comment\n", r"found nothing"),
        ("null", r"found nothing"),
        ("just words", r"expected `key: value` lines, found str"),
        ("- a\n- b\n", r"expected `key: value` lines, found list"),
        (b"\xff\xfe\x00", r"expected UTF-8 text"),
        ("a: 1\n" + "#" * 10_000_000, rf"expected at most {MAX_CONFIG_BYTES} bytes, found more"),
    ],
)
def test_bad_yaml_is_refused_in_one_line(folder, monkeypatch, text, message):
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match=message):
        read_yaml(write(folder, text))
    refusal(folder, text)
    assert [path.name for path in folder.iterdir()] == ["job.yaml"]


@pytest.mark.parametrize("place", ["missing.yaml", "."])
def test_a_file_that_is_none_is_refused(folder, place):
    with pytest.raises(ConfigError, match="can't be read as a configuration file: (No such file|Is a directory)"):
        read_yaml(folder / place)


def test_a_file_without_an_end_is_not_read_to_its_end():
    with pytest.raises(ConfigError, match="at most"):
        read_yaml(Path("/dev/zero"))


@given(text=st.text(max_size=60) | st.text(alphabet="ab:-[]{}&*!?|>'\"#%@\n\t 0123456789.e", max_size=40))
def test_any_text_is_a_mapping_or_refused(folder, text):
    path = folder / "any.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    try:
        told = read_yaml(path)
    except ConfigError as error:
        told = str(error)
    assert isinstance(told, dict) or "\n" not in told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.0e-3", 0.001),
        ("1.0E-3", 0.001),
        ("1.e-3", 0.001),
        (".1e-2", 0.001),
        ("0.001", 0.001),
        ("1.0e+1", 10),
        ("1", 1),
    ],
)
def test_a_learning_rate_is_a_number_in_every_way_in_which_yaml_writes_one(folder, text, expected):
    lr = load(folder, f"datasets: [a]\ntrain: {{lr: {text}}}\n").train.lr
    assert isinstance(lr, float)
    assert lr == expected
    assert load(folder, "datasets: [a]", f"train.lr={text}").train.lr == expected


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e-3", "0.001"),
        ("1E-3", "0.001"),
        ("1e+1", "10.0"),
        ("1.5e3", "1500.0"),
        ("-2e-7", "-2.0e-07"),
        ("1e999", ".inf"),
    ],
)
def test_what_is_text_to_some_yaml_readers_and_a_number_to_others_is_refused_in_a_file(folder, text, number):
    told = f"YAML reads {text} as text: write {number}, or quotes if text is meant"
    assert refusal(folder, f"datasets: [a]\ntrain:\n  lr: {text}\n").endswith(f"job.yaml line 3: {told}")
    assert refusal(folder, f"datasets: [a]\ntrain: {{layer_lrs: [0.1, {text}]}}\n").endswith(f"line 2: {told}")
    assert load(folder, f"datasets: ['{text}']").datasets == (text,)
    assert apply_overrides({}, [f"train.lr={text}"]) == {"train": {"lr": float(text)}}


def test_a_date_is_text(folder):
    assert load(folder, "datasets: [2024-11-05]\nrun_dir: 2024-11-05\n").run_dir == Path("2024-11-05")


# What a key may hold


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", r"job\.yaml: datasets: missing, and it has no default"),
        ("datasets: []", r"datasets: expected at least 1 in the list, found \[\]"),
        ("datasets: a", r"datasets: expected a list, found 'a'"),
        ("datasets: [a, 3]", r"datasets\.1: expected text, found 3"),
        ("datasets: [no]", r"datasets: found the boolean false, as YAML reads yes, no, on and off; quote it"),
        ("datasets: [a, b, a]", r"`datasets` lists 'a' twice"),
        ("architectures: [resnet18, resnet18]", r"`architectures` lists 'resnet18' twice"),
        ("train: {lr: .nan}", r"train\.lr: expected (a finite number|more than 0), found nan"),
        ("train: {lr: .inf}", r"train\.lr: expected (a finite number|at most 100), found inf"),
        ("train: {lr: fast}", r"train\.lr: expected a number, found 'fast'"),
        ("train: {lr: 0}", r"train\.lr: expected more than 0, found 0"),
        ("train: {lr: on}", r"train\.lr: found the boolean true"),
        ("train: {lr: [0.1, 0.2]}", r"train\.lr: expected a number, found \[0\.1, 0\.2\]"),
        ("train: {epochs: yes}", r"train\.epochs: found the boolean true"),
        ("train: {epochs: 1.5}", r"train\.epochs: expected a whole number, found 1\.5"),
        ("train: {epochs: 5 epochs}", r"train\.epochs: expected a whole number, found '5 epochs'"),
        ("train: {epochs: 0}", r"train\.epochs: expected at least 1, found 0"),
        ("train: {epochs: -1}", r"train\.epochs: expected at least 1, found -1"),
        ("train: {epochs: null}", r"train\.epochs: expected a whole number, found None"),
        ("train: {momentum: 1}", r"train\.momentum: expected less than 1, found 1"),
        ("train: {compile: perhaps}", r"train\.compile: expected true or false, found 'perhaps'"),
        ("train: {channels_last: perhaps}", r"train\.channels_last: expected true or false, found 'perhaps'"),
        ("train: {views: 0}", r"train\.views: expected at least 1, found 0"),
        ("train: {views: yes}", r"train\.views: found the boolean true"),
        ("train: {augment: true}", r"train\.augment: unknown key"),
        ("train: {precision: bfloat61}", r"train\.precision: expected .*did you mean 'bfloat16'\?"),
        ("train: {checkpoint_every: 0}", r"train\.checkpoint_every: expected at least 1, found 0"),
        ("prefix_cache_bytes: -1", r"prefix_cache_bytes: expected at least 0, found -1"),
        ("resources: {num_workers: 1025}", r"resources\.num_workers: expected at most 1024, found 1025"),
        ("resources: {max_failures: -1}", r"resources\.max_failures: expected at least 0, found -1"),
        ("train: {optimizer: adma}", r"train\.optimizer: expected 'adam', .* found 'adma'; did you mean 'adam'\?"),
        ("train: adam", r"train: expected .*found 'adam'"),
        ("train: {epocs: 3}", r"train\.epocs: unknown key; did you mean 'epochs'\?"),
        ("base: {pretraining: {dataset: a, train: {epcohs: 1}}}", r"train\.epcohs: .*did you mean 'epochs'\?"),
        ("archs: [resnet18]", r"archs: unknown key"),
        ("dataset: [a]", r"dataset: unknown key; did you mean 'datasets'\?"),
        ("lr: 0.1", r"lr: unknown key; did you mean 'train\.lr'\?"),
        ("weights: random", r"weights: unknown key; did you mean 'base\.weights'\?"),
        ("zzzzzz: 1", r"zzzzzz: unknown key$"),
        ("1: 2", r"1: expected text as a key, found 1"),
        ("image_size: 8", r"image_size: expected at least 16, found 8"),
        ("image_size: 224px", r"image_size: expected a whole number, found '224px'"),
        ("seed: -1", r"seed: expected at least 0, found -1"),
        ("seed: 4294967296", r"seed: expected less than"),
        ("num_snapshots: 1000000000000", r"num_snapshots: expected at most"),
        ("store: 3", r"store: expected a path, found 3"),
        ("kind: bench", r"kind: expected 'generate', found 'bench'"),
        ("resources: {gpus: .inf}", r"resources\.gpus"),
        ("resources: {max_concurrent: 0}", r"resources\.max_concurrent: expected at least 1, found 0"),
        (
            "retrain: {distribution: fixed}",
            r"retrain: `distribution: fixed`: expected exactly one of .*, found neither",
        ),
        (
            "retrain: {distribution: fixed, values: [1], freeze_fraction: 0.5}",
            r"expected exactly one of .*, found both",
        ),
        ("retrain: {distribution: fixed, values: []}", r"retrain: `values` is empty"),
        ("retrain: {distribution: fixed, values: [on]}", r"retrain\.values: found the boolean true"),
        ("retrain: {distribution: fixed, values: [-1]}", r"retrain\.values\.0: expected at least 0, found -1"),
        ("retrain: {distribution: fixed, freeze_fraction: 1.5}", r"freeze_fraction: expected at most 1, found 1\.5"),
        (
            "retrain: {values: [1]}",
            r"retrain: `values` works only with `distribution: fixed`, found `twenty_five_percent`",
        ),
        (
            "retrain: {distribution: uniform, freeze_fraction: 0.1}",
            r"`freeze_fraction` works only with .*, found `uniform`",
        ),
        ("retrain: {distribution: topp_layers}", r"did you mean 'top_layers'\?"),
    ],
)
def test_what_a_key_may_not_hold_is_refused_with_its_path(folder, text, message):
    needs_datasets = not text.startswith(("datasets", "{}"))
    document = text + ("\ndatasets: [x]\n" if needs_datasets else "\n")
    found = refusal(folder, document)
    assert re.search(message, found), found
    assert str(folder / "job.yaml") in found


def test_several_faults_are_counted(folder):
    message = refusal(folder, "datasets: [a]\nseed: -1\nimage_size: 1\nnum_snapshots: 0\nnum_val: 0\n")
    assert "seed: expected at least 0, found -1 (and 3 more: image_size" in message


def test_a_long_wrong_value_is_cut(folder):
    assert len(refusal(folder, f"datasets: [a]\nseed: {'x' * 50_000}\n")) < 300


def test_a_configuration_never_changes(folder):
    config = load(folder, "datasets: [a]")
    with pytest.raises(ValidationError):
        config.seed = 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets: [a]", r"kind: expected one of generate, sweep, synthesize, bench, quickstart, found None"),
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
        load_any_config(write(folder, text), [])
    assert "\n" not in str(caught.value)


# Overrides


def test_an_override_sets_one_key_and_leaves_the_document_alone():
    document = {"train": {"lr": 0.1, "epochs": 3}, "seed": 1}
    result = apply_overrides(document, ["train.lr=1e-3", "base.weights=random", "datasets=[a, b]", "num_val="])
    assert result == {
        "train": {"lr": 0.001, "epochs": 3}, "seed": 1, "base": {"weights": "random"}, "datasets": ["a", "b"],
        "num_val": None,
    }  # fmt: skip
    assert document == {"train": {"lr": 0.1, "epochs": 3}, "seed": 1}


def test_the_last_override_wins_and_may_hold_equals_signs():
    result = apply_overrides({}, ["where=a == 'b'", "seed=1", "seed=2"])
    assert result == {"where": "a == 'b'", "seed": 2}


@pytest.mark.parametrize("override", ["seed", "=3", "a b=3", "train..lr=3", ".lr=3", "datasets.0=x", "--seed=3", ""])
def test_what_is_no_override_is_refused(override):
    with pytest.raises(ConfigError, match="expected key=value, for example train.epochs=3"):
        apply_overrides({}, [override])


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("[1", "not valid YAML"),
        ("*x", "aliases (*name) are not supported"),
        ("!!python/name:os.system", "not valid YAML"),
        ("{a: 1, a: 2}", "the key 'a' appears twice"),
        ("\t", "not valid YAML"),
    ],
)
def test_an_override_that_is_no_yaml_names_its_key(value, fault):
    with pytest.raises(ConfigError, match=rf"^train\.lr= line 1: {re.escape(fault)}"):
        apply_overrides({}, [f"train.lr={value}"])


# Round trips

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
    st.fixed_dictionaries({"distribution": st.just("fixed"), "freeze_fraction": st.floats(0, 1)}),
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
    assert load_any_config(path, []) == config
    assert read_yaml(path) == config.model_dump(mode="json")


words = st.text(alphabet="abc019 -:.#=e", max_size=8)


@given(
    value=st.recursive(
        words | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.booleans() | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(words, inner),
    )
)
def test_an_override_reads_json_as_json_means_it(value):
    assert apply_overrides({}, [f"a.b={json.dumps(value)}"]) == {"a": {"b": value}}


@pytest.mark.parametrize("path", CONFIG_PATHS, ids=lambda path: path.stem)
def test_a_shipped_configuration_loads_and_its_resolved_form_is_equal(folder, path):
    config = load_any_config(path, [])
    assert config.kind in KINDS
    resolved = folder / "resolved.yaml"
    resolved.write_text(dump_yaml(config), encoding="utf-8")
    assert load_any_config(resolved, []) == config
    assert " /" not in resolved.read_text(encoding="utf-8")  # no path of somebody's machine


def test_every_default_is_valid_and_finite():
    for model in (GenerateConfig, BenchConfig):
        config = model(datasets=("a",))
        assert model.model_validate(config.model_dump(mode="json")) == config
        assert all(math.isfinite(value) for value in config.model_dump().values() if isinstance(value, float))


def test_the_quickstart_is_found_and_moves_into_a_folder():
    config = load_config(find_config("quickstart"), [], QuickstartConfig).inside(Path("here"))
    assert (config.generate.store, config.bench.store) == (Path("here/store"), (Path("here/store"),))
    assert config.generate.data_dir == config.bench.data_dir == Path("here/data")
    assert (config.generate.run_dir, config.bench.run_dir) == (Path("here/run"), Path("here/run/bench"))


def test_a_configuration_that_does_not_ship_is_named():
    with pytest.raises(ConfigError, match=r"configs/nope\.yaml: not found"):
        find_config("nope")
