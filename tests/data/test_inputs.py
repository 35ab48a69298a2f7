"""Files as people have them: variations of the kinds of docs/inputs.md, each with its right value or its refusal."""

import codecs
import datetime
import decimal
import gzip
import json
import os
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from prunekit.data.errors import DataError
from prunekit.data.reading import read_task
from prunekit.data.sources import find_task
from prunekit.data.spec import TaskSpec
from prunekit.data.text import rendering as corpora
from prunekit.pipelines import predict

TEXTS = [f"text {number}" for number in range(12)]
ROWS = [{"text": text, "label": "ab"[number % 2]} for number, text in enumerate(TEXTS)]


def csv(labels=("a", "b"), texts=TEXTS, *, head="text,label", separator=",", end="\n"):
    rows = (f"{text}{separator}{labels[number % len(labels)]}" for number, text in enumerate(texts))
    return end.join([head, *rows]) + end


def lines(labels, texts=TEXTS):
    rows = ({"text": text, "label": labels[number % len(labels)]} for number, text in enumerate(texts))
    return "\n".join(map(json.dumps, rows))


def read(file, **keys):
    spec = TaskSpec.from_config({"name": "csv", "file": str(file), "validation_fraction": 0.25, **keys})
    return read_task(spec, find_task(spec))


def written(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path / name


FIRST = TEXTS[0]
VALUES = {
    "digits with zeros": ("t.csv", csv(["001", "002"]), ("001", "002")),
    "signs": ("t.csv", csv(["+1", "-1"]), ("+1", "-1")),
    "a full stop": ("t.csv", csv(["no", "no."]), ("no", "no.")),
    "words for nothing": ("t.csv", csv(["NA", "None", "null", "-"]), ("-", "NA", "None", "null")),
    "dates": ("t.csv", csv(["2024-01-02", "2024-01-01"]), ("2024-01-01", "2024-01-02")),
    "numbers by size": ("t.csv", csv(["10", "9"]), ("9", "10")),
    "blanks around": ("t.csv", csv([" a ", " b "]), ("a", "b")),
    "booleans": ("t.jsonl", lines([True, False]), ("false", "true")),
    "whole floats beside integers": ("t.jsonl", lines([0, 1.0, 1, 0.0]), ("0", "1")),
    "halves": ("t.jsonl", lines([0.5, 1.5]), ("0.5", "1.5")),
    "very long numbers": ("t.jsonl", lines([10**30, 1]), ("1", str(10**30))),
    "a mark of UTF-8": ("t.csv", codecs.BOM_UTF8 + csv().encode(), ("a", "b")),
    "two marks": ("t.csv", codecs.BOM_UTF8 * 2 + csv().encode(), ("a", "b")),
    "a mark before JSON": ("t.jsonl", codecs.BOM_UTF8 + lines("ab").encode(), ("a", "b")),
    "line ends of Windows": ("t.csv", csv(end="\r\n"), ("a", "b")),
    "of old Macs": ("t.csv", csv(end="\r"), ("a", "b")),
    "of a program that doubled them": ("t.csv", csv(end="\r\r\n"), ("a", "b")),
    "no last line end": ("t.csv", csv().rstrip("\n"), ("a", "b")),
    "semicolons": ("t.csv", csv(head="text;label", separator=";", texts=[f"a, {n}" for n in range(12)]), ("a", "b")),
    "tabs in a .csv": ("t.csv", csv(head="text\tlabel", separator="\t"), ("a", "b")),
    "blanks after separators": ("t.csv", csv(head="text, label", separator=", "), ("a", "b")),
    "an index": ("t.csv", csv(head=",text,label", texts=[f"{n},{text}" for n, text in enumerate(TEXTS)]), ("a", "b")),
    "empty columns at the end": ("t.csv", csv(["a,,", "b,,"], head="text,label,,"), ("a", "b")),
    "other case": ("t.csv", csv(["a,x", "b,y"], head="text,label,Label"), ("a", "b")),
    "a suffix in capitals": ("T.CSV", csv(), ("a", "b")),
    "an archive in parts": ("t.csv.gz", b"".join(gzip.compress(part.encode()) for part in csv()), ("a", "b")),
    "a list over several lines": ("t.json", json.dumps(ROWS, indent=2), ("a", "b")),
    "objects over several lines": ("t.json", "\n".join(json.dumps(row, indent=1) for row in ROWS), ("a", "b")),
    "a field more in some rows": ("t.jsonl", lines("ab") + '\n{"text": "t", "label": "a", "more": 1}', ("a", "b")),
}  # fmt: skip


@pytest.mark.parametrize("case", VALUES)
def test_classes_are_what_the_file_says(tmp_path, case):
    name, content, classes = VALUES[case]
    task = read(written(tmp_path, name, content))
    assert task.label_names == classes
    assert sum(map(len, task.splits.values())) == len(TEXTS) + (case == "a field more in some rows")


TEXT_VALUES = {
    "a quote inside": ("t.csv", '5" disk', '5" disk'),
    "quotes that are doubled": ("t.csv", '"say ""hi"" to"', 'say "hi" to'),
    "a line end in quotes": ("t.csv", '"one\ntwo"', "one\ntwo"),
    "a quote that is a character": ("t.tsv", '"open', '"open'),
    "NUL": ("t.csv", "a\0b", "a\0b"),
    "separators of lines that are no line ends": ("t.csv", "a\u2028b\x85c\x0cd\x0be", "a\u2028b\x85c\x0cd\x0be"),
    "digits": ("t.csv", "007", "007"),
    "a word for nothing": ("t.csv", "NA", "NA"),
    "half a million characters": ("t.csv", "x" * 500_000, "x" * 500_000),
    "names of special tokens": ("t.csv", "a [PAD] <pad> b", "a [PAD] <pad> b"),
}


@pytest.mark.parametrize("case", TEXT_VALUES)
def test_texts_are_what_the_file_says(tmp_path, case):
    name, cell, text = TEXT_VALUES[case]
    separator = "\t" if name == "t.tsv" else ","
    content = csv(texts=[cell, *TEXTS[1:]], head=f"text{separator}label", separator=separator)
    splits = read(written(tmp_path, name, content)).splits
    assert sorted(value for rows in splits.values() for value in rows.texts) == sorted([text, *TEXTS[1:]])


REFUSED = {
    "01 beside 1": ("t.csv", csv(["1", "01", "2"]), r"in several ways: '1' \(row 1\), '01' \(row 2\)"),
    "1.0 beside 1": ("t.csv", csv(["1", "1.0", "2"]), r"in several ways: '1' \(row 1\), '1\.0' \(row 2\)"),
    "1e0 beside 1": ("t.csv", csv(["1", "1e0", "2"]), "in several ways"),
    "+1 beside 1": ("t.csv", csv(["1", "+1", "-1"]), "in several ways"),
    "-0 beside 0": ("t.csv", csv(["0", "-0", "1"]), "in several ways"),
    "Yes beside yes": ("t.csv", csv(["Yes", "yes", "no"]), "in several ways"),
    "two forms of an accent": ("t.csv", csv(["caf\u00e9", "cafe\u0301", "no"]), "in several ways"),
    "wide letters": ("t.csv", csv(["\uff59es", "yes", "no"]), "in several ways"),
    "blanks of two kinds": ("t.csv", csv(["a\u00a0b", "a b", "no"]), "in several ways"),
    "true beside 1": ("t.jsonl", lines([True, 1, 0]), "in several ways"),
    "true beside a word": ("t.jsonl", lines([True, "true", False]), "in several ways"),
    "null labels": ("t.jsonl", lines(["a", "b", None]), r"row 3: column 'label' holds no label \(4 such rows"),
    "NaN labels": ("t.jsonl", lines(["a", "b", float("nan")]), r"row 3: column 'label' holds no label \(4 such"),
    "nan as a word": ("t.csv", csv(["nan", "a", "b"]), "row 1: label 'nan' stands for nothing"),
    "infinite": ("t.jsonl", lines([1, 2, float("inf")]), "row 3: label inf is infinite"),
    "lists": ("t.jsonl", lines([["a"], ["b"]]), r"row 1: label \['a'\] is a list"),
    "lists as text": ("t.csv", csv(["\"['a', 'b']\"", "\"['a']\""]), "is a list, and a text has one label"),
    "0 1 vectors": ("t.csv", csv(['"[0, 1]"', '"[1, 0]"']), "is a list, and a text has one label"),
    "objects": ("t.jsonl", lines([{"a": 1}, {"b": 1}]), "row 1: label {'a': 1} is an object"),
    "half a character": ("t.jsonl", '{"text": "t", "label": "\\ud83d"}\n' + lines("ab"), "is half a character"),
    "half a text": ("t.jsonl", '{"text": "\\udc00", "label": "a"}\n' + lines("ab"), "row 1: .* half a character"),
    "a number as text": ("t.jsonl", '{"text": 5, "label": "a"}\n' + lines("ab"), "row 1: column 'text' holds 5"),
    "NaN as text": ("t.jsonl", '{"text": NaN, "label": "a"}\n' + lines("ab"), "row 1: the text in column 'text' is e"),
    "UTF-16": ("t.csv", csv().encode("utf-16"), "text in UTF-16"),
    "UTF-16 without a mark": ("t.csv", csv().encode("utf-16-le"), "text in UTF-16"),
    "UTF-32": ("t.csv", csv().encode("utf-32"), "text in UTF-16"),
    "Windows-1252": ("t.csv", csv(texts=["\u20ac", *TEXTS]).encode("cp1252"), r"not UTF-8 .*\n.*\n.*iconv -f CP1252"),
    "a line for Excel": ("t.csv", "sep=;\n" + csv(head="text;label", separator=";"), "a line for Excel"),
    "bars": ("t.csv", csv(head="text|label", separator="|"), r"none of ',', ';' and tab"),
    "commas in a .tsv": ("t.tsv", csv(), "no tab in its header"),
    "commas without quotes": ("t.csv", csv(texts=["a, b", *TEXTS]), "row 1 .* has 3 fields"),
    "curly quotes": ("t.csv", csv(texts=["\u201ca, b\u201d", *TEXTS]), "row 1 .* has 3 fields"),
    "a comment": ("t.csv", "# by me\n" + csv(), "the header has 1"),
    "two files in one": ("t.csv", csv() + csv(), r"row 13 \(line 14\) repeats the header: .*\n.*\nRemove these lines"),
    "a header alone": ("t.csv", "text,label\n", "no rows left: 0 read"),
    "a mark alone": ("t.csv", codecs.BOM_UTF8, "is empty"),
    "quotes that rows are in": ("t.csv", csv(texts=['"o', *TEXTS[1:8], 'c"', *TEXTS[9:]]), "row 1 .lines 2 to 10"),
    "backslashes before quotes": ("t.csv", csv(texts=['"a \\"b\\" c"', *TEXTS]), "line 2 is not CSV"),
    "a column twice": ("t.csv", csv(["a,b", "b,a"], head="text,label,label"), r"names 'label' twice \(columns 2"),
    "and with a blank": ("t.csv", csv(["a,b", "b,a"], head="text,label, label"), "names 'label' twice"),
    "a key twice": ("t.jsonl", '{"text": "a", "label": "a", "text": "b"}', r"names 'text' twice \(keys 1 and 3\)"),
    "capitals": ("t.csv", csv(head="Text,Label"), r"no column 'text'; .* Text, Label.*\n.*\n.*task.text=Text"),
    "columns in JSON": ("t.json", json.dumps({"text": TEXTS, "label": ["a", "b"] * 6}), "holds columns"),
    "rows under a key": ("t.json", json.dumps({"data": ROWS}), "holds its rows under 'data'"),
    "pandas' split": (
        "t.json", json.dumps({"columns": ["text", "label"], "data": [["a", "b"]]}), "columns and rows apart",
    ),
    "single quotes": ("t.jsonl", "\n".join(map(str, ROWS)), "line 1 is not JSON"),
    "nested too deep": ("t.jsonl", '{"text": ' + "[" * 99_999, "nested too deep"),
    "a comma at the end": ("t.json", json.dumps(ROWS)[:-1] + ",]", "begins like a JSON list but is not one"),
    "an archive of an archive": ("t.csv.gz", gzip.compress(gzip.compress(b"text,label")), "it is a gzip archive"),
    "an archive with something after": ("t.csv.gz", gzip.compress(csv().encode()) + b"x", "no gzip archive"),
    "no archive": ("t.csv.gz", csv(), r"no gzip archive .*\n.*\n.*rename it to t\.csv"),
    "a web page": ("t.csv", "<!DOCTYPE html><html></html>", "it is a web page"),
    "Git LFS": ("t.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "a workbook": ("t.csv", b"PK\x03\x04" + bytes(100), "a zip archive or an Excel workbook"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_mislead_is_refused_with_its_place(tmp_path, case):
    name, content, message = REFUSED[case]
    with pytest.raises(DataError, match=message) as refused:
        read(written(tmp_path, name, content))
    assert str(tmp_path / name) in str(refused.value)
    assert len(str(refused.value)) < 1500


def test_spellings_that_the_task_names_are_classes_of_their_own(tmp_path):
    file = written(tmp_path, "t.csv", csv(["1", "1.0", "01"]))
    task = read(file, labels=["1", "1.0", "01"])
    assert sorted(label for rows in task.splits.values() for label in rows.labels) == [0] * 4 + [1] * 4 + [2] * 4


def test_spellings_of_a_group_are_groups_of_their_own(tmp_path):
    texts = [f"t{number},{('1', '1.0', '01', '2')[number % 4]}" for number in range(40)]
    task = read(written(tmp_path, "t.csv", csv(texts=texts, head="text,of,label")), group="of")
    of = [
        {text: number % 4 for number, text in enumerate(f"t{n}" for n in range(40))}[text]
        for text in task.splits["train"].texts
    ]
    assert len(task.splits["train"]) % 10 == 0
    assert {kind: of.count(kind) for kind in {*of}} == dict.fromkeys({*of}, 10)


PARQUET = {
    "large texts": (pyarrow.array(["a", "b"] * 6, pyarrow.large_string()), ("a", "b")),
    "views": (pyarrow.array(["a", "b"] * 6, pyarrow.string_view()), ("a", "b")),
    "dictionaries": (pyarrow.array(["a", "b"] * 6).dictionary_encode(), ("a", "b")),
    "floats": (pyarrow.array([1.0, 0.0] * 6), ("0", "1")),
    "bytes of a number": (pyarrow.array([1, 0] * 6, pyarrow.int8()), ("0", "1")),
    "booleans": (pyarrow.array([True, False] * 6), ("false", "true")),
    "dates": (pyarrow.array([datetime.date(2024, 1, 1 + n % 2) for n in range(12)]), ("2024-01-01", "2024-01-02")),
    "decimals": (pyarrow.array([decimal.Decimal(number % 2) for number in range(12)]), ("0", "1")),
    "null": (pyarrow.nulls(12), r"row 1: column 'label' holds no label \(12 such rows"),
    "a null": (pyarrow.array([1.0, None] * 6), r"row 2: column 'label' holds no label \(6 such rows"),
    "bytes": (pyarrow.array([b"a", b"b"] * 6), "row 1: label b'a' is bytes"),
    "lists": (pyarrow.array([["a"]] * 12), "is a list"),
}  # fmt: skip


@pytest.mark.parametrize("case", PARQUET)
def test_types_of_parquet(tmp_path, case):
    labels, expected = PARQUET[case]
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "label": labels}), tmp_path / "t.parquet")
    if isinstance(expected, tuple):
        assert read(tmp_path / "t.parquet").label_names == expected
        return
    with pytest.raises(DataError, match=expected):
        read(tmp_path / "t.parquet")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "t.csv"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match="is no file" if kind != "folder" else "has no split 'train'; it holds nothing"):
        read(path)


