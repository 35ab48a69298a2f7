"""What a tokenizer makes of texts: nothing, where it knows no character, and unknown tokens where it knows no word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from prunekit.config.errors import quoted
from prunekit.data import spill
from prunekit.data.errors import DataError
from prunekit.data.faults import Faults
from prunekit.data.rows import Rows, TaskRows
from prunekit.data.spec import TaskSpec

# a letter or digit is a token in every vocabulary, if an unknown one; these letters are blanks
LETTER = re.compile(r"[^\W_]")
BLANK_LETTERS = re.compile("[\u115f\u1160\u3164\uffa0]")
COUNTED = 5_000  # rows that the share of unknown tokens is counted over


def is_tokenless(text: str, tokenizer: Any) -> bool:
    """Return whether a text has no token besides the special ones, as zero-width and control characters have none."""
    if (letter := LETTER.search(text)) and (letter[0].isascii() or LETTER.search(BLANK_LETTERS.sub("", text))):
        return False
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    # a mark for the beginning of a word, which decodes to nothing, is no token of its own
    return not ids or not tokenizer.decode(ids).strip()


def without_tokenless(spec: TaskSpec, task: TaskRows, tokenizer: Any) -> TaskRows:
    """Return the rows without those of which the tokenizer leaves nothing, as task.empty says.

    Raises:
        DataError: there are some, and the task refuses them, or nothing else.
    """
    if spec.empty == "keep":
        return task
    splits = {name: _without_tokenless(spec, name, rows, tokenizer) for name, rows in task.splits.items()}
    count = sum(len(rows) - len(splits[name]) for name, rows in task.splits.items())
    dropped = {**task.dropped, "empty": task.dropped.get("empty", 0) + count} if count else task.dropped
    return replace(task, splits=splits, dropped=dropped)


def _without_tokenless(spec: TaskSpec, name: str, rows: Rows[Any], tokenizer: Any) -> Rows[Any]:
    columns = {spec.text: rows.texts}
    if rows.pairs is not None:
        columns[str(spec.text_pair)] = rows.pairs
    if spec.label in spec.kind.text_columns(spec):
        columns[spec.label] = rows.labels
    lost, faults = spill.empty(len(rows), np.bool_), Faults()
    for column, texts in columns.items():
        for row, text in enumerate(texts):
            if is_tokenless(str(text), tokenizer) and not lost[row]:
                lost[row] = True
                faults.add(rows.at(row), f": column {quoted(column)} holds {quoted(text)}")
    if not faults:
        return rows
    if spec.empty == "error" or faults.count == len(rows):
        raise DataError(
            f"{faults}, of which this vocabulary leaves no token; that is {faults.count} of {len(rows)} texts of "
            f"{name}.\nAllowed: texts with a token besides the special ones, or task.empty=drop.\n"
            "Give them a text, or set task.empty=drop (leave such rows out) or task.empty=keep."
        )
    return rows.take(spill.places_of(lost == 0))


def unknown_share(rows: Iterable[Sequence[int]], tokenizer: Any) -> float:
    """Return the share of unknown tokens among those of some rows' token ids, special tokens aside."""
    unknown = tokenizer.unk_token_id
    special = set(tokenizer.all_special_ids) - {unknown}
    others = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    if unknown is None or unknown in others:  # vocabularies of bytes know everything
        return 0.0
    counted = [token for row in rows for token in row if token not in special]
    return counted.count(unknown) / max(1, len(counted))


# -- what is said about rows -------------------------------------------------------------------------

TOO_MANY_UNKNOWN = 0.05
REASONS = {"duplicates": "double"}


def left_out(dropped: Mapping[str, int]) -> str:
    """Return how many rows are in no split, by reason."""
    parts = [f"{count} {REASONS.get(reason, reason)}" for reason, count in dropped.items() if count]
    return f"{', '.join(parts) or 'no'} rows left out"


def remarks(noticed: Mapping[str, int], unknown: float) -> list[str]:
    """Return what may mislead about the rows that are used, and what to do about it, as a sentence each."""
    lines = []
    for reason, count in noticed.items():
        if reason == "contradicting":
            lines.append(
                f"{count} rows have the same text as others and another label, and all of them are used; "
                "task.contradicting=drop leaves them out"
            )
        else:
            split = reason.removesuffix(" in train")
            lines.append(
                f"{count} rows of {split} are also trained on, which flatters its scores; remove them from a file"
            )
    if unknown > TOO_MANY_UNKNOWN:
        lines.append(
            f"{100 * unknown:.1f} % of the tokens are unknown to this vocabulary, so texts look alike to the model; "
            "choose a backbone for their language, as backbone=xlm_roberta_base"
        )
    return lines
