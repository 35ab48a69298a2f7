"""Reading a task: what is in the files comes out, and what is wrong is said with file and row."""

import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from prunekit.config.errors import ConfigError
from prunekit.data.errors import DataError
from prunekit.data.reading import read_task
from prunekit.data.sources import TaskSource, find_task
from prunekit.data.spec import TaskSpec


def parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def own(path, **keys):
    """Reads a file of one's own without taking rows out of it, unless asked."""
    defaults = {"name": "csv", "file": str(path), "validation_file": str(path)}
    spec = TaskSpec.from_config({**defaults, **keys})
    return read_task(spec, find_task(spec, {}))


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def cola(tmp_path):
    """The layout of the hub's repository, in small."""
    columns = {"sentence": ["fine .", "not fine .", "good ."], "label": [1, 0, 1], "idx": [0, 1, 2]}
    parquet(tmp_path / "train-00000-of-00001.parquet", **columns)
    parquet(tmp_path / "validation-00000-of-00001.parquet", sentence=["bad ."], label=[0], idx=[0])
    return tmp_path


COLA = TaskSpec.from_config(
    {"name": "cola", "text": "sentence", "labels": ["unacceptable", "acceptable"], "validation_splits": ["validation"]}
)


# -- what is in the files ----------------------------------------------------------------------------


def test_a_folder_as_on_the_hub_has_a_file_per_split(cola):
    task = read_task(COLA, TaskSource("folder", str(cola)))
    assert list(task.splits) == ["train", "validation"]
    assert task.splits["train"].texts == ["fine .", "not fine .", "good ."]
    assert task.splits["train"].labels == [1, 0, 1]
    assert task.splits["validation"].texts == ["bad ."]
    assert task.label_names == ("unacceptable", "acceptable")
    assert task.dropped == {}


def test_shards_are_put_together_in_order(cola):
    (cola / "train-00000-of-00001.parquet").unlink()
    parquet(cola / "train-00001-of-00002.parquet", sentence=["c"], label=[0])
    parquet(cola / "train-00000-of-00002.parquet", sentence=["a", "b"], label=[0, 1])
    assert read_task(COLA, TaskSource("folder", str(cola))).splits["train"].texts == ["a", "b", "c"]


def test_shards_with_different_columns_are_refused(cola):
    parquet(cola / "train-00001-of-00002.parquet", text=["c"], label=[0])
    with pytest.raises(DataError, match=r"train-00001.* has the columns text, label, but .* has sentence, label, idx"):
        read_task(COLA, TaskSource("folder", str(cola)))


def test_the_first_validation_split_is_called_validation_and_a_missing_second_one_is_left_out(tmp_path):
    keys = {"name": "mnli", "text": "p", "text_pair": "h", "labels": ["e", "n", "c"]}
    spec = TaskSpec.from_config({**keys, "validation_splits": ["validation_matched", "validation_mismatched"]})
    for split in ("train", "validation_matched"):
        parquet(tmp_path / f"{split}-00000-of-00001.parquet", p=["a"], h=["b"], label=[2])
    assert list(read_task(spec, TaskSource("folder", str(tmp_path))).splits) == ["train", "validation"]
    parquet(tmp_path / "validation_mismatched-00000-of-00001.parquet", p=["x"], h=["y"], label=[0])
    task = read_task(spec, TaskSource("folder", str(tmp_path)))
    assert list(task.splits) == ["train", "validation", "validation_mismatched"]
    assert task.splits["validation_mismatched"].pairs == ["y"]


