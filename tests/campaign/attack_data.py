"""Data files as people have them: strange values, codes, quotes, orientations of JSON, archives and tables cut short.

A case is a table with known rows, changed once in its values and once in how it is written. Each change says what is
right: the file is read with these values, it is refused by name, or either. Anything else is a failure.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from campaign.frame import DEAD_END, REFUSED, SAME, SILENT, Case
from prunekit.config.errors import ConfigError
from prunekit.data.preview import class_shares, repeated
from prunekit.data.reading import read_task
from prunekit.data.sources import TaskSource
from prunekit.data.spec import TaskSpec
from prunekit.data.tables import read_table
from prunekit.data.text.rendering import read_rows

TITLE = "data files"
LONG, SHORT = 1000, 12
PART = 100
READ, REFUSE, EITHER = "read", "refuse", "either"
SLOWEST = 20.0  # seconds of one file
FORMATS = (".csv", ".csv", ".tsv", ".jsonl", ".jsonl", ".json", ".parquet", ".txt")
WORDS = (
    "storm",
    "harbour",
    '"quoted"',
    "'single'",
    "a,b",
    "semi;colon",
    "é",
    "日本語",
    "😀",
    "NA",
    "nan",
    "007",
    "1e5",
)
STRANGE = ["\u2028", "\u0085", "\u200b", "\x0b", "\x0c", "\ufeff", "\xa0", "\x1f", "\x7f", "\u202e"]
NAMES = (("pos", "neg"), ("0", "1", "2"), ("yes", "no", "maybe"), ("1.5", "2.5"), ("ä b", "c,d"))

Rows = list[dict[str, Any]]
ToRows = Callable[[random.Random, Rows], None]
ToBytes = Callable[[random.Random, bytes], bytes]


def cases(count: int, rng: random.Random, folder: Path) -> Iterator[Case]:
    """Yield files: a format, a change of its values, and one of how it is written."""
    folder = Path(tempfile.mkdtemp(dir=folder))
    for number in range(count):
        suffix = rng.choice(FORMATS)
        rows = draw_rows(rng, suffix)
        value, (in_rows, first) = draw(rng, VALUES[suffix])
        in_rows(rng, rows)
        way, (in_file, second, end) = draw(rng, WAYS[suffix])
        path = folder / f"t{number}{end or suffix}"
        raw = in_file(rng, write(suffix, rows, way))
        path.write_bytes(raw) if raw is not DIRECTORY else path.mkdir()
        if way in MEANT:
            rows = list(map(MEANT[way], rows))
        wanted = REFUSE if REFUSE in (first, second) else READ if (first, second) == (READ, READ) else EITHER
        yield Case(f"{path.name}: {value}; {way}", partial(attack, path, suffix, rows, wanted))


def draw(rng: random.Random, changes: dict[str, Any]) -> tuple[str, Any]:
    """Return a change with its name; two of three may be read."""
    read = [name for name, (_, wanted, *_) in changes.items() if wanted != REFUSE]
    name = rng.choice(read if rng.random() < 2 / 3 else list(changes))
    return name, changes[name]


def attack(path: Path, suffix: str, rows: Rows, wanted: str) -> str:
    """Read a file as a table and as a task, and return what became of it."""
    began = time.monotonic()
    try:
        wrong = (None if suffix == ".txt" else wrong_task(path, rows)) or wrong_table(path, rows)
    except ConfigError as error:
        lines = str(error).splitlines()
        if path.name not in str(error) or len(lines) > 3 or max(map(len, lines)) > 700:
            return f"{DEAD_END}: the message is {str(error)[:300]!r}"
        outcome = REFUSED if wanted != READ else f"{DEAD_END}: what is right is refused: {lines[0]}"
    else:
        outcome = f"{SILENT}: {wrong}" if wrong else SAME if wanted != REFUSE else f"{SILENT}: read what is wrong"
    took = time.monotonic() - began
    return outcome if took < SLOWEST else f"{DEAD_END}: it took {took:.0f} s"


def wrong_table(path: Path, rows: Rows) -> str | None:
    """Return which column is not as it was written, as a table of tasks or of texts."""
    columns = read_table(path).columns
    texts = [row["text"] for row in read_rows(path)] if "text" in columns and path.suffix != ".txt" else None
    for name in rows[0] if rows else ():
        wanted, found = [row.get(name) for row in rows], list(columns[name])
        if list(map(kind, wanted)) != list(map(kind, found)):
            return f"column {name} holds {found!r:.200}, not {wanted!r:.200}"
    return f"texts hold {texts!r:.200}" if texts and texts != [row["text"] for row in rows] else None


def kind(value: Any) -> tuple[str, str]:
    """Return a value with its type: 1, 1.0 and True are equal, and not the same."""
    return type(value).__name__, repr(value)


def wrong_task(path: Path, rows: Rows) -> str | None:
    """Return what a task's splits hold that the rows do not, or lack."""
    spec = TaskSpec.from_config({"name": "t", "file": str(path), "test_fraction": 0.2})
    task = read_task(spec, TaskSource("file", str(path)))
    names = task.label_names or ()
    found = {
        (text.strip(), names[label])
        for split in task.splits.values()
        for text, label in zip(split.texts, split.labels, strict=True)
    }
    wanted = {(row["text"].strip(), name_of(row["label"])) for row in rows}
    count = sum(map(len, task.splits.values())) + sum(task.dropped.values())
    shares = class_shares(task.splits["train"], names)
    if (
        found != wanted
        or count != len(rows)
        or abs(sum(shares.values()) - 1) > 1e-9
        or repeated(task.splits["train"]) < 0
    ):
        return f"{count} of {len(rows)} rows; {sorted(found ^ wanted)!r:.200} differ"
    return None


