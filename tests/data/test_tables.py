"""Files as people have them: quotes, columns named twice, other orientations of JSON; refused or read, never wrong."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from prunekit.data.decoding import decode_file
from prunekit.data.errors import DataError
from prunekit.data.tables import Table, read_class_folders, read_table


def read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    table = read_table(tmp_path / name)
    return {name: list(column) for name, column in table.columns.items()}


def refusal(tmp_path, name, content):
    with pytest.raises(DataError) as error:
        read(tmp_path, name, content)
    lines = str(error.value).replace(str(tmp_path), "").splitlines()
    assert len(lines) <= 3
    assert all(len(line) < 400 for line in lines)
    return lines


# -- quotes ------------------------------------------------------------------------------------------


def test_in_a_tsv_quotes_are_characters(tmp_path):
    found = read(tmp_path, "t.tsv", 'text\tlabel\n"Great" film\tpos\n"never again\tneg\n5" nail\tpos\nsaid "no"\tneg\n')
    assert found["text"] == ['"Great" film', '"never again', '5" nail', 'said "no"']
    assert found["label"] == ["pos", "neg", "pos", "neg"]


def test_in_a_csv_a_text_may_have_lines_and_commas(tmp_path):
    found = read(tmp_path, "t.csv", 'text,label\n"red, and\nround",b\n"one, two\nthree, four\nfive",a\nplain,b\n')
    assert found["text"] == ["red, and\nround", "one, two\nthree, four\nfive", "plain"]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ('text,label\nok,pos\n"tis the season,neg\ntwo,pos\nthree 5",neg\nfour,pos\n', "row 2 (lines 3 to 5)"),
        ('label,text\npos,ok\nneg,"tis the season\npos,two\nneg,three 5"\npos,four\n', "row 2 (lines 3 to 5)"),
        ('id,text,label\n1,ok,a\n2,"tis,b\n3,two,c\n4,three 5",d\n', "row 2 (lines 3 to 5)"),
        ('text;score\nok;1.5\n"tis;2.5\nthree 5";3.5\n', "row 2 (lines 3 to 4)"),
    ],
)
def test_a_quoted_field_that_swallowed_rows_is_refused_with_its_lines(tmp_path, content, lines):
    first, second, third = refusal(tmp_path, "t.csv", content)
    assert lines in first
    assert "swallowed" in first
    assert '"""' in second
    assert ".tsv" in third


def test_a_tsv_with_quotes_around_its_fields_says_that_csv_reads_them(tmp_path):
    (tmp_path / "t.tsv").write_text('"text"\t"label"\n"a"\t"x"\n')
    with pytest.raises(DataError, match=r"has no column 'text'(.|\n)*rename the file to \.csv: in \.tsv quotes are"):
        read_table(tmp_path / "t.tsv").column("text")


def test_a_tsv_of_commas_says_so(tmp_path):
    first, _, third = refusal(tmp_path, "t.tsv", "text,label\na,b\n")
    assert "has no tab in its header, 'text,label'" in first
    assert "Rename it to .csv" in third


def test_a_header_with_a_blank_after_the_comma_is_read(tmp_path):
    found = read(tmp_path, "t.csv", 'text, label\na, x\n"b, c", y\nd, "z"\n')
    assert found == {"text": ["a", "b, c", "d"], "label": ["x", "y", "z"]}
    table = Table({"text": ["a"], " label": ["x"]}, "t")
    assert table.column("label") == ["x"]


def test_all_rows_of_another_width_are_counted_and_three_are_shown(tmp_path):
    first, _, third = refusal(tmp_path, "t.csv", "text,label\na,b\nc\nd,e,f\ng,h\ni\nj\n")
    assert first == (
        "/t.csv, row 2 (line 3) has 1 fields (4 such rows, also row 3 (line 4) has 3 fields and row 5 (line 6)), "
        "but the header has 2: text, label; ',' separates."
    )
    assert third == "Write a ',' for each field that is empty, or remove these lines."
    *_, third = refusal(tmp_path, "t.csv", "text,label\na,b\nd,e,f\n")
    assert third == "Put quotes around a text that contains ','."


