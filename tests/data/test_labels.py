"""Labels as people write them: one class in several spellings, nothing, lists; contradictions and leaks are counted."""

import datetime
import json
from decimal import Decimal

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from prunekit.data.errors import DataError
from prunekit.data.kinds.labelled import number_of
from prunekit.data.reading import read_task
from prunekit.data.sources import TaskSource
from prunekit.data.spec import TaskSpec

NAN = float("nan")


def task(tmp_path, rows, *, held=None, **keys):
    """Read rows (text, label) as training rows, and the same ones, or others, as validation rows."""
    file, other = tmp_path / "t.jsonl", tmp_path / "v.jsonl"
    for path, some in ((file, rows), (other, rows if held is None else held)):
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in some))
    given = {"name": "n", "file": str(file), "validation_file": str(other), **keys}
    return read_task(TaskSpec.from_config(given), TaskSource("file", str(file)))


def labelled(tmp_path, *labels, **keys):
    found = task(tmp_path, [(f"text {row}", label) for row, label in enumerate(labels)], **keys)
    return found.label_names, list(found.splits["train"].labels)


def refusal(tmp_path, *labels, **keys):
    with pytest.raises(DataError) as error:
        labelled(tmp_path, *labels, **keys)
    lines = str(error.value).replace(str(tmp_path), "").splitlines()
    assert len(lines) <= 3
    assert all(len(line) < 300 for line in lines)
    return lines[0]


# -- names of classes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([1, 0, 1], ("0", "1")),
        ([1.0, 0.0, 1.0], ("0", "1")),
        ([1, 0.0, 1.0], ("0", "1")),
        (["1.0", "0.0", "1.0"], ("0.0", "1.0")),
        ([True, False, True], ("false", "true")),
        (["true", "false", "true"], ("false", "true")),
        ([10, 9, 10], ("9", "10")),
        (["yes ", "no ", "yes "], ("no", "yes")),
        ([1.5, 2.5, 1.5], ("1.5", "2.5")),
        ([10**400, 1, 1], ("1", str(10**400))),
        (["[spam]", "(ham)", "[spam]"], ("(ham)", "[spam]")),
        (["None", "some", "some"], ("None", "some")),
        (["01", "02", "01"], ("01", "02")),
        ([f"{10**32}", f"{10**32 + 1}", f"{10**32}"], (f"{10**32}", f"{10**32 + 1}")),
    ],
)
def test_a_class_has_the_name_that_is_written(tmp_path, labels, names):
    assert labelled(tmp_path, *labels)[0] == names


@pytest.mark.parametrize(
    ("labels", "ways"),
    [
        ([1, "1", 0], "1 (row 1), '1' (row 2)"),
        ([1.0, "1", 0], "1 (row 1), '1' (row 2)"),
        (["1", "1.0", "0"], "'1' (row 1), '1.0' (row 2)"),
        (["1", "01", "0"], "'1' (row 1), '01' (row 2)"),
        ([True, "true", False], "true (row 1), 'true' (row 2)"),
        ([True, 1, 0], "true (row 1), 1 (row 2)"),
        (["true", 1, 0], "'true' (row 1), 1 (row 2)"),
        ([1, 0, "1", "1.0", True], "1 (row 1), '1' (row 3), '1.0' (row 4)"),
        (["Yes", "yes", "no"], "'Yes' (row 1), 'yes' (row 2)"),
        (["yes", "yes ", "no"], "'yes' (row 1), 'yes ' (row 2)"),
        (["new york", "new  york", "no"], "'new york' (row 1), 'new  york' (row 2)"),
        (["a\u00a0b", "a b", "no"], "'a\\xa0b' (row 1), 'a b' (row 2)"),
        (["caf\u00e9", "cafe\u0301", "no"], "(row 1)"),
        (["straße", "STRASSE", "no"], "'straße' (row 1), 'STRASSE' (row 2)"),
        (["spam", "spam\u200b", "no"], "'spam' (row 1), 'spam\\u200b' (row 2)"),
        (["spam", "sp\u00adam", "no"], "'spam' (row 1), 'sp\\xadam' (row 2)"),
        (["01", "1", "2"], "'01' (row 1), '1' (row 2)"),
        (["+1", "1", "0"], "'+1' (row 1), '1' (row 2)"),
        (["1e0", "1", "0"], "'1e0' (row 1), '1' (row 2)"),
        ([".5", "0.5", "1"], "'.5' (row 1), '0.5' (row 2)"),
        (["1,000", "1000", "1"], "'1,000' (row 1), '1000' (row 2)"),
        (["\u0661", "1", "0"], "'1' (row 2)"),
    ],
)
def test_several_spellings_of_one_class_are_refused_by_name(tmp_path, labels, ways):
    said = refusal(tmp_path, *labels)
    assert "spells one class in several ways: " in said
    assert ways in said


