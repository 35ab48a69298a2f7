"""Rows on disk are the rows that were read: every value as it is, in memory or memory-mapped."""

import gzip
import json
import os
import tracemalloc

import pyarrow
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from prunekit.data import store
from prunekit.data.columns import Column, prefixed
from prunekit.data.errors import DataError
from prunekit.data.ragged import Ragged
from prunekit.data.store import column_type
from prunekit.data.tables import read_table


@pytest.fixture(params=["in memory", "on disk"])
def kept(request, monkeypatch):
    if request.param == "on disk":
        monkeypatch.setattr(store, "SMALL", 0)
    return request.param


def typed(column):
    """Values with their types: 1, 1.0 and True are equal, and not the same."""
    return [(type(value).__name__, value) for value in column]


# -- values ------------------------------------------------------------------------------------------

# what the readers of datasets make missing, a float, or another row
MIXED = [1, 1.0, "1", True, "true", None, {"a": [1, 1.5, None]}, "NA", 2**70, "\ud83d"]


def test_json_values_keep_their_types(tmp_path, kept):
    records = [{"mixed": value, "text": "NA", "whole": 3, "half": 0.5, "yes": False} for value in MIXED]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    table = read_table(tmp_path / "t.jsonl", tmp_path)
    assert typed(table.columns["mixed"]) == typed(MIXED)
    assert [table.columns["mixed"][row] for row in range(len(MIXED))] == MIXED
    assert [typed(table.columns[name])[0] for name in ("text", "whole", "half", "yes")] == [
        ("str", "NA"),
        ("int", 3),
        ("float", 0.5),
        ("bool", False),
    ]


def test_a_column_that_some_records_lack_is_empty_there(tmp_path, kept):
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n\n{"b": "x"}\n{"a": 2, "b": "y"}\n')
    columns = read_table(tmp_path / "t.jsonl", tmp_path).columns
    assert {name: list(column) for name, column in columns.items()} == {"a": [1, None, 2], "b": [None, "x", "y"]}


@pytest.mark.parametrize("cell", ["NA", "nan", "", "1", "1.0", "TRUE", "null", "007", "1e5", " x "])
def test_cells_of_a_csv_are_the_texts_that_they_are(tmp_path, kept, cell):
    (tmp_path / "t.csv").write_text(f"text,label\na,{cell}\nb,{cell}\n")
    assert typed(read_table(tmp_path / "t.csv", tmp_path).columns["label"]) == [("str", cell)] * 2


