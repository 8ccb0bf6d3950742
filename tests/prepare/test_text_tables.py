"""Tables of texts become a folder of texts; rows that can't be used are counted."""

import json

import pytest

from raysnap.errors import DataError
from raysnap.prepare.own import prepare_own

ROWS = [("a fine, old soup", "good"), ("two\nlines", "bad"), ("really good", "good"), ("no", "bad")]


def as_csv(rows, header="text,label", end="\n") -> str:
    return end.join([header, *('"{}",{}'.format(text.replace('"', '""'), label) for text, label in rows)]) + end


def texts_of(dataset):
    return sorted((item.path.read_text(), dataset.classes[item.label]) for item in dataset.splits["train"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("reviews.csv", as_csv(ROWS)),
        ("reviews.csv", "\ufeff" + as_csv(ROWS, "Review,Sentiment", "\r\n")),
        ("reviews.tsv", as_csv(ROWS, "id\ttext\tlabel").replace('",', '"\t').replace('\n"', '\n7\t"')),
        ("reviews.jsonl", "\n".join(json.dumps({"text": text, "label": label}) for text, label in ROWS)),
    ],
)
def test_a_table_becomes_a_folder_of_its_texts(tmp_path, name, content):
    (tmp_path / name).write_text(content, newline="")
    result = prepare_own("mine", tmp_path / name, tmp_path / "data")
    assert (result.dataset.kind, result.counts["train"], result.num_bad) == ("texts", 4, 0)
    assert texts_of(result.dataset) == sorted(ROWS)


def test_tables_are_splits_by_their_names(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(as_csv(ROWS))
    assert prepare_own("mine", tmp_path, tmp_path / "data").counts == {"train": 4, "val": 0, "test": 4}


def test_columns_can_be_chosen(tmp_path):
    (tmp_path / "t.csv").write_text(as_csv(ROWS, "what,stars"))
    with pytest.raises(DataError, match="expected a header with a column of texts, found what, stars; .*--text-column"):
        prepare_own("mine", tmp_path / "t.csv", tmp_path / "data")
    result = prepare_own("mine", tmp_path / "t.csv", tmp_path / "data", text_column="what", label_column="stars")
    assert result.dataset.classes == ("bad", "good")


def test_rows_without_a_class_and_bad_bytes_are_counted(tmp_path):
    content = as_csv([*ROWS, ("who knows", ""), ("", "good")]).encode() + b'"caf\xe9",good\n'
    (tmp_path / "t.csv").write_bytes(content)
    result = prepare_own("mine", tmp_path / "t.csv", tmp_path / "data")
    assert (result.counts["train"], result.num_bad, result.account.num_left_out) == (4, 1, 2)
    assert "t.csv#6: expected UTF-8" in result.account.bad[0]
    again = prepare_own("mine", tmp_path / "t.csv", tmp_path / "data")
    assert again.account == result.account


@pytest.mark.parametrize("line", ["[1]", "{", '{"text": ["a"], "label": 1}'])
def test_lines_that_are_no_objects_are_refused(tmp_path, line):
    (tmp_path / "t.jsonl").write_text(line)
    with pytest.raises(DataError, match="expected a (JSON object|text and a class), found"):
        prepare_own("mine", tmp_path / "t.jsonl", tmp_path / "data")


def test_a_parquet_file_of_texts_becomes_a_folder_of_them(tmp_path):
    """Classes are numbers with names, as Hugging Face's datasets write them; -1 stands for none."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    labels = [["bad", "good"].index(label) for _, label in ROWS]
    table = pa.table({"text": [*(text for text, _ in ROWS), "who knows"], "label": [*labels, -1]})
    features = {"label": {"_type": "ClassLabel", "names": ["bad", "good"]}, "text": {"_type": "Value"}}
    (tmp_path / "mine").mkdir()
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
        tmp_path / "mine" / "train-00000-of-00001.parquet",
    )
    result = prepare_own("mine", tmp_path / "mine", tmp_path / "data")
    assert (result.dataset.kind, result.counts["train"], result.account.num_left_out) == ("texts", 4, 1)
    assert texts_of(result.dataset) == sorted(ROWS)
