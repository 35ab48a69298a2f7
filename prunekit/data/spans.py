"""Read answers that are a part of a text, in any of SQuAD's layouts, and check them against that text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunekit.config.errors import quoted
from prunekit.data.cells import is_unlabelled, text_fault
from prunekit.data.columns import Cells, Mapped, take
from prunekit.data.errors import DataError
from prunekit.data.faults import Faults
from prunekit.data.json_rows import parse_json
from prunekit.data.keys import TaskKeys
from prunekit.data.splitting import content_hashes, first_repeat
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


def read_answers(keys: TaskKeys, table: Table, kept: Sequence[int]) -> Sequence[Answer]:
    """Read the answers of these rows of a table.

    Raises:
        DataError: an answer is not at its stated place, a required answer is missing, or an id occurs twice.
    """
    contexts, raw = table.column(str(keys.text_pair)), table.column(keys.label)
    if keys.id is not None and keys.id in table.columns:
        _check_ids(keys.id, table)
    wrong, none, blank, misplaced = Faults(), Faults(), Faults(), Faults()
    advice = ""
    for row, context, value in zip(kept, take(contexts, kept), take(raw, kept), strict=True):
        answer, place = _answer(value), table.place(row)
        if answer is None:
            wrong.add(place, f": {quoted(value)} is not an answer")
        elif not answer.texts:
            none.add(place, f": column {quoted(keys.label)} holds no answer")
        elif not all(map(str.strip, answer.texts)):
            blank.add(place, ": an answer is empty")
        elif (at := _misplaced(answer, context)) is not None:
            misplaced.add(place, _as_misplaced(*at, context))
            advice = advice or _whereabouts(at[0], context)
    if wrong:
        raise DataError(
            f"{table.prefix}{wrong}; allowed are {{text: [...], answer_start: [...]}}, a list of {{text, "
            "answer_start}, or empty. Name the column of answers with task.label=..."
        )
    if none and not keys.unanswerable:
        raise DataError(
            f"{table.prefix}{none}, and task.unanswerable=false.\n"
            "Give one, leave the row out, or set task.unanswerable=true (task=squad2 does)."
        )
    if blank:
        raise DataError(f"{table.prefix}{blank}; give its text, or no answer at all.")
    if misplaced:
        raise DataError(
            f"{table.prefix}{misplaced}.\n{advice}; positions are characters, counted from 0. "
            "Correct answer_start or text."
        )
    return Mapped(take(raw, kept), _answer)


def _check_ids(name: str, table: Table) -> None:
    ids = table.column(name)
    for row, value in enumerate(ids):
        fault = "" if isinstance(value, bool | int | float) else text_fault(value)
        if fault:
            raise DataError(
                f"{table.at(row)}: column {quoted(name)} holds {fault}.\n"
                "Allowed: ids that are text or numbers.\nCorrect it, or set task.id=null if these are not ids."
            )
    if (twice := first_repeat(content_hashes(Mapped(Cells([range(len(ids)), ids]), _key)))) is not None:
        first, row = twice
        raise DataError(
            f"{table.at(row)}: {name} {quoted(ids[row])} is also that of row {first + 1}; ids must be unique. "
            f"Correct it, or set task.id=null if these are not ids."
        )


def _key(cells: tuple[int, Any]) -> tuple[str, ...]:
    """Return what differs in rows that are called differently; those without id are."""
    row, value = cells
    return ("", str(row)) if value is None else (str(value),)


def _answer(value: Any) -> Answer | None:
    """Read an answer in the hub's layout, {text: [...], answer_start: [...]}, or in SQuAD's, [{text, answer_start}].

    Return None for what is no answer.
    """
    if is_unlabelled(value):
        return Answer()
    try:
        if isinstance(value, str):  # from a CSV
            value = parse_json(value)
        if isinstance(value, Mapping):
            texts, starts = value["text"], value["answer_start"]
        elif isinstance(value, list) and not value:
            return Answer()
        else:
            texts, starts = zip(*((one["text"], one["answer_start"]) for one in value), strict=True)
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    are_lists = isinstance(texts, list | tuple) and isinstance(starts, list | tuple) and len(texts) == len(starts)
    have_texts = are_lists and all(isinstance(text, str) for text in texts)
    if not (have_texts and all(isinstance(start, int) and not isinstance(start, bool) for start in starts)):
        return None
    return Answer(tuple(texts), tuple(starts))


def _misplaced(answer: Answer, context: str) -> tuple[str, int] | None:
    """Return the first text of an answer that is not at its place in the context, and that place."""
    for text, start in zip(answer.texts, answer.starts, strict=True):
        if start < 0 or context[start : start + len(text)] != text:
            return text, start
    return None


def _as_misplaced(text: str, start: int, context: str) -> str:
    there = context[max(start, 0) : max(start, 0) + len(text)]
    return (
        f": the answer {quoted(text[:SHOWN])} is not at answer_start={start} of the context, where "
        f"{quoted(there[:SHOWN])} is"
    )


def _whereabouts(text: str, context: str) -> str:
    place = context.find(text)
    return f"It starts at {place}" if place >= 0 else "It does not occur in the context"