def test_classes_that_the_task_names_may_differ_in_case_alone(tmp_path):
    assert labelled(tmp_path, "a", "A", "a", labels=["a", "A"])[1] == [0, 1, 0]
    assert "label 'Yes' is not in the set no, yes" in refusal(tmp_path, "yes", "Yes", "no", labels=["no", "yes"])


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ([0.0, 1.0], ["no", "yes"], [0, 1]),
        (["0", "1"], ["no", "yes"], [0, 1]),
        (["0.0", "1.0"], ["no", "yes"], [0, 1]),
        ([1, 0], ["1", "0"], [0, 1]),
        (["1", 0], ["1", "0"], [0, 1]),
        ([True, False], ["False", "True"], [1, 0]),
        ([" no", "yes "], ["no", "yes"], [0, 1]),
        (["['a']", "b"], ["['a']", "b"], [0, 1]),
    ],
)
def test_with_the_task_s_classes_labels_are_names_or_numbers(tmp_path, labels, names, numbers):
    assert labelled(tmp_path, *labels, labels=names) == (tuple(names), numbers)


def test_labels_that_are_not_public_are_said(tmp_path):
    rows = [("a", 0), ("b", 1), ("c", 1)]
    with pytest.raises(
        DataError, match=r"v.jsonl, row 1: label -1 \(2 such rows, also row 2\) is not in the set 0 \(no\)"
    ):
        task(tmp_path, rows, held=[("d", -1), ("e", -1)], labels=["no", "yes"])
    with pytest.raises(DataError, match=r"labels that are not public\.\nSet task.test_split=null"):
        task(tmp_path, rows, held=[("d", -1), ("e", -1)], labels=["no", "yes"])


def test_a_parquet_file_names_its_classes(tmp_path):
    features = {
        "label": {"names": ["neg", "pos"], "_type": "ClassLabel"},
        "text": {"dtype": "string", "_type": "Value"},
    }
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pyarrow.table({"text": ["a", "b", "c"], "label": [1, 0, 1]}).replace_schema_metadata(about)
    for name in ("train", "validation"):
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")

    def read(**keys):
        spec = TaskSpec.from_config({"name": "n", "validation_splits": ["validation"], **keys})
        found = read_task(spec, TaskSource("folder", str(tmp_path)))
        return found.label_names, list(found.splits["train"].labels)

    assert read() == (("neg", "pos"), [1, 0, 1])
    assert read(labels=["pos", "neg"]) == (("pos", "neg"), [0, 1, 0])  # the names count, not the numbers
    assert read(labels=["bad", "good"]) == (("bad", "good"), [1, 0, 1])


# -- what is no label --------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [None, NAN, "", "  "])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_row_without_a_label_is_refused_or_dropped(tmp_path, nothing, kind):
    labels = [1, nothing, 2, nothing, 1, nothing, nothing]
    said = refusal(tmp_path, *labels, kind=kind)
    assert said == "/t.jsonl, row 2: column 'label' holds no label (4 such rows, also row 4 and row 6)."
    rows = [(f"text {row}", label) for row, label in enumerate(labels)]
    found = task(tmp_path, rows, kind=kind, unlabelled="drop")
    assert (len(found.splits["train"]), found.dropped) == (3, {"unlabelled": 8})


