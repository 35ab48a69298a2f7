"""Read answers that are a part of a text, in any of SQuAD's layouts, and check them against that text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunekit.config.errors import quoted
from prunekit.data.cells import is_unlabelled, text_fault
from prunekit.data.errors import DataError
from prunekit.data.json_rows import parse_json
from prunekit.data.keys import TaskKeys
from prunekit.data.tables import Table

SHOWN = 40  # characters of a text in a message


@dataclass(frozen=True)
class Answer:
    """All answers to a question that are right, and where each begins in the context, in characters; () = none."""

    texts: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()


def flatten_squad(keys: TaskKeys, table: Table) -> Table:
    """Return a row per question where the file has SQuAD's nested layout; otherwise the table itself."""
    if "data" not in table.columns or keys.label in table.columns:
        return table
    columns: dict[str, list[Any]] = {name: [] for name in (keys.text, str(keys.text_pair), keys.label, "id")}
    rows: list[str] = []
    try:
        for article in table.columns["data"][0]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    values = (question["question"], paragraph["context"], question["answers"], question.get("id"))
                    for column, value in zip(columns.values(), values, strict=True):
                        column.append(value)
                    rows.append(f"question {len(rows) + 1}")
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{table.path}, question {len(rows) + 1}: {type(error).__name__} {error}; this is not SQuAD's layout "
            f"data[].paragraphs[].{{context, qas[].{{question, answers, id}}}}. Write one row per question instead."
        ) from error
    return Table(columns, table.path, rows)


def read_answers(keys: TaskKeys, table: Table, kept: Sequence[int]) -> list[Answer]:
    """Read the answers of these rows of a table.

    Raises:
        DataError: an answer is not at its stated place, a required answer is missing, or an id occurs twice.
    """
    contexts, raw = table.column(str(keys.text_pair)), table.column(keys.label)
    if keys.id is not None and keys.id in table.columns:
        _check_ids(keys.id, table)
    answers = []
    for row in kept:
        answer = _answer(table, row, raw[row])
        if not answer.texts and not keys.unanswerable:
            raise DataError(
                f"{table.at(row)}: column {quoted(keys.label)} holds no answer, and task.unanswerable=false.\n"
                f"Give one, leave the row out, or set task.unanswerable=true (task=squad2 does)."
            )
        for text, start in zip(answer.texts, answer.starts, strict=True):
            _check_start(table, row, contexts[row], text, start)
        answers.append(answer)
    return answers


def _check_ids(name: str, table: Table) -> None:
    seen: dict[Any, int] = {}
    for row, value in enumerate(table.column(name)):
        fault = "" if isinstance(value, bool | int | float) else text_fault(value)
        if fault:
            raise DataError(
                f"{table.at(row)}: column {quoted(name)} holds {fault}.\n"
                "Allowed: ids that are text or numbers.\nCorrect it, or set task.id=null if these are not ids."
            )
        first = seen.setdefault(value, row) if value is not None else row
        if first != row:
            raise DataError(
                f"{table.at(row)}: {name} {quoted(value)} is also that of row {first + 1}; ids must be unique. "
                f"Correct it, or set task.id=null if these are not ids."
            )


def _answer(table: Table, row: int, value: Any) -> Answer:
    """Read an answer in the hub's layout, {text: [...], answer_start: [...]}, or in SQuAD's, [{text, answer_start}]."""
    if is_unlabelled(value):
        return Answer()
    try:
        if isinstance(value, str):  # from a CSV
            value = parse_json(value)
        if isinstance(value, Mapping):
            texts, starts = value["text"], value["answer_start"]
        else:
            texts, starts = zip(*((one["text"], one["answer_start"]) for one in value or ()), strict=True) or ((), ())
    except (ValueError, KeyError, TypeError, IndexError):
        texts, starts = (None,), (None,)
        if isinstance(value, list) and not value:
            return Answer()
    are_lists = isinstance(texts, list | tuple) and isinstance(starts, list | tuple) and len(texts) == len(starts)
    have_texts = are_lists and all(isinstance(text, str) for text in texts)
    if not (have_texts and all(isinstance(start, int) and not isinstance(start, bool) for start in starts)):
        raise DataError(
            f"{table.at(row)}: {quoted(value)} is not an answer; allowed are {{text: [...], answer_start: "
            f"[...]}}, a list of {{text, answer_start}}, or empty. Name the column of answers with task.label=..."
        )
    return Answer(tuple(texts), tuple(starts))


def _check_start(table: Table, row: int, context: str, text: str, start: int) -> None:
    if not text.strip():
        raise DataError(f"{table.at(row)}: an answer is empty; give its text, or no answer at all.")
    there = context[max(start, 0) : max(start, 0) + len(text)]
    if start < 0 or there != text:
        place = context.find(text)
        instead = f"It starts at {place}" if place >= 0 else "It does not occur in the context"
        raise DataError(
            f"{table.at(row)}: the answer {quoted(text[:SHOWN])} is not at answer_start={start} of the context, where "
            f"{quoted(there[:SHOWN])} is.\n{instead}; positions are characters, counted from 0. "
            "Correct answer_start or text."
        )