def name_of(label: Any) -> str:
    """Return the name of a label's class."""
    if isinstance(label, bool):
        return str(label).lower()
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label).strip()


# -- rows --------------------------------------------------------------------------------------------


def draw_rows(rng: random.Random, suffix: str) -> Rows:
    """Return rows with different texts, and labels of a few classes, each of several rows."""
    names: list[Any] = list(rng.choice(NAMES))
    if suffix in (".jsonl", ".json", ".parquet") and rng.random() < 0.5:
        names = rng.choice([[0, 1], [3, 5, 8], [True, False], [0.5, 2.0]])
    rows: Rows = []
    for number in range(rng.randint(24, 48)):
        words = rng.choices(WORDS, k=rng.randint(1, 8))
        row = {"id": f"r{number}", "text": f"{' '.join(words)} {number}", "label": names[number % len(names)]}
        rows.append({"text": row["text"]} if suffix == ".txt" else row)
    return rows


def some(rng: random.Random, rows: Rows) -> dict[str, Any]:
    """Return one of the rows."""
    return rng.choice(rows)


def put(name: str, *values: Any) -> ToRows:
    """Return a change of one cell."""
    return lambda rng, rows: some(rng, rows).__setitem__(name, rng.choice(values))


def put_marks(rng: random.Random, rows: Rows) -> None:
    """Put characters into texts that other readers take for line ends, blanks or nothing."""
    for row in rng.sample(rows, 3):
        row["text"] = f"a{rng.choice(STRANGE)}{row['text']}{rng.choice(STRANGE)}b"


def put_lines(rng: random.Random, rows: Rows) -> None:
    """Put line ends into texts."""
    for row in rng.sample(rows, 3):
        row["text"] = row["text"].replace(" ", "\n", 1) + "\nplain end"


def put_spellings(rng: random.Random, rows: Rows) -> None:
    """Spell a class in two ways."""
    rows[0]["label"], rows[1]["label"], rows[2]["label"] = "Great", "great", "bad"


def put_types(rng: random.Random, rows: Rows) -> None:
    """Write a class as values of two types."""
    rows[0]["label"], rows[1]["label"], rows[2]["label"] = rng.choice([(1, "1", 2), (True, "true", "x"), (1, True, 2)])
    for row in rows[3:]:
        row["label"] = rows[2]["label"]


def repeat(rng: random.Random, rows: Rows) -> None:
    """Repeat rows, one of them with another label."""
    rows.append(dict(rows[0]))
    rows.append(rows[1] | {"label": rows[0]["label"]})


def put_forms(rng: random.Random, rows: Rows) -> None:
    """Spell a class with an accent as one character, and as two."""
    rows[0]["label"], rows[1]["label"] = "caf\u00e9", "cafe\u0301"


def put_floats(rng: random.Random, rows: Rows) -> None:
    """Write whole numbers as floats here and there."""
    for number, row in enumerate(rows):
        row["label"] = rng.choice([number % 2, float(number % 2)])


def leave_out(name: str) -> ToRows:
    """Return a change that leaves a key out of one row."""
    return lambda rng, rows: some(rng, rows[1:]).pop(name) and None