@pytest.mark.parametrize(
    ("label", "fault"),
    [
        (["sports", "tech"], "label ['sports', 'tech'] is a list, and a text has one label"),
        ([0, 1, 1], "label [0, 1, 1] is a list"),
        ({"name": "x"}, "label {'name': 'x'} is an object"),
        ("['sports', 'tech']", """label "['sports', 'tech']" is a list"""),
        ("[0, 1]", "label '[0, 1]' is a list"),
        ("[0 1]", "label '[0 1]' is a list"),
        ("[0. 1.5e-1]", "label '[0. 1.5e-1]' is a list"),
        ("0 1 0", "label '0 1 0' is a list"),
        (float("inf"), "label inf is infinite"),
        ("\ud83d", "label '\\ud83d' is half a character, which is no Unicode"),
        ("x" * 40 + "\ud83d" + "y" * 400, "is half a character"),
    ],
)
def test_a_label_that_is_something_else_is_refused_with_its_row(tmp_path, label, fault):
    said = refusal(tmp_path, "a", "b", "a", label)
    assert "/t.jsonl, row 4: " in said
    assert fault in said
    assert "row 4: label" in refusal(tmp_path, 1, 2, 1, label, kind="regression")


def test_a_label_that_holds_several_of_the_others_is_refused(tmp_path):
    assert "row 2: label 'a|b' holds several of the others, 'a', 'b'" in refusal(tmp_path, "a", "a|b", "b")
    assert labelled(tmp_path, "a", "a|c", "b", "b")[0] == ("a", "a|c", "b")
    assert labelled(tmp_path, "a", "a|b", "b", labels=["a", "b", "a|b"])[1] == [0, 2, 1]


def test_what_programs_write_for_nothing_is_no_class(tmp_path):
    assert "row 2: label 'NaN' stands for nothing" in refusal(tmp_path, "a", "NaN", "b")
    assert labelled(tmp_path, "a", "NaN", "b", labels=["a", "b", "NaN"])[1] == [0, 2, 1]


def test_values_are_numbers_as_they_are_written_everywhere():
    assert [number_of(label) for label in (1, "-2.5", " 3 ", "1e3", Decimal("0.5"), np.float32(2))] == [
        1,
        -2.5,
        3,
        1000,
        0.5,
        2,
    ]
    wrong = [
        True,
        "true",
        "1_000",
        "１",
        "1,5",
        "nan",
        "inf",
        NAN,
        "1e400",
        10**400,
        "1" * 5000,
        3.5e38,
        None,
        [1],
        "0x1",
    ]
    assert [number_of(label) for label in [*wrong, datetime.date(2024, 1, 1)]] == [None] * 16


def test_a_number_of_any_length_is_refused_in_a_short_line(tmp_path):
    assert refusal(tmp_path, 1, 2, 10**400, kind="regression") == (
        f"/t.jsonl, row 3: label 1{76 * '0'}... is not a number, as task.kind=regression needs; correct it, or set "
        "task.kind=classification."
    )
    assert "is not in the set" in refusal(tmp_path, 1, 0, 10**400, labels=["no", "yes"])


# -- texts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a \ud83d b", r"holds half a character, in 'a \\ud83d b', which is no Unicode"),
        (5, "holds 5, which is not text"),
        (True, "holds True, which is not text"),
        (["a"], r"holds \['a'\], which is not text"),
        ({"a": "x" * 500}, r"holds {'a': 'x{70}\.\.\., which is not text"),
    ],
)
def test_a_text_that_is_none_is_refused_with_its_row(tmp_path, text, fault):
    with pytest.raises(DataError, match=rf"row 2: column 'text' {fault}"):
        task(tmp_path, [("a", "x"), (text, "y"), ("c", "x")])