# -- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "text,label,label\na,b,c\n", "names 'label' twice (columns 2 and 3)"),
        ("t.csv", "label,text, label\na,b,c\n", "names 'label' twice (columns 1 and 3)"),
        ("t.tsv", "a\ta\ta\n1\t2\t3\n", "names 'a' 3 times (columns 1, 2 and 3)"),
        ("t.jsonl", '{"text": "a", "label": "b", "label": "c"}\n', "line 1 names 'label' twice (keys 2 and 3)"),
        ("t.json", '[{"a": 1}, {"a": {"b": 1, "b": 2}}]', "row 2 names 'b' twice (keys 1 and 2)"),
        ("t.json", '{\n"a": 1,\n"a": 2\n}', "object 1 names 'a' twice (keys 1 and 2)"),
    ],
)
def test_a_name_that_is_there_twice_is_refused(tmp_path, name, content, words):
    assert words in refusal(tmp_path, name, content)[0]


def test_a_parquet_file_that_names_a_column_twice_is_refused(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array([n]) for n in range(3)], names=["text", "label", "label"])
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"names 'label' twice \(columns 2 and 3\)"):
        read_table(tmp_path / "t.parquet")


def test_a_parquet_column_of_a_type_that_datasets_does_not_know_is_refused(tmp_path):
    maps = pyarrow.array([[("text", "a")]], pyarrow.map_(pyarrow.string(), pyarrow.string()))
    pyarrow.parquet.write_table(pyarrow.table({"m": maps}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"cannot be read as Parquet \(Arrow type map<"):
        read_table(tmp_path / "t.parquet")


def test_columns_without_a_name_may_be_many(tmp_path):
    assert read(tmp_path, "t.csv", "text,label,,\na,x,,\n")["label"] == ["x"]


def test_few_of_many_columns_are_listed():
    with pytest.raises(DataError, match=r"its columns are c0, c1, c2, c3, c4, c5, c6, c7 and 992 more\."):
        Table({f"c{number}": [] for number in range(1000)}, "t").column("text")


# -- JSON --------------------------------------------------------------------------------------------


def test_objects_over_several_lines_are_read(tmp_path):
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    found = {"text": ["a", "b"], "label": ["x", "y"]}
    assert read(tmp_path, "t.json", "\n".join(json.dumps(row, indent=2) for row in rows)) == found
    assert read(tmp_path, "t.json", json.dumps(rows, indent=2)) == found
    assert read(tmp_path, "t.json", json.dumps(rows)) == found
    assert read(tmp_path, "t.json", "\ufeff" + json.dumps(rows)) == found
    assert read(tmp_path, "t.jsonl", "\n\r\n".join(map(json.dumps, rows))) == found


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("whole", "holds"),
    [
        (
            {"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}},
            "columns, 2 of them, with the keys text, label",
        ),
        ({"text": ["a", "b"], "label": ["x", "y"]}, "columns, 2 of them"),
        (
            {"columns": ["text", "label"], "index": [0, 1], "data": [["a", "x"], ["b", "y"]]},
            "its columns and rows apart",
        ),
        ({"0": {"text": "a", "label": "x"}, "1": {"text": "b", "label": "y"}}, "rows by their numbers, 2"),
        ({"data": [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]}, "its rows under 'data', 2 of them"),
        (
            {"schema": {"fields": []}, "data": [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]},
            "under 'data'",
        ),
    ],
)
def test_another_orientation_is_said_with_a_command_that_turns_it(tmp_path, whole, holds, indent, monkeypatch, capsys):
    first, _, third = refusal(tmp_path, "t.json", json.dumps(whole, indent=indent))
    assert holds in first
    assert third.startswith("Type: python -c ")
    assert third.endswith(" > /t.jsonl")
    script = third.removeprefix("Type: python -c '").partition("' > ")[0]
    monkeypatch.chdir(tmp_path)
    exec(script.replace('"/t.json"', '"t.json"'), {})  # what the message says to type
    assert read(tmp_path, "t.jsonl", capsys.readouterr().out) == {"text": ["a", "b"], "label": ["x", "y"]}


def test_one_row_is_a_row(tmp_path):
    row = {"question": "q", "answers": [{"text": "a", "answer_start": 0}]}
    assert read(tmp_path, "t.jsonl", json.dumps(row)) == {"question": ["q"], "answers": [row["answers"]]}
    assert read(tmp_path, "t.jsonl", '{"translation": {"en": "a", "fr": "b"}}')["translation"][0]["en"] == "a"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 5000, "nested too deep"),
        ('{"a": ' * 5000, "nested too deep"),
        ('{"text": "a", "label": ' + "[" * 3000 + "]" * 3000 + "}", "nested too deep"),
        ('{"text": "a", "label": ' + "1" * 5000 + "}", "line 1 is not JSON (it holds a number of more than 4,300"),
        ('[{"label": ' + "1" * 5000 + "}]", "a number of more than 4,300 digits"),
        ("[]", "holds no rows"),
        ("\ufeff", "is empty"),
        ("\n \n", "is empty"),
        ('[{"a": 1}] x', "begins like a JSON list but is not one (Extra data"),
        ('[{"a": 1} {"a": 2}]', "begins like a JSON list but is not one (Expecting ','"),
        ('{"a": 1}\n5\n"x"\nnull\n', "line 2 is 5, not an object (3 such rows, also line 3 is 'x', not an object and"),
        ("[[1, 2], [3, 4]]", "row 1 is [1, 2], not an object (2 such rows, also row 2 is [3, 4], not an object)"),
        ('{"a": "x' + "y" * 500 + '"', "object 1 is not JSON (Expecting ',' delimiter"),
        ('{\n"a": 1,\n', "object 1 is not JSON"),
    ],
)
def test_what_is_no_row_of_json_is_refused_in_one_short_line(tmp_path, content, words):
    assert words in refusal(tmp_path, "t.json", content)[0]


