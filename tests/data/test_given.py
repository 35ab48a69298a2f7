"""Rows given from Python: every value as it is, one file for equal rows, and the checks of files."""

import json
from decimal import Decimal
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow
import pytest

import prunekit
from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.config.identity import config_hash
from prunekit.data.errors import DataError
from prunekit.data.given import task_of
from prunekit.data.module import TokenPruningDataModule
from prunekit.data.reading import read_task
from prunekit.data.sources import find_task
from prunekit.data.spec import TaskSpec
from prunekit.data.tables import read_table
from prunekit.runs.identity import canonical

RECORDS = [
    {"text": "NA", "label": "yes", "more": 1},
    {"text": "007", "label": "no", "more": 2},
    {"text": "é \u2028 x", "label": "yes", "more": 3},
]


class Stream:
    """A frame that offers Arrow's interface alone, as those of polars do."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


FRAMES = {
    "list": lambda rows: rows,
    "dict": lambda rows: {name: [row[name] for row in rows] for name in rows[0]},
    "pandas": lambda rows: pd.DataFrame(rows, index=[7, 7, 9]),
    "dataset": datasets.Dataset.from_list,
    "arrow": pyarrow.Table.from_pylist,
    "stream": lambda rows: Stream(pyarrow.Table.from_pylist(rows)),
}


@pytest.fixture
def given(tmp_path):
    def of(data, **keys):
        return task_of(data, cache_dir=tmp_path, **keys)

    return of


def values(path):
    return {name: list(column) for name, column in read_table(Path(path)).columns.items()}


def typed(column):
    return [(type(value).__name__, value) for value in column]


def refusal(given, data, **keys):
    with pytest.raises(DataError) as error:
        given(data, **keys)
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert all(len(line) < 300 for line in lines)
    return str(error.value)


# -- values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FRAMES)
def test_equal_rows_are_one_file_whatever_held_them(given, tmp_path, kind):
    task = given(FRAMES[kind](RECORDS))
    assert values(task["file"]) == {"text": ["NA", "007", "é \u2028 x"], "label": ["yes", "no", "yes"]}
    assert task["file"] == given(RECORDS)["file"]
    assert [path.name for path in (tmp_path / "given").iterdir()] == [Path(task["file"]).name]


def test_polars(given):
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(RECORDS, schema_overrides={"label": polars.Categorical})
    assert given(frame)["file"] == given(RECORDS)["file"]


@pytest.mark.parametrize(
    ("column", "kept"),
    [
        ([1, 2, None], [1, 2, None]),
        ([1, 1.5, "1", True, None, float("nan"), 2**70], [1, 1.5, "1", True, None, None, 2**70]),
        ([np.int64(1), np.float64("nan"), np.bool_(True), np.str_("x")], [1, None, True, "x"]),
        ([["a", "b"], np.array([1, 2]), {"x": (1, None)}], [["a", "b"], [1, 2], {"x": [1, None]}]),
        (["\ud83d", "NA", ""], ["\ud83d", "NA", ""]),
    ],
)
def test_values_of_lists_keep_their_types(given, column, kept):
    assert typed(values(given({"text": column, "label": column})["file"])["text"]) == typed(kept)


@pytest.mark.parametrize(
    ("series", "kept"),
    [
        (pd.Series([1, 0, 2], dtype="int8"), [1, 0, 2]),
        (pd.Series([1, pd.NA], dtype="Int64"), [1, None]),
        (pd.Series([1.0, np.nan]), [1.0, None]),
        (pd.Series(["b", None, "a"], dtype="category"), ["b", None, "a"]),
        (pd.Series(pd.Categorical([2, None, 1])), [2, None, 1]),
        (pd.Series(["x", np.nan, None, pd.NA], dtype=object), ["x", None, None, None]),
        (pd.Series([True, False]), [True, False]),
    ],
)
def test_values_of_pandas_keep_their_types(given, series, kept):
    task = given(pd.DataFrame({"text": series, "label": series}))
    assert typed(values(task["file"])["label"]) == typed(kept)


def test_class_names_of_a_dataset_are_those_of_the_task(given):
    label = datasets.ClassLabel(names=["World", "Sports"])
    rows = datasets.Dataset.from_dict(
        {"text": ["a", "b", "c"], "label": [1, 0, -1], "tags": [[0, 1], [], [1]]},
        datasets.Features({"text": datasets.Value("string"), "label": label, "tags": datasets.List(label)}),
    )
    task = given(rows.with_format("torch"))
    assert task["labels"] == ["World", "Sports"]
    assert values(task["file"])["label"] == ["Sports", "World", -1]
    tagged = given(rows, label="tags")
    assert tagged["labels"] == ["World", "Sports"]
    assert values(tagged["file"])["tags"] == [["World", "Sports"], [], ["Sports"]]


# -- splits and columns ------------------------------------------------------------------------------


def test_splits_become_the_files_of_a_task(given):
    tables = {name: datasets.Dataset.from_list(RECORDS[:count]) for name, count in (("train", 3), ("test", 1))}
    task = given(datasets.DatasetDict(tables))
    assert [len(read_table(Path(task[key]))) for key in ("file", "test_file")] == [3, 1]
    assert given({"train": RECORDS, "dev": pd.DataFrame(RECORDS[:2])})["validation_file"] == given(RECORDS[:2])["file"]
    assert given({"train": "t.csv", "test": RECORDS})["file"] == "t.csv" == given(Path("t.csv"))["file"]


def test_columns_that_a_task_needs_are_kept_and_no_others(given):
    rows = [{"a": "x", "b": "y", "more": b"\xff", "key": {"part": 1}, "who": {"name": "z"}}]
    assert values(given(rows, text="a", text_pair="b", label="who.name", id="key.part")["file"]) == {
        "a": ["x"],
        "b": ["y"],
        "who": [{"name": "z"}],
        "key": [{"part": 1}],
    }


def test_labels_may_be_columns_of_their_own(given):
    rows = [{"text": f"{row} a", "spam": row % 2, "ham": 1 - row % 2, "more": 1} for row in range(20)]
    task = given(pd.DataFrame(rows), label=["spam", "ham"], kind="multilabel")
    assert values(task["file"]) == {name: [row[name] for row in rows] for name in ("text", "spam", "ham")}
    spec = TaskSpec.from_config({"name": "t", **task})
    assert read_task(spec, find_task(spec)).label_names == ("spam", "ham")


# -- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (17, "the table given is of type int, 17.\nAllowed: a pandas or polars frame"),
        ([], "the table given is empty, []"),
        ([{"text": "a"}, "b", "c"], "row 2 is 'b', not a dict (2 such rows, also row 3 is 'c', not a dict)"),
        ({"text": ["a", "b"], "label": ["x"]}, "a dict of columns of these lengths: text: 2, label: 1"),
        ({"text": "ab", "label": "xy"}, "text: no list"),
        (pd.DataFrame([["a", "x", "y"]], columns=["text", "label", "label"]), "names 'label' twice (columns 2 and 3)"),
        ([{"body": "a", "queue": "x"}], "has no column 'text'; its columns are body, queue.\nAllowed: the name"),
        (pd.DataFrame({"text": [], "label": []}), "the table given has no rows"),
        ({"train": RECORDS, "unsupervised": RECORDS}, "are the splits train, unsupervised.\nAllowed: train, and one"),
        ([{"text": b"a", "label": 1}] * 2, "row 1: column 'text' holds b'a' of type bytes (2 such rows, also row 2)"),
        ([{"text": "a", "label": Decimal("1.50")}], "holds Decimal('1.50') of type Decimal"),
        (pd.DataFrame({"text": ["a"], "label": [pd.Timestamp("2020")]}), "of type Timestamp"),
        ([{"text": "a", "label": 10**5000}], "column 'label' holds what no file can hold"),
    ],
)
def test_what_is_no_table_is_refused(given, data, said):
    assert said in refusal(given, data)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/given cannot be written \(Not a directory\)"):
        task_of(RECORDS, cache_dir=tmp_path / "file")
    with pytest.raises(ConfigError, match=r"task\.txt is no key of a task; did you mean task\.text"):
        task_of(RECORDS, cache_dir=tmp_path, txt="body")


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("text", "\ud83d", "row 2: column 'text' holds half a character"),
        ("text", np.nan, "row 2: the text in column 'text' is empty"),
        ("text", 5, "row 2: column 'text' holds 5, which is not text"),
        ("label", None, "row 2: column 'label' holds no label"),
        ("label", ["a", "b"], "row 2: label ['a', 'b'] is a list, and a text has one label"),
        ("label", " Yes", "spells one class in several ways: 'yes' (row 1), ' Yes' (row 2)"),
    ],
)
def test_rows_are_checked_as_those_of_a_file(given, column, value, said):
    rows = [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"} | {column: value}, {"text": "c", "label": "no"}]
    for data in (rows, pd.DataFrame(rows, dtype=object)):
        spec = TaskSpec.from_config({"name": "t", **given(data)})
        with pytest.raises(DataError) as error:
            read_task(spec, find_task(spec))
        assert said in str(error.value)
        assert spec.file in str(error.value)


# -- runs --------------------------------------------------------------------------------------------


def test_a_run_is_named_by_the_rows(tmp_path):
    cfg, _ = compose(["task=csv", "method=topk", "backbone=tiny", "budget=2x"])

    def run_hash(task):
        return config_hash(canonical(cfg | {"task": cfg["task"] | task}))

    rows, frame = (task_of(data, cache_dir=tmp_path / "a") for data in (RECORDS, pd.DataFrame(RECORDS)))
    elsewhere = prunekit.task_of(RECORDS, cache_dir=tmp_path / "b")
    assert elsewhere["file"] != rows["file"]
    assert run_hash(rows) == run_hash(frame) == run_hash(elsewhere)
    changed = [RECORDS[0] | {"label": "no"}, *RECORDS[1:]]
    assert run_hash(task_of(changed, cache_dir=tmp_path)) != run_hash(rows)


def test_a_module_of_rows_gives_the_batches_of_their_file(backbones, tmp_path):
    rows = [{"body": f"{'ba de ' * (number % 5 + 1)}{number}", "queue": "xy"[number % 2]} for number in range(60)]
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    modules = [
        TokenPruningDataModule.from_rows(
            data, backbones / "bert", text="body", label="queue", task={"test_fraction": 0.2}, cache_dir=tmp_path
        )
        for data in (pd.DataFrame(rows), tmp_path / "t.jsonl")
    ]
    for module in modules:
        module.setup()
    assert modules[0].label_names == ("x", "y")
    assert modules[0].fingerprint == modules[1].fingerprint
    assert len(modules[0].split("test")) == 12
