"""A store as a data frame: a row per snapshot, a column per field of `where`."""

import pandas as pd

from raysnap.store.manifest import DatasetRecord
from raysnap.store.where import FIELDS
from raysnap.testing.blocks import put


def test_the_columns_are_the_fields_of_where(store):
    put(store)
    assert set(store.to_pandas().columns) == set(FIELDS)


def test_a_row_holds_what_the_manifest_says(store):
    base = put(store, name="first").manifest
    dataset, metrics = DatasetRecord(name="birds"), {"val_accuracy": 0.5, "val_loss": 1.5}
    tuned = put(store, seed=1, base="first", retrain_index=1, dataset=dataset, metrics=metrics, trial="7").manifest
    row = store.to_pandas().set_index("id").loc[tuned.id]
    assert (row["architecture"], row["num_classes"], row["num_blocks"]) == ("resnet18", 4, 3)
    assert (row["dataset"], row["retrain_index"], row["base"], row["trial"]) == ("birds", 1, base.id, "7")
    assert (row["accuracy"], row["metrics.val_accuracy"], row["metrics.val_loss"]) == (0.5, 0.5, 1.5)
    assert (row["num_bytes"], row["created"]) == (tuned.num_bytes, tuned.created)


def test_what_a_snapshot_lacks_is_missing(store):
    put(store)
    put(store, seed=1, name="second", retrain_index=2, metrics={"val_loss": 1.0})
    table = store.to_pandas().sort_values("retrain_index", ignore_index=True)
    assert table["retrain_index"].dtype == pd.Int64Dtype()
    assert table["retrain_index"][0] == 2
    for column in ("name", "dataset", "retrain_index", "accuracy", "base", "trial", "metrics.val_loss"):
        assert pd.isna(table[column][1])


def test_the_first_of_several_names_is_shown(store):
    snapshot = put(store, name="zebra").manifest.id
    store.set_ref("ant", snapshot)
    assert list(store.to_pandas()["name"]) == ["ant"]


def test_rows_are_those_that_where_matches(store):
    put(store, retrain_index=0)
    matched = put(store, seed=1, retrain_index=2).manifest.id
    assert list(store.to_pandas("retrain_index > 1")["id"]) == [matched]
    assert store.to_pandas("retrain_index > 2").empty


def test_an_empty_store_is_an_empty_table_with_columns(store):
    assert set(store.to_pandas().columns) == set(FIELDS)
    assert store.to_pandas().empty