def test_a_link_is_the_file_that_it_names(tmp_path):
    (tmp_path / "link.csv").symlink_to(written(tmp_path, "t.csv", csv()))
    assert read(tmp_path / "link.csv").label_names == ("a", "b")


def test_a_label_in_other_case_in_another_split_is_refused(tmp_path):
    other = written(tmp_path, "v.csv", csv(["A", "b"]))
    with pytest.raises(
        DataError, match=r"v\.csv, row 1: label 'A' \(6 such rows, also row 3 and row 5\) is not in the set a, b"
    ):
        read(written(tmp_path, "t.csv", csv()), validation_file=str(other))


def test_the_same_pair_in_the_other_order_is_another_pair(tmp_path):
    rows = [("x", "y", "a"), ("y", "x", "b"), *((f"t{n}", f"u{n}", "ab"[n % 2]) for n in range(10))]
    file = written(tmp_path, "t.csv", "text,pair,label\n" + "\n".join(map(",".join, rows)))
    task = read(file, text_pair="pair")
    assert (sum(map(len, task.splits.values())), task.dropped, task.noticed) == (12, {}, {})


# faults of files, whatever is read from them
OF_FILES = [
    *("UTF-16", "Windows-1252", "a line for Excel", "bars", "commas in a .tsv", "commas without quotes"),
    *("two files in one", "a mark alone", "quotes that rows are in", "backslashes before quotes", "a column twice"),
    *("a key twice", "columns in JSON", "rows under a key", "pandas' split", "single quotes", "nested too deep"),
    *("a comma at the end", "an archive of an archive", "no archive", "a web page", "Git LFS", "a workbook"),
]


@pytest.mark.parametrize("reader", ["corpora", "predict"])
@pytest.mark.parametrize("case", OF_FILES)
def test_other_readers_refuse_the_same_files_in_the_same_words(tmp_path, case, reader):
    name, content, message = REFUSED[case]
    file = written(tmp_path, name, content)
    with pytest.raises(DataError, match=message):
        corpora.read_rows(file) if reader == "corpora" else predict.read_rows(file)


PAGE = Path(__file__).parents[2] / "docs" / "inputs.md"
READERS = {"tasks", "corpora", "bench", "server", "Python"}


def test_the_page_names_a_test_and_the_readers_of_every_kind():
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    kinds = [row for row in rows if row[0].isdecimal()]
    assert [int(number) for number, *_ in kinds] == list(range(1, 27))
    for number, kind, what, readers, tests in kinds:
        assert kind
        assert what
        assert {*readers.split(", ")} <= READERS, number
        named = re.findall("`(.+?)::(.+?)`", tests)
        assert named, number
        for file, test in named:
            assert f"def {test}(" in (Path(__file__).parents[1] / file).read_text(), f"{file}::{test}"