# -- codes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf", b"", b"\n\n", b"\xef\xbb\xbf \r\n"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_a_file_without_content_is_empty(tmp_path, name, content):
    assert "is empty" in refusal(tmp_path, name, content)[0]


@pytest.mark.parametrize(
    ("name", "content"), [("t.csv", "text,label\na,x\n"), ("t.jsonl", '{"text": "a", "label": "x"}\n')]
)
def test_a_mark_that_is_written_twice_is_no_text(tmp_path, name, content):
    assert read(tmp_path, name, f"\ufeff\ufeff{content}") == {"text": ["a"], "label": ["x"]}


@pytest.mark.parametrize(
    ("content", "first", "third"),
    [
        ("sep=;\ntext;label\na;x\n", "begins with 'sep=;', a line for Excel", "tail -n +2 "),
        ("text|label\na|x\n", "has none of ',', ';' and tab in its header, 'text|label'", "sep='|'"),
    ],
)
def test_a_table_with_another_separator_says_so(tmp_path, content, first, third):
    lines = refusal(tmp_path, "t.csv", content)
    assert first in lines[0]
    assert third in lines[2]


@pytest.mark.parametrize("code", ["utf-16", "utf-16-le"])
def test_utf_16_is_said(tmp_path, code):
    assert "it is a binary file, or text in UTF-16" in refusal(tmp_path, "t.csv", "text,label\nä,b\n".encode(code))[0]


def test_a_character_of_number_0_makes_no_file_binary(tmp_path):
    assert read(tmp_path, "t.csv", "text,label\na\0b,x\n") == {"text": ["a\0b"], "label": ["x"]}


def test_bytes_of_a_parquet_file_that_are_no_text_are_refused(tmp_path):
    text = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")]
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_table(tmp_path / "t.parquet")


def test_lines_end_at_line_feeds_alone(tmp_path):
    text = "a\u2028b\x85c\x0cd\x0be\r\nf\ng"
    for code in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        (tmp_path / "t.txt").write_bytes(text.encode(code))
        assert decode_file(tmp_path / "t.txt") == "a\u2028b\x85c\x0cd\x0be\nf\ng"


def test_a_few_bytes_of_windows_are_read_and_many_are_not(tmp_path):
    (tmp_path / "sports").mkdir()
    (tmp_path / "sports" / "1.txt").write_bytes("a £15m signing\r\nof Parma\n".encode("cp1252"))
    assert read_class_folders(tmp_path, "text", "label").columns["text"] == ["a £15m signing\nof Parma"]
    (tmp_path / "sports" / "2.txt").write_bytes("Привет, мир".encode("cp1251"))
    with pytest.raises(DataError, match=r"2\.txt is not UTF-8 \(byte 0xcf at 0: .*\n.*\n.*iconv -f CP1252 -t UTF-8"):
        read_class_folders(tmp_path, "text", "label")