NOTHING: ToRows = lambda rng, rows: None  # noqa: E731
ANY: dict[str, tuple[ToRows, str]] = {
    "as drawn": (NOTHING, READ),
    "marks": (put_marks, READ),
    "a long cell": (put("text", "x" * 100_000, "word " * 20_000 + "end", '"' * 1001 + "x"), READ),
}
CELLS = ANY | {
    "blanks around": (put("text", " a b ", "\u3000c\xa0"), READ),
    "carriage returns": (put("text", "a\rb", "a\r\nb"), EITHER),
    "a NUL": (put("text", "a\0b", "\0\0c"), READ),
    "no class": (put("label", "-1", "null", "None"), EITHER),
    "a class with a blank": (lambda rng, rows: rows[0].update(label=f"{name_of(rows[0]['label'])} "), EITHER),
    "a class in two forms": (put_forms, REFUSE),
    "line ends": (put_lines, EITHER),
    "repeated rows": (repeat, READ),
    "no text": (put("text", "", "  ", "\u2003"), REFUSE),
    "no label": (put("label", "", " "), REFUSE),
    "two spellings": (put_spellings, REFUSE),
    "a list as label": (put("label", "['a', 'b']", "[1, 0]", "{'a': 1}"), REFUSE),
    "nan as label": (put("label", "nan", "NaN", "<NA>"), REFUSE),
}
TYPED = CELLS | {
    "line ends": (put_lines, READ),
    "null": (put("text", None), REFUSE),
    "null label": (put("label", None), REFUSE),
}
OBJECTS = TYPED | {
    "NaN": (put("text", float("nan")), REFUSE),
    "NaN label": (put("label", float("nan")), REFUSE),
    "half a character": (put("text", "\ud83d", "a \udc00 b"), REFUSE),
    "half a character in a label": (put("label", "\ud83d"), REFUSE),
    "mixed types": (put_types, REFUSE),
    "a list as text": (put("text", ["a"], {"a": "b"}, []), REFUSE),
    "a number as text": (put("text", 7, 7.5, True), REFUSE),
    "a list of labels": (put("label", ["a", "b"], {"a": 1}, []), REFUSE),
    "a huge number": (put("label", 2**70, -(10**300), 1e308, float("inf")), EITHER),
    "whole floats": (put_floats, READ),
    "no id": (leave_out("id"), READ),
    "a key left out": (leave_out("text"), REFUSE),
    "a label left out": (leave_out("label"), REFUSE),
    "nested fields": (lambda rng, rows: rows[0].update(more={"a": [1, {"b": None}]}), READ),
}
TAB_CELLS = {name: change for name, change in CELLS.items() if name not in ("line ends", "carriage returns")}
LINES = {name: change for name, change in ANY.items() if name != "a long cell"}
TABLES = {name: change for name, change in TYPED.items() if name not in ("a list as label", "nan as label")}
VALUES: dict[str, dict[str, tuple[ToRows, str]]] = {
    ".csv": CELLS,
    ".tsv": TAB_CELLS,
    ".jsonl": OBJECTS,
    ".json": OBJECTS,
    ".parquet": TABLES,
    ".txt": LINES,
}


# -- bytes -------------------------------------------------------------------------------------------

DIRECTORY = b"a directory"
SEPARATORS = {"tabs in a csv": "\t", "semicolons in a csv": ";"}


def write(suffix: str, rows: Rows, way: str) -> bytes:
    """Return a file of these rows, in the separators and line ends that `way` names."""
    end = "\r\n" if way == WINDOWS else "\n"
    if suffix == ".parquet":
        stream = io.BytesIO()
        pyarrow.parquet.write_table(table_of(rows), stream, row_group_size=7)
        return stream.getvalue()
    if suffix == ".jsonl":
        return "".join(f"{json.dumps(row)}{end}" for row in rows).encode()
    if suffix == ".json":
        return json.dumps(rows, indent=1).replace("\n", end).encode()
    if suffix == ".txt":
        return "".join(f"{row['text']}{end}" for row in rows).encode()
    text = io.StringIO(newline="")
    if suffix == ".tsv":
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        text.write("".join("\t".join(map(str, line)) + end for line in lines))
    else:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator=end, delimiter=SEPARATORS.get(way, ","))
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue().encode()


def table_of(rows: Rows) -> pyarrow.Table:
    """Return rows as an Arrow table; a column of several types becomes one of texts."""
    for row in rows:
        for name in ("text", "label"):
            if isinstance(row[name], str) != isinstance(rows[-1][name], str) and row[name] is not None:
                row[name] = str(row[name])
    if len({type(row["label"]) for row in rows} - {type(None)}) > 1:
        for row in rows:
            row["label"] = None if row["label"] is None else str(row["label"])
    return pyarrow.Table.from_pylist(rows)