def test_a_missing_split_says_what_the_folder_holds(cola):
    (cola / "validation-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError) as error:
        read_task(COLA, TaskSource("folder", str(cola)))
    assert "has no split 'validation'; it holds train-00000-of-00001.parquet." in str(error.value)
    assert "Set task.validation_splits=[] to take it from the training rows." in str(error.value)


def test_a_missing_training_split_says_that_it_has_to_be_there(tmp_path):
    with pytest.raises(
        DataError, match=r"has no split 'train'; it holds nothing(.|\n)*task.train_split=<name of the file>"
    ):
        read_task(COLA, TaskSource("folder", str(tmp_path)))


def test_csv_json_lines_and_parquet_read_alike(tmp_path):
    texts, labels = ["red, and\nround", "blué", "red"], ["b", "a", "b"]
    records = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    files = [
        write(tmp_path / "t.csv", '\ufefftext,label\n"red, and\nround",b\nblué,a\n\nred,b\n'),
        write(tmp_path / "tabs.csv", 'text\tlabel\n"red, and\nround"\tb\nblué\ta\nred\tb\n'),
        write(tmp_path / "s.csv", 'text;label\n"red, and\nround";b\nblué;a\nred;b\n'),
        write(tmp_path / "t.jsonl", "".join(json.dumps(record) + "\n" for record in records)),
        write(tmp_path / "t.json", json.dumps(records, indent=1)),
    ]
    parquet(tmp_path / "t.parquet", text=texts, label=labels)
    for file in [*files, tmp_path / "t.parquet"]:
        task = own(file)
        assert task.splits["train"].texts == texts, file
        assert task.splits["train"].labels == [1, 0, 1], file
        assert task.label_names == ("a", "b"), file


def test_labels_that_are_numbers_are_sorted_as_numbers(tmp_path):
    file = write(tmp_path / "t.csv", "text,label\na,10\nb,9\nc,10\n")
    assert own(file).label_names == ("9", "10")
    assert own(file).splits["train"].labels == [1, 0, 1]


def test_labels_may_be_names_or_numbers_of_names(tmp_path):
    parquet(tmp_path / "t.parquet", text=["a", "b"], label=[1, 0])
    assert own(tmp_path / "t.parquet", labels=["no", "yes"]).splits["train"].labels == [1, 0]
    file = write(tmp_path / "t.csv", "text,label\na,yes\nb,no\n")
    assert own(file, labels=["no", "yes"]).splits["train"].labels == [1, 0]


def test_whole_numbers_that_are_names_are_taken_by_name(tmp_path):
    parquet(tmp_path / "t.parquet", text=["a", "b"], label=[1, 0])
    assert own(tmp_path / "t.parquet", labels=["1", "0"]).splits["train"].labels == [0, 1]


def test_regression_labels_are_numbers(tmp_path):
    task = own(write(tmp_path / "t.csv", "text,label\na,1.5\nb,-2\n"), kind="regression")
    assert task.splits["train"].labels == [1.5, -2.0]
    assert task.label_names is None


def test_pairs_come_from_their_column(tmp_path):
    task = own(write(tmp_path / "t.csv", "text,other,label\na,x,1\nb,y,0\n"), text_pair="other")
    assert task.splits["train"].pairs == ["x", "y"]


def test_a_folder_per_class_is_read_with_its_oddities(tmp_path):
    (tmp_path / "sports").mkdir()
    (tmp_path / "tech").mkdir()
    (tmp_path / "sports/001.txt").write_bytes(b"  a \xa315m signing\r\nof Parma\n\n")
    (tmp_path / "tech/001.txt").write_bytes("caf\u00e9".encode())
    (tmp_path / "tech/002.txt").write_bytes(b"odd \x81 byte")
    spec = TaskSpec.from_config({"name": "n", "labels": ["sports", "tech"], "validation_fraction": 0.5})
    task = read_task(spec, TaskSource("folder", str(tmp_path)))
    texts = {text for split in task.splits.values() for text in split.texts}
    assert texts == {"a £15m signing\nof Parma", "café", "odd \x81 byte"}


# -- own splits --------------------------------------------------------------------------------------


def many(path, rows=100):
    return write(path, "text,label\n" + "".join(f"text {row},{'ab'[row % 2]}\n" for row in range(rows)))


def test_one_file_is_split_70_10_20_by_class(tmp_path):
    task = own(many(tmp_path / "t.csv"), validation_file=None, test_fraction=0.2)
    assert {name: len(rows) for name, rows in task.splits.items()} == {"train": 70, "validation": 10, "test": 20}
    assert all(sum(rows.labels) * 2 == len(rows) for rows in task.splits.values())


def test_a_validation_file_is_used_as_it_is_and_a_test_is_still_taken(tmp_path):
    task = own(many(tmp_path / "t.csv"), validation_file=str(many(tmp_path / "v.csv", 30)), test_fraction=0.2)
    assert {name: len(rows) for name, rows in task.splits.items()} == {"train": 80, "validation": 30, "test": 20}


def test_files_for_every_split_are_not_touched(tmp_path):
    file = write(tmp_path / "t.csv", "text,label\na,1\na,1\nb,0\n")
    task = own(file, test_file=str(file), test_fraction=0.2)
    assert task.splits["train"].texts == task.splits["test"].texts == ["a", "a", "b"]


def test_duplicates_are_dropped_before_a_split_and_counted(tmp_path):
    file = many(tmp_path / "t.csv")
    file.write_text(file.read_text() + "text 0 ,a\ntext 1,b\n")
    task = own(file, validation_file=None, test_fraction=0.2)
    assert task.dropped == {"duplicates": 2}
    assert sum(map(len, task.splits.values())) == 100


def test_too_few_rows_for_a_split_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"t.csv: 4 different rows are too few to take validation from them"):
        own(many(tmp_path / "t.csv", 4), validation_file=None)


