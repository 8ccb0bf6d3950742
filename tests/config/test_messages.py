"""What a key may not hold is refused in one line with its path, what was expected and what was found."""

import re

import pytest

from tests.support.job_files import refusal


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
        ("store: 3", r"store: expected a path or an address, found 3"),
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


def test_a_wrong_kind_is_named_before_what_follows_from_it(folder):
    message = refusal(folder, "generate: {}\nseed: -1\nkind: quickstart\n")
    assert "job.yaml: kind: expected 'generate', found 'quickstart' (and 3 more: " in message


def test_a_long_wrong_value_is_cut(folder):
    assert len(refusal(folder, f"datasets: [a]\nseed: {'x' * 50_000}\n")) < 300
