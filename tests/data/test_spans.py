"""Questions with answers in a text, read from every layout; what is wrong with them is said by row."""

import json

import pytest

from prunekit.data.errors import DataError
from prunekit.data.reading import read_task
from prunekit.data.sources import TaskSource
from prunekit.data.spans import Answer
from prunekit.data.spec import TaskSpec

TEXT = "The cat sat on the mat."
CAT = {"id": "1", "question": "Who sat?", "context": TEXT, "answers": {"text": ["cat"], "answer_start": [4]}}
NOBODY = {"id": "2", "question": "Who ran?", "context": TEXT, "answers": {"text": [], "answer_start": []}}


def spec(**keys):
    own = {
        "name": "qa",
        "kind": "span",
        "text": "question",
        "text_pair": "context",
        "label": "answers",
        "id": "id",
        "max_length": 384,
    }
    return TaskSpec.from_config({**own, "unanswerable": True, **keys})


def read(folder, *rows, name="train.jsonl", **keys):
    """Reads these rows as the training file; validation is another file, because two rows are too few to split."""
    content = "\n".join(json.dumps(row) for row in rows)
    (folder / name).write_text(content)
    (folder / "val.jsonl").write_text(json.dumps(CAT))
    own = spec(file=str(folder / name), validation_file=str(folder / "val.jsonl"), **keys)
    return read_task(own, TaskSource("file", str(folder / name))).splits["train"]


def test_rows_as_on_the_hub(tmp_path):
    rows = read(tmp_path, CAT, NOBODY)
    assert rows.texts == ["Who sat?", "Who ran?"]
    assert rows.pairs == [TEXT, TEXT]
    assert rows.labels == [Answer(("cat",), (4,)), Answer()]
    assert rows.ids == ["1", "2"]


def test_rows_with_a_list_of_answers(tmp_path):
    answers = [{"text": "cat", "answer_start": 4}, {"text": "The cat", "answer_start": 0}]
    assert read(tmp_path, {**CAT, "answers": answers}).labels == [Answer(("cat", "The cat"), (4, 0))]
    assert read(tmp_path, {**CAT, "answers": []}).labels == [Answer()]
    assert read(tmp_path, {**CAT, "answers": None}).labels == [Answer()]


def test_the_nested_file_that_squad_is_published_as(tmp_path):
    asked = [{**CAT, "answers": [{"text": "cat", "answer_start": 4}]}, {**NOBODY, "answers": [], "is_impossible": True}]
    nested = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": TEXT, "qas": asked}]}]}
    rows = read(tmp_path, nested, name="train.json")
    assert (rows.texts, rows.labels) == (["Who sat?", "Who ran?"], [Answer(("cat",), (4,)), Answer()])
    assert rows.ids == ["1", "2"]


def test_white_space_around_a_question_goes(tmp_path):
    assert read(tmp_path, {**CAT, "question": "  Who sat? "}).texts == ["Who sat?"]


@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        (
            {"answers": {"text": ["cat"], "answer_start": [5]}},
            {},
            r"row 2: the answer 'cat' is not at answer_start=5 .* where 'at ' is\.\nIt starts at 4; .* from 0",
        ),
        (
            {"answers": {"text": ["dog"], "answer_start": [4]}},
            {},
            r"'dog' is not at .*\nIt does not occur in the context",
        ),
        ({"answers": {"text": ["cat"], "answer_start": [-1]}}, {}, r"'cat' is not at answer_start=-1"),
        ({"answers": {"text": [" "], "answer_start": [3]}}, {}, "row 2: an answer is empty"),
        (
            {"answers": {"text": ["cat"], "answer_start": []}},
            {},
            r"row 2: .* is not an answer; allowed are \{text: ",
        ),
        ({"answers": {"text": ["cat"]}}, {}, "row 2: .* is not an answer"),
        ({"answers": [{"text": "cat"}]}, {}, "row 2: .* is not an answer"),
        ({"answers": "cat"}, {}, "row 2: 'cat' is not an answer"),
        ({"answers": {"text": ["cat"], "answer_start": ["4"]}}, {}, "row 2: .* is not an answer"),
        ({"answers": []}, {"unanswerable": False}, r"row 2: .*no answer, and task.unanswerable=false.\n.*task=squad2"),
        ({"question": " "}, {}, "row 2: the text in column 'question' is empty"),
        ({"context": ""}, {}, "row 2: the text in column 'context' is empty"),
        ({"id": "1"}, {}, "row 2: id '1' is also that of row 1; ids must be unique"),
    ],
)
def test_what_is_wrong_is_said_by_row(tmp_path, change, keys, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, CAT, {**CAT, "id": "2", **change}, **keys)


def test_all_rows_with_a_fault_are_counted(tmp_path):
    rows = [{**CAT, "id": str(number), "answers": [{"text": "cat", "answer_start": number}]} for number in range(8)]
    with pytest.raises(
        DataError, match=r"row 1: the answer 'cat' is not at answer_start=0 .* \(7 such rows, also row 2"
    ):
        read(tmp_path, *rows)


def test_questions_about_texts_with_other_blanks_around_them_are_all_kept(tmp_path):
    rows = [
        {"question": f"q{n}?", "context": " " * (n % 2) + f"text {n // 4}", "answers": [], "id": str(n)}
        for n in range(40)
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = spec(file=str(tmp_path / "own.jsonl"), validation_fraction=0.2)
    task = read_task(own, TaskSource("file", own.file))
    assert (sum(map(len, task.splits.values())), task.dropped) == (40, {})
    train, validation = ({text.strip() for text in task.splits[name].pairs} for name in ("train", "validation"))
    assert not train & validation


def test_ids_are_not_looked_at_where_the_task_names_none(tmp_path):
    assert read(tmp_path, CAT, CAT, id=None).ids == ["1", "2"]  # the rows' numbers


def test_a_nested_file_that_is_another_thing_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"question 1: KeyError 'question'; this is not SQuAD's layout"):
        read(tmp_path, {"data": [{"paragraphs": [{"context": "c", "qas": [{}]}]}]}, name="train.json")


def test_questions_about_one_text_are_never_divided(tmp_path):
    file = tmp_path / "own.jsonl"
    rows = [
        {"question": f"q{n}?", "context": f"text {n // 5}", "answers": [{"text": "text", "answer_start": 0}]}
        for n in range(100)
    ]
    file.write_text("\n".join(json.dumps(row) for row in [*rows, rows[0]]))
    task = read_task(spec(file=str(file), id=None, validation_fraction=0.2), TaskSource("file", str(file)))
    train, validation = task.splits["train"], task.splits["validation"]
    assert (len(train), len(validation), task.dropped) == (80, 20, {"duplicates": 1})
    assert not set(train.pairs) & set(validation.pairs)