# -- what is wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "keys", "message"),
    [
        ("body,queue\na,b\n", {}, r"has no column 'text'; its columns are body, queue\.\n.*task.text=\.\.\."),
        ("text,queue\na,b\n", {}, r"has no column 'label'; its columns are text, queue"),
        ("text,label\na,b\n", {"text_pair": "t2"}, "has no column 't2'; its columns are text, label"),
        ("text,label\na,x\n  ,y\n", {}, r"t.csv, row 2: the text in column 'text' is empty\.\n.*task.empty=drop"),
        ("text,t2,label\na,b,x\nc,,y\n", {"text_pair": "t2"}, "row 2: the text in column 't2' is empty"),
        ("text,label\na,x\nb,z\n", {"labels": ["x", "y"]}, "row 2: label 'z' is not in the set x, y; correct it"),
        ("text,label\na,x\nb,\nc,y\n", {}, "row 2: column 'label' holds no label"),
        ("text,label\na,1\nb,high\n", {"kind": "regression"}, "row 2: label 'high' is not a number"),
        ("text,label\na,1\nb,nan\n", {"kind": "regression"}, "row 2: label 'nan' is not a number"),
        ("text,label\na,1\nb,inf\n", {"kind": "regression"}, "row 2: label 'inf' is not a number"),
        ("text,label\n,x\n ,y\n", {"empty": "drop"}, "has no rows left: 2 read, 2 without text"),
        ("text,label\n", {"labels": ["x", "y"]}, "has no rows left: 0 read, 0 without text"),
        ("text,label\na,x\nb,x\n", {}, "all rows have 'x' in column 'label'"),
        (
            "text,label\na,1\nb,2\nc,3\n",
            {},
            r"'label' has 3 different labels in 3 rows, .*\n.*\n.*task.kind=regression",
        ),
        (
            "text,label\na,1\nb,2\nc,3\nd,1\n",
            {"metrics": ["f1"]},
            r"f1 is of two classes, but .* has 3; use task.metrics=\[macro_f1\]",
        ),
        ("text,label\na,x\nb,c,y\n", {}, r"row 2 \(line 3\) has 3 fields, but the header has 2: text, label.*','"),
        ('text,label\n"a,x\nb,y\n', {}, r"t.csv, line 3 is not CSV \(unexpected end of data\); check the quotes"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_its_place(tmp_path, text, keys, message):
    with pytest.raises(DataError, match=message):
        own(write(tmp_path / "t.csv", text), **keys)


def test_rows_without_text_can_be_dropped_or_kept(tmp_path):
    file = write(tmp_path / "t.csv", "text,label\na,x\n,y\nb,y\n")
    dropped = own(file, empty="drop")
    assert dropped.splits["train"].texts == ["a", "b"]
    assert dropped.dropped == {"empty": 2}  # of the training and the validation file, which are one
    assert own(file, empty="keep").splits["train"].texts == ["a", "", "b"]


def test_a_number_where_text_should_be_is_refused(tmp_path):
    parquet(tmp_path / "t.parquet", text=[1, 2], label=[0, 1], body=["a", "b"])
    with pytest.raises(DataError, match=r"row 1: column 'text' holds 1, which is not text.*columns: text, label, body"):
        own(tmp_path / "t.parquet")


def test_a_label_number_outside_the_set_is_refused_with_the_names(cola):
    parquet(cola / "validation-00000-of-00001.parquet", sentence=["a", "b"], label=[0, -1])
    with pytest.raises(DataError, match=r"row 2: label -1 is not in the set 0 \(unacceptable\), 1 \(acceptable\)"):
        read_task(COLA, TaskSource("folder", str(cola)))


def test_a_label_that_training_does_not_know_is_refused(tmp_path):
    train = write(tmp_path / "t.csv", "text,label\na,x\nb,y\nc,x\n")
    other = write(tmp_path / "v.csv", "text,label\nd,x\ne,z\n")
    with pytest.raises(DataError, match=r"v.csv, row 2: label 'z' is not in the set x, y"):
        own(train, validation_file=str(other))


def test_a_bad_file_of_a_class_folder_is_named(tmp_path):
    for name, text in {"a/1.txt": "x", "b/2.txt": " \n"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    spec = TaskSpec.from_config({"name": "n", "labels": ["a", "b"]})
    with pytest.raises(DataError, match=r"/b/2\.txt: the text in column 'text' is empty"):
        read_task(spec, TaskSource("folder", str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "t.csv is empty"),
        ("t.csv", b"PAR1....", "t.csv is not what its name says: it is a Parquet file"),
        ("t.csv", b"PK\x03\x04....", "is not what its name says: it is a zip archive or an Excel workbook"),
        ("t.jsonl", b"\x1f\x8b....", "is not what its name says: it is a gzip archive"),
        ("t.csv", "text,label\na,b\n".encode("utf-16"), "it is a binary file, or text in UTF-16"),
        ("t.parquet", b"text,label\n", "t.parquet is not what its name says: it is something else"),
        ("t.parquet", b"PAR1 and then nothing", "t.parquet cannot be read as Parquet"),
        (
            "t.csv",
            b"text,label\na\xa3,b\n",
            r"is not UTF-8 \(byte 0xa3: invalid start byte\)\.\n.*\nSave it as UTF-8",
        ),
        ("t.jsonl", b'{"text": "a"}\ntext,label\n', r"t.jsonl, line 2 is not JSON \(.*\); write one object per line"),
        ("t.jsonl", b'{"text": "a"}\n[1, 2]\n', r"t.jsonl, line 2 is \[1, 2\], not an object"),
        ("t.json", b'[{"text": "a"}, 5]', "t.json, row 2 is 5, not an object"),
        ("t.json", b'[{"text": "a"}', "t.json begins like a JSON list but is not one"),
        (
            "t.xlsx",
            b"PK\x03\x04....",
            r"t.xlsx has the suffix .xlsx, which says nothing of .*\nAllowed: .parq",
        ),
        ("tickets", b"a,b", "tickets has no suffix, which says nothing of how it is read"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        own(tmp_path / name)


def test_a_data_error_is_a_config_error_so_that_the_run_exits_with_4():
    assert issubclass(DataError, ConfigError)


def test_texts_and_labels_are_read_from_fields_of_records(tmp_path):
    rows = [{"id": n, "meta": {"body": f"text {n}", "tag": {"name": ["no", "yes"][n % 2]}}} for n in range(4)]
    path = write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    task = own(path, text="meta.body", label="meta.tag.name")
    assert list(task.splits["train"].texts) == ["text 0", "text 1", "text 2", "text 3"]
    assert (task.splits["train"].labels, task.label_names) == ([0, 1, 0, 1], ("no", "yes"))


def test_class_names_of_a_field_are_those_of_the_dataset(tmp_path):
    features = datasets.Features(
        {"meta": {"body": datasets.Value("string"), "y": datasets.ClassLabel(names=["b", "a"])}}
    )
    rows = {"meta": [{"body": "one", "y": 1}, {"body": "two", "y": 0}]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "t.parquet")
    task = own(tmp_path / "t.parquet", text="meta.body", label="meta.y")
    assert (task.splits["train"].labels, task.label_names) == ([1, 0], ("b", "a"))


# -- groups ------------------------------------------------------------------------------------------

TICKETS = "text,label,customer\n" + "".join(f"text {row},{'ab'[row % 2]},c{row // 4}\n" for row in range(40))


def tickets(tmp_path, content=TICKETS, **keys):
    path = write(tmp_path / "t.csv", content)
    spec = TaskSpec.from_config({"name": "csv", "file": str(path), "group": "customer", "test_fraction": 0.2, **keys})
    return read_task(spec, find_task(spec, {}))


def test_rows_of_a_group_are_in_one_split_with_the_shares_of_rows_and_classes(tmp_path):
    task = tickets(tmp_path)
    customers = {name: {int(text.split()[1]) // 4 for text in rows.texts} for name, rows in task.splits.items()}
    assert {name: len(some) for name, some in customers.items()} == {"train": 7, "validation": 1, "test": 2}
    assert len(set().union(*customers.values())) == 10
    assert [sum(rows.labels) for rows in task.splits.values()] == [14, 2, 4]
    assert task.splits["train"].groups is not None
    assert task.dropped == {}


@pytest.mark.parametrize(
    ("content", "keys", "words"),
    [
        (TICKETS, {"group": "custmer"}, r"has no column 'custmer'(?s:.*)Did you mean task.group=customer\?"),
        (TICKETS, {"group": "x"}, r"has no column 'x'(?s:.*)Name one of these: task.group="),
        (TICKETS + "one,a,\ntwo,b, \n", {}, r"row 41: column 'customer' holds no group \(2 such rows, also row 42\)"),
        (TICKETS + "one,a,NaN\n", {}, r"row 41: column 'customer' holds no group"),
        ("text,label,customer\na,x,c\nb,y,c\n", {}, r"all 2 rows have 'c' in column 'customer'"),
        (
            "text,label,customer\na,x,c\nb,y,d\n",
            {},
            r"2 groups of column 'customer' are too few to take validation(?s:.*)Allowed: 3 groups or more",
        ),
        (TICKETS, {"validation_file": "v.csv", "test_fraction": 0.0}, r"validation and test are splits of their own"),
    ],
)
def test_groups_that_divide_nothing_are_refused(tmp_path, monkeypatch, content, keys, words):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "v.csv", TICKETS)
    with pytest.raises(DataError, match=words):
        tickets(tmp_path, content, **keys)


def test_generated_rows_have_no_groups(tmp_path):
    with pytest.raises(ConfigError, match="generated rows have no groups"):
        tickets(tmp_path, synthetic_rows=16)
