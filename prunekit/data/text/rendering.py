"""Rows of a file of texts, and the Jinja templates that make documents, prompts and references of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, Undefined
from jinja2.sandbox import SandboxedEnvironment

from prunekit.config.errors import first_line, listed, quoted
from prunekit.data.cells import has_half_character, is_missing
from prunekit.data.decoding import decode_file
from prunekit.data.errors import DataError
from prunekit.data.faults import Faults
from prunekit.data.tables import read_table

BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
Row = Mapping[str, Any]


def render(path: Path, key: str, *templates: str | None) -> list[tuple[Row, tuple[str, ...]]]:
    """Return every row of a file with the texts that templates make of it; a template that is None makes "".

    `key` is the block of keys that the templates are in, for messages. A row's columns are variables, and so is `row`,
    for columns whose names are none: {{ row["Question Text"] }}.

    Raises:
        DataError: a template is none, or cannot be filled with some rows; the message counts these.
    """
    table = read_rows(path)
    columns = list(table[0]) if table else []
    made = [_template(text or "", key, columns) for text in templates]
    rows, faults = [], Faults()
    for number, row in enumerate(table, 1):
        values = {name: "" if is_missing(value) else value for name, value in row.items()}
        try:
            # as one mapping, because a column may be called self
            texts = tuple(str(template.render({"row": values} | values)) for template in made)
        except Exception as error:  # whatever a template does wrong
            faults.add(f"row {number}", f": the template of {key} cannot be filled ({first_line(error)})")
            continue
        if half := next((text for text in texts if has_half_character(text)), None):
            faults.add(f"row {number}", f": {key} holds half a character, in {quoted(half)}, which is no Unicode")
        rows.append((row, texts))
    if faults:
        raise DataError(
            f"{path}, {faults}.\nAllowed: the columns {listed(columns)}.\nIn a shell: {_example(key, columns)}"
        )
    return rows


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file of texts; of a .txt its documents, between blank lines, or else its lines."""
    if path.name.lower().endswith((".txt", ".txt.gz")):
        text = decode_file(path, western=False)
        parts = BLANK_LINES.split(text) if BLANK_LINES.search(text.strip()) else text.split("\n")
        return [{"text": part.strip("\n")} for part in parts]
    table = read_table(path)
    names = list(table.columns)
    rows = [dict(zip(names, values, strict=True)) for values in zip(*table.columns.values(), strict=True)]
    if len(rows) == 1 and isinstance(articles := rows[0].get("data"), list):  # SQuAD's layout, as of CUAD
        return [
            {"title": article.get("title"), "text": paragraph["context"]}
            for article in articles
            for paragraph in article["paragraphs"]
        ]
    return [_with_short_names(row) for row in rows]


def _with_short_names(row: Row) -> Row:
    """Return a row whose columns also have their names in lower case, and whose records' parts have their own.

    Copies of a dataset differ in these: `question` is Question in one, and `contexts` is context.contexts in another.
    """
    parts = {name: value for record in row.values() if isinstance(record, Mapping) for name, value in record.items()}
    return {**row, **{name: value for name, value in (parts | _in_lower_case(row)).items() if name not in row}}


def _in_lower_case(row: Row) -> dict[str, Any]:
    return {name.lower(): value for name, value in row.items()}


def _template(text: str, key: str, columns: Sequence[str]) -> Template:
    environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_printed)
    try:
        return environment.from_string(text)
    except (TemplateError, RecursionError, ValueError) as error:
        raise DataError(
            f"{key}.template={quoted(text)} is not a Jinja template ({first_line(error)}).\n"
            f'Allowed: text with {{{{ column }}}}, or {{{{ row["a column"] }}}}; columns: {listed(columns)}.\n'
            f"In a shell: {_example(key, columns)}"
        ) from error


def _printed(value: Any) -> Any:
    """Return a value of a template as it is printed.

    Raises:
        TypeError: it is no text.
    """
    if isinstance(value, Undefined):
        return value
    if isinstance(value, bytes | bytearray):
        raise TypeError(f"it prints bytes, {quoted(bytes(value))}, which are not text")
    return "" if is_missing(value) else value


def _example(key: str, columns: Sequence[str]) -> str:
    name = next((name for name in columns if name == "text"), next(iter(columns), "text"))
    expression = name if name.isidentifier() else f'row["{name}"]'
    return shlex.quote(f"{key}.template={{{{ {expression} }}}}")


def is_text(text: str) -> bool:
    """Return whether a text has a character that can be seen: blanks, control and format characters cannot."""
    return any(not mark.isspace() and mark.isprintable() for mark in text)
