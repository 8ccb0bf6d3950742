"""YAML without its ambiguities: what is read, what is refused in one line, and overrides on top."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysnap.config.yaml_files import MAX_CONFIG_BYTES, apply_overrides, read_yaml
from raysnap.errors import ConfigError
from tests.support.job_files import load, refusal, write


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
        outcome = read_yaml(path)
    except ConfigError as error:
        outcome = str(error)
    assert isinstance(outcome, dict) or "\n" not in outcome


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
def test_a_learning_rate_is_a_number_however_yaml_writes_it(folder, text, expected):
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
def test_an_ambiguous_number_is_refused_in_a_file(folder, text, number):
    message = f"YAML reads {text} as text: write {number}, or quotes if text is meant"
    assert refusal(folder, f"datasets: [a]\ntrain:\n  lr: {text}\n").endswith(f"job.yaml line 3: {message}")
    assert refusal(folder, f"datasets: [a]\ntrain: {{layer_lrs: [0.1, {text}]}}\n").endswith(f"line 2: {message}")
    assert load(folder, f"datasets: ['{text}']").datasets == (text,)
    assert apply_overrides({}, [f"train.lr={text}"]) == {"train": {"lr": float(text)}}


def test_a_date_is_text(folder):
    assert load(folder, "datasets: [2024-11-05]\nrun_dir: 2024-11-05\n").run_dir == Path("2024-11-05")


# Overrides


def test_an_override_sets_one_key_and_leaves_the_document_alone():
    document = {"train": {"lr": 0.1, "epochs": 3}, "seed": 1}
    result = apply_overrides(document, ["train.lr=1e-3", "base.weights=random", "datasets=[a, b]", "num_val="])
    assert result == {
        "train": {"lr": 0.001, "epochs": 3}, "seed": 1, "base": {"weights": "random"}, "datasets": ["a", "b"],
        "num_val": None,
    }  # fmt: skip
    assert document == {"train": {"lr": 0.1, "epochs": 3}, "seed": 1}


AS_WRITTEN = [
    "run #1", "# 1", "a # b # c", "it's #1", " run ", "a\nb", "--- a", "&a b", "0123",
    "1:30", "1_000", "1_0.5", "0b1", "~/x", "2026-01-31",
]  # fmt: skip


@pytest.mark.parametrize("text", AS_WRITTEN)
def test_an_override_keeps_text_that_yaml_would_change(text):
    assert apply_overrides({}, [f"run_dir={text}"]) == {"run_dir": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'a #1'", "a #1"),
        ('"a\\tb"', "a\tb"),
        ("{a: 1}", {"a": 1}),
        ("0", 0),
        ("-5", -5),
        ("1e-3", 1e-3),
        ("0x10", 16),
        ("~", None),
    ],
)
def test_an_override_is_yaml_otherwise(text, value):
    assert apply_overrides({}, [f"key={text}"]) == {"key": value}


@pytest.mark.parametrize("text", ["3 # items", "[a, b] # both", "'a' # b", "{a: 1} #x", "null #"])
def test_an_override_with_a_comment_is_refused(text):
    with pytest.raises(ConfigError, match="key=: expected a value, found '#.*' after it; quote the whole"):
        apply_overrides({}, [f"key={text}"])


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


words = st.text(alphabet="abc019 -:.#=e", max_size=8)


@given(
    value=st.recursive(
        words | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.booleans() | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(words, inner),
    )
)
def test_an_override_reads_json_as_json_means_it(value):
    assert apply_overrides({}, [f"a.b={json.dumps(value)}"]) == {"a": {"b": value}}
