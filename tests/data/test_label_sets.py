"""Any number of labels per text, as people write them: lists, texts with a separator, columns of 0 and 1."""

import json

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from prunekit.data.encoding import Encoder, load_tokenizer
from prunekit.data.errors import DataError
from prunekit.data.kinds.multilabel import MULTILABEL
from prunekit.data.label_sets import LabelFaultError, labels_in
from prunekit.data.preview import class_shares
from prunekit.data.reading import read_task
from prunekit.data.rows import Rows
from prunekit.data.sources import TaskSource
from prunekit.data.spec import TaskSpec


def spec_of(**keys):
    return TaskSpec.from_config({"name": "n", "kind": "multilabel", **keys})


def read(tmp_path, rows, held=None, **keys):
    """Read rows of columns beside a text as training rows, and the same ones, or others, as validation rows."""
    file, other = tmp_path / "t.jsonl", tmp_path / "v.jsonl"
    for path, some in ((file, rows), (other, rows if held is None else held)):
        lines = (json.dumps({"text": f"text {number}", **row}) + "\n" for number, row in enumerate(some))
        path.write_text("".join(lines))
    return read_task(spec_of(file=str(file), validation_file=str(other), **keys), TaskSource("file", str(file)))


def labels_of(tmp_path, *cells, **keys):
    found = read(tmp_path, [{"label": cell} for cell in cells], **keys)
    return found.label_names, list(found.splits["train"].labels)


# -- what is in the files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "separator", "labels"),
    [
        (["b", "a"], None, ["b", "a"]),
        ([], None, []),
        ('["a", "b"]', None, ["a", "b"]),
        (" ['a', 'b'] ", None, ["a", "b"]),
        ("[]", None, []),
        (np.array(["a", "b"]), None, ["a", "b"]),
        ([3, "x", True], None, [3, "x", True]),
        ("a; b", ";", ["a", "b"]),
        ("a", ";", ["a"]),
        ('["a;b"]', ";", ["a;b"]),
        ("a|b", " ", ["a|b"]),
    ],
)
def test_a_cell_is_a_list_or_a_text_with_separators(cell, separator, labels):
    assert list(labels_in(cell, separator)) == labels


@pytest.mark.parametrize(
    ("cell", "separator", "fault"),
    [
        ("a;b", None, "no list"),
        (3, ";", "no list"),
        ({"a": 1}, None, "no list"),
        ("['a' 'b']", None, "no list"),  # as numpy writes it: Python would read one label, ab
        ("[1, 2", None, "no list"),
        ("a;;b", ";", "a list with an empty label"),
        (["a", None], None, "a list with an empty label"),
        (["a", ["b"]], None, "a list with a list in it"),
        (["a", "\ud83d"], None, "a list with half a character in it"),
        ([0, 1, 1], None, "a list with '1' twice"),
        ("a; a", ";", "a list with 'a' twice"),
    ],
)
def test_a_cell_that_holds_no_labels_says_what_it_is(cell, separator, fault):
    with pytest.raises(LabelFaultError, match=fault):
        labels_in(cell, separator)


def test_lists_are_numbered_by_the_names_that_occur(tmp_path):
    names, labels = labels_of(tmp_path, ["sport", "money"], [], ["politics"], '["money"]')
    assert names == ("money", "politics", "sport")
    assert labels == [(0, 2), (), (1,), (0,)]
    assert labels_of(tmp_path, [2, 10], [10])[0] == ("2", "10")
    assert labels_of(tmp_path, "a;b", "b", label_separator=";") == (("a", "b"), [(0, 1), (1,)])
    assert labels_of(tmp_path, ["a"], ["b"], labels=["b", "a"]) == (("b", "a"), [(1,), (0,)])


def test_columns_of_0_and_1_are_labels_of_their_names(tmp_path):
    rows = [{"a": 1, "b": "0"}, {"a": "false", "b": 1.0}, {"a": False, "b": "True"}, {"a": 0, "b": 0}]
    found = read(tmp_path, rows, label=["b", "a"])
    assert found.label_names == ("b", "a")
    assert found.splits["train"].labels == [(1,), (0,), (0,), ()]


def test_names_of_numbers_in_lists_are_read(tmp_path):
    features = Features({"text": Value("string"), "labels": List(ClassLabel(names=["joy", "fear"]))})
    Dataset.from_dict({"text": ["x", "y"], "labels": [[1], [0, 1]]}, features).to_parquet(tmp_path / "t.parquet")
    keys = {"file": str(tmp_path / "t.parquet"), "validation_file": str(tmp_path / "t.parquet"), "label": "labels"}
    found = read_task(spec_of(**keys), TaskSource("file", keys["file"]))
    assert (found.label_names, found.splits["train"].labels) == (("joy", "fear"), [(1,), (0, 1)])


def test_no_label_and_nothing_are_told_apart(tmp_path):
    rows = [{"label": cell} for cell in (["a"], None, ["b"], "", [])]
    with pytest.raises(DataError, match=r"row 2: column 'label' holds no label \(2 such rows, also row 4\)") as error:
        read(tmp_path, rows)
    assert "task.unlabelled=drop (leave such rows out) or none (such texts have none" in str(error.value)
    dropped = read(tmp_path, rows, unlabelled="drop")
    assert (dropped.splits["train"].labels, dropped.dropped) == ([(0,), (1,), ()], {"unlabelled": 4})
    assert read(tmp_path, rows, unlabelled="none").splits["train"].labels == [(0,), (), (1,), (), ()]
    flags = [{"a": 1, "b": 1}, {"a": None, "b": None}]
    with pytest.raises(DataError, match="row 2: column 'a, b' holds no label"):
        read(tmp_path, flags, label=["a", "b"])