def test_class_names_in_a_parquet_file_are_read(tmp_path, kept):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["World", "Sports"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet(tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet", tmp_path)
    assert table.classes == {"label": ("World", "Sports")}
    assert list(table.columns["label"]) == [1, 0]


@pytest.mark.parametrize(
    ("types", "arrow"),
    [
        ({str}, "string"),
        ({str, type(None)}, "string"),
        ({int}, "int64"),
        ({bool}, "bool"),
        ({float}, "double"),
        ({bool, int}, "json"),
        ({int, float}, "json"),
        ({list}, "json"),
        ({type(None)}, "string"),
    ],
)
def test_a_column_has_a_type_of_its_own_only_where_all_values_do(types, arrow):
    assert column_type(types) == arrow


# -- files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.json"])
def test_a_compressed_file_is_read_like_itself(tmp_path, kept, name):
    content = {
        "t.csv": "text,label\na,1\nb,2\n",
        "t.tsv": "text\tlabel\na\t1\nb\t2\n",
        "t.jsonl": '{"text": "a", "label": "1"}\n{"text": "b", "label": "2"}\n',
        "t.json": '[{"text": "a", "label": "1"}, {"text": "b", "label": "2"}]',
    }[name]
    (tmp_path / name).write_text(content)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    plain, packed = (read_table(tmp_path / file, tmp_path) for file in (name, f"{name}.gz"))
    assert dict(plain.columns) == dict(packed.columns) == {"text": ["a", "b"], "label": ["1", "2"]}


def test_a_text_file_has_a_row_per_line(tmp_path, kept):
    (tmp_path / "t.txt").write_bytes("a b\r\n\nc\u2028d\n".encode())
    assert dict(read_table(tmp_path / "t.txt", tmp_path).columns) == {"text": ["a b", "", "c\u2028d"]}


@pytest.mark.parametrize(
    "content", [b"no archive at all", gzip.compress(b"text,label\n" + b"a,b\n" * 9999)[:-20]], ids=["none", "cut"]
)
def test_a_damaged_archive_is_refused(tmp_path, content):
    (tmp_path / "t.csv.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"(?s)t\.csv\.gz is (no gzip|a damaged) archive .*ompress it again"):
        read_table(tmp_path / "t.csv.gz")


def test_rows_are_written_once_per_content(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SMALL", 0)
    for name in ("t.csv", "copy.csv"):
        (tmp_path / name).write_text("text,label\na,1\n")
        read_table(tmp_path / name, tmp_path)
    (file,) = (tmp_path / "rows").glob("*.arrow")
    written = file.stat().st_mtime_ns
    read_table(tmp_path / "t.csv", tmp_path)
    assert file.stat().st_mtime_ns == written
    (tmp_path / "t.csv").write_text("text,label\nb,1\n")
    assert list(read_table(tmp_path / "t.csv", tmp_path).columns["text"]) == ["b"]
    assert len(list((tmp_path / "rows").glob("*.arrow"))) == 2


def test_damaged_rows_are_written_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "SMALL", 0)
    (tmp_path / "t.csv").write_text("text,label\nabc,1\n")
    read_table(tmp_path / "t.csv", tmp_path)
    (file,) = (tmp_path / "rows").glob("*.arrow")
    file.write_bytes(file.read_bytes().replace(b"abc", b"abd"))
    assert list(read_table(tmp_path / "t.csv", tmp_path).columns["text"]) == ["abc"]
    assert f"{file} is not what was written" in capsys.readouterr().err


def test_an_error_in_a_file_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SMALL", 0)
    (tmp_path / "t.csv").write_text("text,label\na,1\nb\n")
    with pytest.raises(DataError, match="row 2"):
        read_table(tmp_path / "t.csv", tmp_path)
    assert list((tmp_path / "rows").iterdir()) == []


def test_rows_stay_in_memory_where_the_cache_cannot_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "SMALL", 0)
    (tmp_path / "t.csv").write_text("text,label\na,1\n")
    (tmp_path / "cache").write_text("a file")
    assert list(read_table(tmp_path / "t.csv", tmp_path / "cache").columns["text"]) == ["a"]
    said = capsys.readouterr().err
    assert (
        said == f"cache      {tmp_path / 'cache' / 'rows'} cannot be written (Not a directory); continuing without it\n"
    )


# -- columns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_a_column_is_a_sequence_over_the_parts_of_a_table(kind):
    parts = [pyarrow.array(["x", "a", None], kind)[1:], pyarrow.array([], kind), pyarrow.array(["dé", ""], kind)]
    column = Column(parts)
    values = ["a", None, "dé", ""]
    assert (len(column), list(column), column == values, column == values[:3]) == (4, values, True, False)
    assert [column[row] for row in range(-4, 4)] == values * 2
    assert column[1:3] == [None, "dé"]
    assert list(column.texts()) == [column.texts()[row] for row in range(4)] == ["a", "", "dé", ""]
    with pytest.raises(IndexError):
        column[4]


def test_rows_of_rows_of_a_column():
    column = Column([pyarrow.array(["a", "b"]), pyarrow.array(["c"])]).take([2, 0, 1])
    assert list(column) == ["c", "a", "b"]
    assert list(column.take([0, 2])) == [column[0], column[2]] == ["c", "b"]
    assert list(prefixed("go ", column)) == ["go c", "go a", "go b"]
    assert prefixed("go ", ["c"]) == ["go c"]


def test_a_part_of_records():
    column = Column([pyarrow.array([{"en": "a"}, None, {"en": None}])])
    assert list(column.field(("en",))) == ["a", None, None]
    assert [column.field(("en",)).texts()[row] for row in range(3)] == ["a", "", ""]


def test_lists_of_words_are_joined_when_they_are_read():
    column = Column([pyarrow.array([{"a": {"b": ["x", "y"]}}, {"a": {"b": []}}])])
    assert list(column.field(("a", "b")).joined("\n")) == ["x\ny", ""]
    assert column.field(("a", "b")).take([1, 0]).joined(" ")[1] == "x y"


# -- rows of numbers ---------------------------------------------------------------------------------


def test_ragged_rows_are_padded_to_the_longest_of_a_batch():
    rows = Ragged.of([[1, 2], [], [3], [4, 5, 6]])
    assert rows.lengths.tolist() == [2, 0, 1, 3]
    assert rows.padded(torch.tensor([2, 0, 1]), 9).tolist() == [[3, 9], [1, 2], [9, 9]]
    assert (rows.row(3).tolist(), rows.first(3).tolist()) == ([4, 5, 6], [1, 2, 3])


def test_ragged_rows_of_several_parts_are_one():
    lists = pyarrow.array([[0], [1, 2], [3]], pyarrow.list_(pyarrow.int32()))
    rows = Ragged.of_lists([lists[1:], pyarrow.array([[4], []], pyarrow.list_(pyarrow.int32()))])
    assert [rows.row(number).tolist() for number in range(len(rows))] == [[1, 2], [3], [4], []]
    assert rows.offsets.tolist() == [0, 2, 3, 4, 4]


@pytest.mark.slow
def test_reading_a_large_file_keeps_nothing_in_memory(tmp_path, monkeypatch):
    """What Python allocates for 40,000 rows of 1 kB stays far below their 40 MB."""
    monkeypatch.setattr(store, "SMALL", 0)
    with (tmp_path / "t.csv").open("w") as stream:
        stream.write("text,label\n" + "".join(f"{number:01000d},a\n" for number in range(40_000)))
    tracemalloc.start()
    table = read_table(tmp_path / "t.csv", tmp_path)
    texts = table.texts("text", range(0, 40_000, 2))
    assert sum(map(len, texts)) == 20_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6
    assert os.stat(next((tmp_path / "rows").glob("*.arrow"))).st_size > 40e6
