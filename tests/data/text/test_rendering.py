"""Files of texts as people have them, and the templates over their columns."""

import gzip
import json

import pytest
from support.letters import letters

from prunekit.data.errors import DataError
from prunekit.data.text.rendering import is_text, render
from prunekit.data.text.samples import read_documents, read_questions, token_ids
from prunekit.data.text.spec import ChoiceSpec, Corpus, CorpusFiles


def rendered(tmp_path, content, *templates, name="t.txt"):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return [texts for _, texts in render(tmp_path / name, "task.open", *(templates or ("{{ text }}",)))]


def rows(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


# -- codes and lines ---------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_documents_are_the_same_in_every_marked_code(tmp_path, code):
    assert rendered(tmp_path, "Grüße\r\naus\r\n\r\nWien\r\n".encode(code)) == [("Grüße\naus",), ("Wien",)]


def test_compressed_documents_are_the_same_and_a_mark_that_is_written_twice_is_no_text(tmp_path):
    text = gzip.compress("\ufeff\ufeffone\ntwo\n\nthree\n".encode())
    assert rendered(tmp_path, text, name="t.txt.gz") == [("one\ntwo",), ("three",)]


@pytest.mark.parametrize("code", ["cp1252", "latin-1", "cp1251", "shift-jis", "utf-16-le"])
def test_a_code_that_cannot_be_told_is_refused_with_what_to_type(tmp_path, code):
    text = {"cp1251": "Привет мир", "shift-jis": "日本語の文章"}.get(code, "Grüße aus Köln, für 3 £")
    with pytest.raises(DataError, match=r"(is not UTF-8|without a mark)(.|\n)*iconv -f [A-Z0-9-]+ -t UTF-8 .*t\.txt"):
        rendered(tmp_path, text.encode(code))


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0c", "\x0b", "\x1c"])
def test_documents_end_at_line_feeds_alone(tmp_path, mark):
    assert rendered(tmp_path, f"one{mark}two\nthree") == [(f"one{mark}two",), ("three",)]
    assert rendered(tmp_path, f"one{mark}two\n \t\n\nthree") == [(f"one{mark}two",), ("three",)]


def test_what_cannot_be_seen_is_no_document_and_is_counted(tmp_path):
    (tmp_path / "t.txt").write_text("a\n\n\u200b\n\n\ufeff\x01\n\nb\n\nb\n\nc\n")
    (tmp_path / "h.txt").write_text("x\n\n\u00ad\n")
    found = read_documents(Corpus(), CorpusFiles(tmp_path / "t.txt", tmp_path / "h.txt"), "open")
    assert (found.calibration, found.evaluation, found.duplicates, found.empty) == (["a", "b", "c"], ["x"], 1, 3)
    assert [is_text(text) for text in ("a", "!", "木", " ", "\u200b", "\0", "")] == [True] * 3 + [False] * 4


# -- templates ---------------------------------------------------------------------------------------


def test_a_column_whose_name_is_no_variable_is_reached_by_row(tmp_path):
    content = rows({"Question Text": "why", "a": 1}, {"Question Text": "how", "a": 2})
    assert rendered(tmp_path, content, '{{ row["Question Text"] }}: {{ a }}', name="t.jsonl") == [
        ("why: 1",),
        ("how: 2",),
    ]
    assert rendered(tmp_path, rows({"row": "own"}), "{{ row }}", name="t.jsonl") == [("own",)]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ Question Text }}", "is not a Jinja template"),
        ("{{ question }}", "row 1: the template of task.open cannot be filled ('question' is undefined) (2 such rows"),
        ('{{ row["x"] }}', "cannot be filled"),
        ("{{ a.encode('x') }}", "cannot be filled"),
        ("{{ a / 0 }}", "cannot be filled"),
    ],
)
def test_a_template_that_fails_says_what_to_type(tmp_path, template, words):
    content = rows({"Question Text": "why", "a": "1"}, {"Question Text": "how", "a": "2"})
    with pytest.raises(DataError) as error:
        rendered(tmp_path, content, template, name="t.jsonl")
    first, second, third = str(error.value).splitlines()
    assert words in first
    assert "Question Text, a" in second
    assert third == """In a shell: 'task.open.template={{ row["Question Text"] }}'"""


def test_nothing_of_every_type_prints_nothing(tmp_path):
    content = '{"text": NaN, "a": "x"}\n{"text": null, "a": "y"}\n{"a": "z"}\n'
    assert rendered(tmp_path, content, "{{ text }}{{ a }}", name="t.jsonl") == [("x",), ("y",), ("z",)]


def test_half_a_character_is_refused_wherever_a_template_prints_it(tmp_path):
    content = rows({"text": "a", "b": "\ud83d"}, {"text": "b", "b": "c"})
    assert rendered(tmp_path, content, "{{ text }}", name="t.jsonl") == [("a",), ("b",)]
    with pytest.raises(DataError, match=r"row 1: task.open holds half a character, in 'a\\ud83d', which is no Unicode"):
        rendered(tmp_path, content, "{{ text }}{{ b }}", name="t.jsonl")


# -- questions and beginnings ------------------------------------------------------------------------


def test_answers_are_read_as_labels_are(tmp_path):
    (tmp_path / "q.jsonl").write_text(rows(*({"q": f"question {n}", "a": n % 2 == 0} for n in range(4))))
    found = read_questions(ChoiceSpec("{{ q }}?", "a", ("false", "true")), tmp_path / "q.jsonl")
    assert {question.prompt: question.answer for question in found} == {f"question {n}?": 1 - n % 2 for n in range(4)}


def test_all_wrong_answers_are_counted(tmp_path):
    (tmp_path / "q.jsonl").write_text(
        rows(*({"q": f"{n}", "a": a} for n, a in enumerate(["yes", None, ["no"], "x" * 500])))
    )
    with pytest.raises(DataError) as error:
        read_questions(ChoiceSpec("{{ q }}?", "a", ("yes", "no")), tmp_path / "q.jsonl")
    assert "row 2: column 'a' holds None (3 such rows, also row 3: column 'a' holds ['no'] and" in str(error.value)
    assert len(str(error.value).splitlines()[0]) < 400
    with pytest.raises(DataError, match="has no column 'answer'; its columns are q, a"):
        read_questions(ChoiceSpec("{{ q }}?", "answer", ("yes", "no")), tmp_path / "q.jsonl")


def test_a_text_begins_once_where_its_template_writes_the_beginning_too():
    tokenizer = letters()

    class Beginning:
        bos_token_id = 7

        def __call__(self, text, **options):
            ids = [7 if mark == "^" else ord(mark) for mark in text]
            return {"input_ids": [7, *ids]}

    assert token_ids(Beginning(), "^ab") == [7, 97, 98]
    assert token_ids(Beginning(), "ab") == [7, 97, 98]
    assert token_ids(tokenizer, "AB") == tokenizer("AB")["input_ids"]