# -- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "keys", "first", "third"),
    [
        (["a;b", ["a"]], {}, "row 1: label 'a;b' is no list", "task.label_separator=';'"),
        (
            ["a", "b"],
            {},
            "row 1: label 'a' is no list (2 such rows, also row 2: label 'b' is no list)",
            "task.label_separator=';'",
        ),
        ([["a"], ["a", "a"]], {}, "row 2: label ['a', 'a'] is a list with 'a' twice", "Write lists"),
        ([["a"], []], {}, "the lists in column 'label' hold 1 different labels", "task.kind=classification"),
        (
            [["a"], ["b"], ["A"]],
            {},
            "'label' spells one class in several ways: 'a' (row 1), 'A' (row 3)",
            "task.labels",
        ),
        ([["a"], ["b", "nan"]], {}, "row 2: label 'nan' stands for nothing", "task.labels"),
        (
            [[0, 1], [1, 0]],
            {},
            "row 1: column 'label' holds as many of 0 and 1 in every row, as [0, 1]",
            "task.label=[a,b]",
        ),
        ([["a"], ["b", "c"]], {"labels": ["a", "b"]}, "row 2: label 'c' is not in the set a, b", ""),
        (
            [["a"], ["b"]],
            {"labels": ["a", "c", "b", "d"]},
            "no text to train on has the label 'c' in column 'label', nor 'd'.",
            "task.labels=[a,b]",
        ),
    ],
)
def test_lists_that_cannot_be_meant_are_refused_with_their_row(tmp_path, cells, keys, first, third):
    with pytest.raises(DataError) as error:
        labels_of(tmp_path, *cells, **keys)
    lines = str(error.value).splitlines()
    assert f"{tmp_path}/t.jsonl" in lines[0]
    assert first in lines[0]
    assert third in lines[-1]


def test_a_label_that_is_not_trained_on_is_refused_in_other_splits(tmp_path):
    with pytest.raises(DataError, match=r"v.jsonl, row 1: label 'c' is not in the set a, b"):
        read(tmp_path, [{"label": ["a", "b"]}], held=[{"label": ["c"]}])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"a": 1, "b": 1}, {"a": 2, "b": 0}], r"row 2: column 'a' holds 2, which is neither 0 nor 1"),
        ([{"a": 1, "b": 1}, {"a": 0, "b": "yes"}], r"row 2: column 'b' holds 'yes', which is neither 0 nor 1"),
        ([{"a": 1, "b": 1}, {"a": 0, "b": None}], r"row 2: column 'b' holds nothing, which is neither 0 nor 1"),
        ([{"a": 1, "b": 0}], r"column 'b' of task.label has no 1(?s:.*)task.label=\[a\]"),
        ([{"a": 1, "c": 0}], r"has no column 'b'; its columns are text, a, c"),
    ],
)
def test_columns_with_other_values_are_refused_with_their_row(tmp_path, rows, words):
    with pytest.raises(DataError, match=words):
        read(tmp_path, rows, label=["a", "b"])


def test_lists_under_classification_name_the_kind_that_reads_them(tmp_path):
    with pytest.raises(DataError, match=r"is a list, and a text has one label(?s:.*)set task.kind=multilabel"):
        labels_of(tmp_path, "a", ["a", "b"], kind="classification")


# -- rows ---------------------------------------------------------------------------------------------


def test_rows_are_divided_by_their_rarest_label():
    rows = Rows(["x"] * 5, None, [(0,), (0, 1), (1, 2), (), (0,)])
    assert MULTILABEL.strata(rows) == [0, 1, 2, -1, 0]


def test_a_rare_label_is_in_every_split(tmp_path):
    lines = [{"text": f"t{row}", "label": ["often"] + ["rare"] * (row % 10 == 0)} for row in range(100)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_task(
        spec_of(file=str(tmp_path / "t.jsonl"), test_fraction=0.2), TaskSource("file", str(tmp_path / "t.jsonl"))
    )
    assert {name: sum(label == (0, 1) for label in rows.labels) for name, rows in found.splits.items()} == {
        "train": 7, "validation": 1, "test": 2,
    }  # fmt: skip


def test_rows_with_other_labels_for_a_text_contradict_each_other(tmp_path):
    rows = [{"text": "same", "label": ["a", "b"]}, {"text": "same", "label": ["b", "a"]}]
    assert read(tmp_path, rows).noticed.get("contradicting") is None
    other = [*rows, {"text": "same", "label": ["a"]}]
    assert read(tmp_path, other, held=[{"label": ["a"]}]).noticed["contradicting"] == 3


def test_labels_become_a_row_of_flags_each(backbones):
    rows = Rows(["ba", "de", "fi"], None, [(0, 2), (), (1,)])
    split = MULTILABEL.encode(spec_of(), rows, Encoder(load_tokenizer(backbones / "bert"), 16), ("a", "b", "c"), 0)
    assert split.targets.labels.tolist() == [[True, False, True], [False] * 3, [False, True, False]]
    assert class_shares(rows, ("a", "b", "c")) == {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}


def test_generated_rows_have_none_to_three_labels():
    found = read_task(spec_of(labels=["a", "b", "c", "d"], synthetic_rows=64), TaskSource("synthetic", ""))
    assert {len(labels) for labels in found.splits["train"].labels} == {0, 1, 2, 3}
    assert found.label_names == ("a", "b", "c", "d")


def test_all_rows_with_an_unknown_label_are_counted_once(tmp_path):
    rows = [{"label": ["a", "b"]}] * 3
    with pytest.raises(DataError, match=r"row 1: label 'c' \(4 such rows, also row 2: label 'd' and row 3\) is not in"):
        read(tmp_path, rows, [{"label": labels} for labels in (["c", "d"], ["d"], ["a", "c"], ["d", "c"], ["b"])])