@pytest.mark.parametrize("nothing", [None, NAN, "", " \n"])
def test_nothing_of_every_type_is_an_empty_text(tmp_path, nothing):
    rows = [("a", "x"), (nothing, "y"), ("c", "y")]
    with pytest.raises(DataError, match=r"row 2: the text in column 'text' is empty\.\n.*task\.empty=drop"):
        task(tmp_path, rows)
    assert task(tmp_path, rows, empty="drop").dropped == {"empty": 2}
    assert list(task(tmp_path, rows, empty="keep").splits["train"].texts) in (["a", "", "c"], ["a", " \n", "c"])


def test_bytes_are_no_text_and_no_label(tmp_path):
    table = pyarrow.table({"text": [b"a", b"b"], "label": [b"x", b"y"], "body": ["a", "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    source = TaskSource("file", str(tmp_path / "t.parquet"))
    spec = TaskSpec.from_config({"name": "n", "file": source.where})
    with pytest.raises(DataError, match=r"row 1: column 'text' holds bytes, b'a', which are not text \(2 such rows"):
        read_task(spec, source)
    spec = TaskSpec.from_config({"name": "n", "file": source.where, "text": "body"})
    with pytest.raises(DataError, match=r"row 1: label b'x' is bytes, which are not text \(2 such rows"):
        read_task(spec, source)


def test_a_label_s_column_that_is_not_there_is_named_with_its_own_key(tmp_path):
    with pytest.raises(DataError, match=r"has no column 'lable'(.|\n)*In a shell: task\.label=label$"):
        task(tmp_path, [("a", 1), ("b", 2)], label="lable")


def test_a_test_file_without_labels_is_said(tmp_path):
    for name, head in (("t", "text,label"), ("v", "text,queue")):
        (tmp_path / f"{name}.csv").write_text(f"{head}\na,x\nb,y\nc,x\n")
    given = {"name": "n", "file": str(tmp_path / "t.csv"), "test_file": str(tmp_path / "v.csv")}
    with pytest.raises(
        DataError, match=r"v.csv has no column 'label'.*\nThe test split is scored.*\nSet task.test_split=null"
    ):
        read_task(TaskSpec.from_config(given), TaskSource("file", given["file"]))


# -- contradictions and leaks ------------------------------------------------------------------------

TWICE = [("a", "x"), ("a ", "y"), ("b", "x"), ("b", "x"), ("c", "y"), ("d", "y")]


def test_the_same_text_with_different_labels_is_counted_apart_from_doubles(tmp_path):
    found = task(tmp_path, TWICE * 10, held=[("e", "x")], test_fraction=0.4)
    assert found.noticed == {"contradicting": 20}
    assert found.dropped == {"duplicates": 55}
    assert sorted(text.strip() for rows in found.splits.values() for text in rows.texts) == [
        "a",
        "a",
        "b",
        "c",
        "d",
        "e",
    ]


def test_contradictions_are_dropped_or_refused_where_the_task_says_so(tmp_path):
    found = task(tmp_path, TWICE, held=[("e", "x")], contradicting="drop")
    assert (list(found.splits["train"].texts), found.dropped) == (["b", "b", "c", "d"], {"contradicting": 2})
    with pytest.raises(DataError, match=r"t.jsonl: 2 rows have the same text as others and another label, as 'a'\."):
        task(tmp_path, TWICE, contradicting="error")
    with pytest.raises(DataError, match=r"has no rows left: all 2 have the same text"):
        task(tmp_path, TWICE, held=TWICE[:2], contradicting="drop")


def test_values_contradict_each_other_too(tmp_path):
    assert task(tmp_path, [("a", 1), ("a", 2), ("b", 1)], held=[("c", 1)], kind="regression").noticed == {
        "contradicting": 2
    }


def test_rows_of_other_splits_that_are_trained_on_are_counted(tmp_path):
    found = task(tmp_path, TWICE, held=[("b ", "x"), ("e", "y"), ("d", "x")], contradicting="keep")
    assert found.noticed == {"validation in train": 2, "contradicting": 2}
