"""Filter expressions mean what Python means by them, and nothing else is accepted."""

import itertools

import pytest

from raysnap.errors import UsageError
from raysnap.store.manifest import DatasetRecord
from raysnap.store.store import Store
from raysnap.store.where import compile_where
from raysnap.testing.blocks import put

ROWS = [
    {"dataset": "birds", "retrain_index": 1, "accuracy": 0.9, "name": "best"},
    {"dataset": "birds", "retrain_index": 4, "accuracy": 0.8, "name": None},
    {"dataset": "cars'; DROP TABLE snapshots; --", "retrain_index": 8, "accuracy": None, "name": "other"},
    {"dataset": None, "retrain_index": None, "accuracy": 0.1, "name": None},
]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    store = Store.open(tmp_path_factory.mktemp("where") / "store", create=True)
    for index, row in enumerate(ROWS):
        put(
            store,
            seed=index,
            name=row["name"],
            retrain_index=row["retrain_index"],
            dataset=DatasetRecord(name=row["dataset"]) if row["dataset"] else None,
            metrics={"val_accuracy": row["accuracy"], "val_loss": 1.5} if row["accuracy"] is not None else {},
            trial=str(index),
        )
    return store


def found(store: Store, expression: str) -> list[int]:
    return sorted(int(summary.trial) for summary in store.summaries(expression))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("architecture == 'resnet18'", [0, 1, 2, 3]),
        ("architecture != 'resnet18'", []),
        ("accuracy > 0.8", [0]),
        ("accuracy >= 0.8", [0, 1]),
        ("0.8 <= accuracy", [0, 1]),
        ("0.5 < accuracy < 0.85", [1]),
        ("not accuracy > 0.8", [1, 2, 3]),
        ("accuracy == None", [2]),
        ("accuracy is None", [2]),
        ("accuracy is not None and accuracy < 0.5", [3]),
        ("retrain_index <= 4", [0, 1]),
        ("retrain_index in (1, 8)", [0, 2]),
        ("retrain_index not in [1, 8]", [1, 3]),
        ("retrain_index in ()", []),
        ("retrain_index > -1", [0, 1, 2]),
        ("dataset == 'birds' and (accuracy > 0.85 or retrain_index == 4)", [0, 1]),
        ("dataset != 'birds'", [2, 3]),
        ('dataset == "cars\'; DROP TABLE snapshots; --"', [2]),
        ("name == 'best'", [0]),
        ("name != 'best'", [1, 2, 3]),
        ("name == None", [1, 3]),
        ("name in ('best', 'other')", [0, 2]),
        ("metrics.val_loss > 1", [0, 1, 3]),
        ("metrics.unheard_of > 1", []),
        ("num_blocks == 3 and num_classes < 5 and num_bytes > 1", [0, 1, 2, 3]),
        ("image_size == 224", [0, 1, 2, 3]),
        ("retrain_index == num_blocks", []),
        ("num_classes > num_blocks", [0, 1, 2, 3]),
        ("created > '2020-01-01'", [0, 1, 2, 3]),
        ("  accuracy > 0.8  ", [0]),
    ],
)
def test_an_expression_selects_what_it_says(store, expression, expected):
    assert found(store, expression) == expected


FIELDS = ["retrain_index < 4", "accuracy >= 0.8", "dataset == 'birds'", "name is None"]


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(FIELDS, 2)))
def test_and_or_not_are_those_of_sets(store, one, other):
    left, right, everything = set(found(store, one)), set(found(store, other)), set(range(len(ROWS)))
    assert set(found(store, f"{one} and {other}")) == left & right
    assert set(found(store, f"{one} or {other}")) == left | right
    assert set(found(store, f"not ({one} or {other})")) == everything - left - right


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "not an expression"),
        ("accuracy >", "not an expression"),
        ("accuracy = 0.5", "not an expression"),
        ("acuracy > 0.5", "did you mean 'accuracy'"),
        ("__class__ == 'x'", "unknown field"),
        ("accuracy", "expected comparisons"),
        ("True", "expected comparisons"),
        ("1 < 2", "expected a field"),
        ("__import__('os').system('x') == 0", "expected a field"),
        ("accuracy > __import__('os')", "expected a constant"),
        ("accuracy.real > 1", "unknown field"),
        ("metrics.val_loss.real > 1", "unknown field"),
        ("metrics > 1", "unknown field"),
        ("architecture == 5", "expected text"),
        ("accuracy > 'high'", "expected a number"),
        ("accuracy > True", "expected a number"),
        ("accuracy > None", "== and != only"),
        ("accuracy is 0.5", "with None only"),
        ("retrain_index in 5", "expected a list"),
        ("architecture in 'resnet18'", "expected a list"),
        ("retrain_index == 2**70", "expected a constant"),
        ("retrain_index == 99999999999999999999", "too large"),
        ("name == dataset", "can't be compared"),
        ("architecture == accuracy", "can't be compared"),
        ("(lambda: 1)() == 1", "expected a field"),
        ("[x for x in (1,)] == 1", "expected a field"),
        ("f'{accuracy}' == '1'", "expected a field"),
        ("accuracy > 0.5 if True else False", "expected comparisons"),
        ("accuracy > 1 #" + "x" * 20_000, "at most 10000 characters"),
        ("not " * 2_000 + "accuracy > 1", "nested too deeply|not an expression"),
        ("(" * 3_000, "nested too deeply|not an expression"),
        ("retrain_index in (" + "1," * 1_000 + ")", "at most 500 constants"),
        ("accuracy > 1\0", "not an expression"),
    ],
)
def test_anything_else_is_refused_in_one_line(expression, message):
    with pytest.raises(UsageError, match=message) as caught:
        compile_where(expression)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