# -- fields of records -------------------------------------------------------------------------------

RECORDS = [
    {"meta": {"body": "a", "by": {"name": "x"}}, "meta.title": "t"},
    {"meta": {"body": None, "by": {"name": "y"}}, "meta.title": "u"},
    {"meta": None, "meta.title": "v"},
]


def written(tmp_path, name, rows):
    """These rows as a table that was read from a file of this name."""
    path = tmp_path / name
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)))
    return read_table(path)


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.parquet"])
def test_a_dotted_path_names_a_field_of_records(tmp_path, name):
    table = written(tmp_path, name, RECORDS)
    assert list(table.column("meta.body")) == ["a", None, None]
    assert list(table.column("meta.by.name")) == ["x", "y", None]
    assert list(table.column("meta.title")) == ["t", "u", "v"]  # a column of that name
    assert list(table.texts("meta.body", [1, 0])) == ["", "a"]


def test_a_field_that_a_row_lacks_is_refused_with_those_that_are_there(tmp_path):
    rows = [{"meta": {"body": "a"}}, {"meta": {"title": "b", "date": 1}}, {"meta": {}}, {"meta": "c"}]
    table = written(tmp_path, "t.jsonl", rows)
    with pytest.raises(DataError) as error:
        table.column("meta.body")
    assert str(error.value).replace(str(tmp_path), "").splitlines() == [
        "/t.jsonl, row 2: 'meta' has no field 'body'; its fields are title, date (3 such rows, also row 3: 'meta' has "
        "no field 'body'; its fields are none and row 4: 'meta' holds 'c' and no field 'body'); 'meta.body' names it.",
        "Allowed: a field that every row has, null where it holds nothing.",
        "In a shell: task.text=meta.title",
    ]


def test_an_inner_field_is_named_by_its_whole_path(tmp_path):
    table = written(tmp_path, "t.jsonl", [{"meta": {"by": {"name": "x"}}}])
    with pytest.raises(
        DataError, match=r"row 1: 'meta.by' has no field 'mail'; its fields are name; .*\n.*\n.*by.name"
    ):
        table.column("meta.by.mail")
    with pytest.raises(DataError, match=r"has no column 'name'; its columns are meta\.(.|\n)*Name them with"):
        table.column("name")


def test_a_column_that_is_a_field_says_what_to_type(tmp_path):
    table = written(tmp_path, "t.jsonl", [{"meta": {"body": "x"}}])
    with pytest.raises(DataError, match=r"no column 'body'(.|\n)*\nIn a shell, .*: task.text=meta.body"):
        table.column("body")


# -- CoNLL -------------------------------------------------------------------------------------------

CONLL = """-DOCSTART- -X- -X- O

# id 7
EU NNP B-NP B-ORG
# SYM O O

Peter  NNP B-NP  B-PER
"""


def test_a_conll_file_has_a_word_per_line_and_a_blank_line_after_each_text(tmp_path):
    found = {"tokens": [["EU", "#"], ["Peter"]], "ner_tags": [["B-ORG", "O"], ["B-PER"]]}
    assert read(tmp_path, "t.conll", CONLL) == found
    assert read(tmp_path, "t.conll", CONLL.replace("\n", "\r\n") + "\r\n\r\n") == found
    tabs = "New York\tB-LOC\nis\u00a0it\tO\n"
    assert read(tmp_path, "t.conll", tabs) == {"tokens": [["New York", "is\u00a0it"]], "ner_tags": [["B-LOC", "O"]]}


@pytest.mark.parametrize(
    ("content", "first"),
    [
        (
            "a O\nb\n\nc O\nd\n",
            "/t.conll, line 2 has 1 columns: 'b' (2 such rows, also line 5 has 1 columns: 'd'), but",
        ),
        (
            "a\nb\n",
            "/t.conll, line 1 has 1 columns: 'a' (2 such rows, also line 2 has 1 columns: 'b'), but others have 2.",
        ),
        ("-DOCSTART- O\n\n", "/t.conll holds no words."),
    ],
)
def test_lines_that_are_no_words_with_labels_are_refused(tmp_path, content, first):
    assert refusal(tmp_path, "t.conll", content)[0].startswith(first)