def again(change: Callable[[pyarrow.Table], pyarrow.Table]) -> ToBytes:
    """Return a change of a Parquet file's table."""

    def changed(rng: random.Random, raw: bytes) -> bytes:
        stream = io.BytesIO()
        pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(io.BytesIO(raw))), stream)
        return stream.getvalue()

    return changed


def column(name: str, make: Callable[[Any], Any]) -> ToBytes:
    """Return a change of one column of a Parquet file."""
    return again(lambda table: table.set_column(table.column_names.index(name), name, make(table.column(name))))


def to_bytes(values: Any) -> Any:
    """Return texts as bytes."""
    return pyarrow.array([None if value is None else str(value).encode() for value in values.to_pylist()])


def shorter(values: Any) -> Any:
    """Return whole numbers in eight bits, where they are whole numbers."""
    return values.cast(pyarrow.int8()) if values.type == pyarrow.int64() else values


def in_lines(change: Callable[[random.Random, list[bytes]], list[bytes]]) -> ToBytes:
    """Return a change of the lines of a file, each with its end."""
    return lambda rng, raw: b"".join(change(rng, raw.splitlines(keepends=True)))


def cut(rng: random.Random, raw: bytes) -> bytes:
    """Cut a file short, somewhere behind its beginning."""
    return raw[: rng.randint(len(raw) // 4, len(raw) - 2)]


def insert(*lines: bytes) -> ToBytes:
    """Return a change that puts one of these lines before the first row, or after the last."""

    def changed(rng: random.Random, found: list[bytes]) -> list[bytes]:
        place = rng.choice([1, len(found)])  # not within a text of several lines
        return [*found[:place], rng.choice(lines), *found[place:]]

    return in_lines(changed)


def recode(code: str) -> ToBytes:
    """Return a change of code; an é at the end of the first line makes sure that it shows."""
    return lambda rng, raw: raw.decode().replace("\n", " é\n", 1).encode(code, "replace")


Way = tuple[ToBytes, str, str]  # the change, what is right then, and the suffix of the file, "" for its own
WHOLE: dict[str, Way] = {
    "as written": (lambda rng, raw: raw, READ, ""),
    "empty": (lambda rng, raw: b"", REFUSE, ""),
    "blank": (lambda rng, raw: b"\n \n\r\n", REFUSE, ""),
    "a directory": (lambda rng, raw: DIRECTORY, REFUSE, ""),
    "named .parquet": (lambda rng, raw: raw, REFUSE, ".parquet"),
    "named .xlsx": (lambda rng, raw: raw, REFUSE, ".xlsx"),
}
TEXTS = WHOLE | {
    "a mark of UTF-8": (lambda rng, raw: b"\xef\xbb\xbf" + raw, READ, ""),
    "Windows-1252": (recode("cp1252"), REFUSE, ""),
    "UTF-16": (recode("utf-16"), REFUSE, ""),
    "UTF-16 without a mark": (recode("utf-16-le"), REFUSE, ""),
    "a bad byte": (insert(b"\xff\xfe\xfa\n"), REFUSE, ""),
    "many NULs": (lambda rng, raw: b"\0" * 400 + raw, REFUSE, ""),
}
GZ: Callable[[str], dict[str, Way]] = lambda suffix: {  # noqa: E731
    "gzip": (lambda rng, raw: gzip.compress(raw), READ, f"{suffix}.gz"),
    "gzip cut short": (lambda rng, raw: cut(rng, gzip.compress(raw)), REFUSE, f"{suffix}.gz"),
    "no gzip": (lambda rng, raw: raw, REFUSE, f"{suffix}.gz"),
    "gzip without the suffix": (lambda rng, raw: gzip.compress(raw), REFUSE, ""),
}
WINDOWS = "line ends of Windows"
CRLF: dict[str, Way] = {WINDOWS: (lambda rng, raw: raw, READ, "")}  # `write` writes them
CSVS = TEXTS | {
    "blank lines": (insert(b"\n", b"\r\n"), EITHER, ""),
    "a short row": (insert(b"r99,lonely\n"), REFUSE, ""),
    "a long row": (insert(b"r99,one,two,three,four\n"), REFUSE, ""),
    "an open quote": (insert(b'r99,"never closed,x\n'), REFUSE, ""),
    "a closed open quote": (lambda rng, raw: raw + b'r98,"tis,a\nr99,and 5",b\n', REFUSE, ""),
    "a header alone": (in_lines(lambda rng, lines: lines[:1]), REFUSE, ""),
    "a column twice": (lambda rng, raw: raw.replace(b"id,text", b"text,text", 1), REFUSE, ""),
    "no label column": (lambda rng, raw: raw.replace(b"label", b"queue", 1), REFUSE, ""),
    "blanks in the header": (lambda rng, raw: raw.replace(b"id,text,label", b"id, text, label", 1), EITHER, ""),
    "tabs in a csv": (lambda rng, raw: raw, READ, ""),
    "semicolons in a csv": (lambda rng, raw: raw, READ, ""),
    "columns without a name": (lambda rng, raw: raw.replace(b"id,text", b",text", 1), READ, ""),
}
TSVS = TEXTS | {
    "a short row": (insert(b"r99\tlonely\n"), REFUSE, ""),
    "a long row": (insert(b"r99\tone\ttwo\tthree\n"), REFUSE, ""),
    "commas in a tsv": (lambda rng, raw: raw.replace(b"\t", b","), REFUSE, ""),
    "a column twice": (lambda rng, raw: raw.replace(b"id\t", b"text\t", 1), REFUSE, ""),
}
JSONL = TEXTS | {
    "blank lines": (insert(b"\n", b" \r\n"), READ, ""),
    "no JSON": (insert(b"{'text': 1}\n", b'{"text": "a", }\n', b'{"a": 01}\n', b"text\n"), REFUSE, ""),
    "no object": (insert(b"1\n", b'"text"\n', b"null\n", b'["a"]\n'), REFUSE, ""),
    "a key twice": (insert(b'{"text": "a", "label": "x", "text": "b"}\n'), REFUSE, ""),
    "very deep": (insert(b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"), REFUSE, ""),
    "very many digits": (insert(b'{"text": "a", "label": ' + b"9" * 5000 + b"}\n"), REFUSE, ""),
    "cut in a row": (lambda rng, raw: raw[: -rng.randint(2, 20)], REFUSE, ""),
}
JSONS = TEXTS | {
    "an object of rows": (lambda rng, raw: b'{"data": ' + raw + b"}", REFUSE, ""),
    "columns": (lambda rng, raw: json.dumps(as_columns(json.loads(raw))).encode(), REFUSE, ""),
    "a comma at the end": (lambda rng, raw: raw[:-2] + b",]", REFUSE, ""),
    "cut short": (cut, REFUSE, ""),
    "an object after the other": (lambda rng, raw: raw[1:-1].replace(b"},\n {", b"}\n{"), READ, ""),
    "an empty list": (lambda rng, raw: b"[]", REFUSE, ""),
}
PARQUETS = WHOLE | {
    "named .parquet": (lambda rng, raw: raw, READ, ""),
    "named .csv": (lambda rng, raw: raw, REFUSE, ".csv"),
    "cut short": (cut, REFUSE, ""),
    "no rows": (again(lambda table: table.slice(0, 0)), REFUSE, ""),
    "categories": (column("label", lambda values: values.dictionary_encode()), READ, ""),
    "large texts": (column("text", lambda values: values.cast(pyarrow.large_string())), READ, ""),
    "texts as views": (column("text", lambda values: values.cast(pyarrow.string_view())), READ, ""),
    "bytes": (column("text", to_bytes), REFUSE, ""),
    "lists": (column("label", lambda values: pyarrow.array([[value] for value in values.to_pylist()])), REFUSE, ""),
    "a column twice": (again(lambda table: table.append_column("text", table.column("id"))), REFUSE, ""),
    "no label column": (again(lambda table: table.drop_columns(["label"])), REFUSE, ""),
    "moments": (column("text", lambda values: pyarrow.array(range(len(values)), pyarrow.timestamp("s"))), REFUSE, ""),
    "short numbers": (column("label", shorter), READ, ""),
    "all null": (column("label", lambda values: pyarrow.nulls(len(values))), REFUSE, ""),
}
WAYS: dict[str, dict[str, Way]] = {
    ".csv": CSVS | CRLF | GZ(".csv"),
    ".tsv": TSVS | CRLF | GZ(".tsv"),
    ".jsonl": JSONL | CRLF | GZ(".jsonl"),
    ".json": JSONS | CRLF | GZ(".json"),
    ".parquet": PARQUETS,
    ".txt": TEXTS | CRLF | GZ(".txt"),
}


# what rows mean to a reader where a way says something else: a column has no name, blanks after commas are not meant
MEANT: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "columns without a name": lambda row: {name: value for name, value in row.items() if name != "id"},
    "blanks in the header": lambda row: {name: str(value).lstrip(" ") for name, value in row.items()},
}


def as_columns(rows: Rows) -> dict[str, list[Any]]:
    """Return rows in the orientation of columns."""
    return {name: [row.get(name) for row in rows] for name in rows[0]}
