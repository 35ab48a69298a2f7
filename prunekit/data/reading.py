"""Read a task's rows and check them: texts and labels per split. What is wrong with the data is reported by row."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from prunekit.config.errors import listed, quoted
from prunekit.data import spill
from prunekit.data.cells import UNTYPED, is_missing, is_unlabelled, label_fault, spelling
from prunekit.data.columns import Mapped, Numbers, take
from prunekit.data.errors import DataError
from prunekit.data.faults import Faults
from prunekit.data.rows import Rows, TaskRows
from prunekit.data.sources import TaskSource
from prunekit.data.spec import TaskSpec
from prunekit.data.splits import WITHOUT, read_splits
from prunekit.data.splitting import contradictions, shared
from prunekit.data.tables import Table


def read_task(spec: TaskSpec, source: TaskSource, cache: Path | None = None) -> TaskRows:
    """Read and check every split; make a missing one by content hash from the training rows.

    Rows of large files are kept in the folder `cache`, by default the user's cache folder.

    Raises:
        DataError: the first thing that is wrong, with file and row.
    """
    if source.kind == "synthetic":
        return _generate(spec)
    tables = {split: spec.kind.flatten(spec, table) for split, table in read_splits(spec, source, cache).items()}
    for split, table in tables.items():
        _check_columns(spec, split, table)
    kept = {split: usable_rows(spec, table) for split, table in tables.items()}
    dropped = _total(found.dropped for found in kept.values())
    names = spec.kind.label_names(spec, tables["train"])
    splits: dict[str, Rows[Any]] = {
        split: replace(spec.kind.rows(spec, table, kept[split].rows, names), places=Mapped(kept[split].rows, table.at))
        for split, table in tables.items()
    }
    fractions = _fractions(spec, tables)
    if spec.group is not None:
        groups = read_groups(spec.group, tables["train"], kept["train"].rows, fractions)
        splits["train"] = replace(splits["train"], groups=groups)
    splits, contradicting = _settle_contradictions(spec, splits, {name: table.path for name, table in tables.items()})
    if fractions:
        made, duplicates = _split(spec, splits["train"], fractions, tables["train"].path)
        splits = made | {name: rows for name, rows in splits.items() if name != "train"}
        if duplicates:
            dropped["duplicates"] = duplicates
    noticed = _leaks(splits) if len(tables) > 1 else {}
    if contradicting:
        kind = dropped if spec.contradicting == "drop" else noticed
        kind["contradicting"] = contradicting
    order = ["train", "validation", *(name for name in splits if name not in ("train", "validation", "test")), "test"]
    return TaskRows({name: splits[name] for name in order if name in splits}, names, dropped, noticed)


def _fractions(spec: TaskSpec, tables: Mapping[str, Table]) -> dict[str, float]:
    """Return the shares of the splits that are taken from the training rows, because no table has them."""
    fractions = {}
    if "test" not in tables and spec.test_fraction > 0:
        fractions["test"] = spec.test_fraction
    if "validation" not in tables:
        fractions["validation"] = spec.validation_fraction
    return fractions


def read_groups(column: str, table: Table, rows: Sequence[int], fractions: Mapping[str, float]) -> Sequence[str]:
    """Return which group each of these rows is of, by the spelling of its value.

    Raises:
        DataError: there is no such column, a row has no value in it, all have the same, or no split is taken from them.
    """
    if not fractions:
        raise DataError(
            f"task.group={column}, but validation and test are splits of their own: no rows are divided.\n"
            "Allowed: a column where a split is taken from the training rows.\nLeave task.group out."
        )
    try:
        cells = table.column(column)
    except DataError as error:
        near = get_close_matches(column, table.columns, 1)
        raise DataError(
            f"{str(error).splitlines()[0]}\nAllowed: a column whose rows with the same value stay together, or null.\n"
            f"{f'Did you mean task.group={near[0]}?' if near else 'Name one of these: task.group=...'}"
        ) from error
    faults, values = Faults(), take(cells, rows)
    first, several = "", False
    for row, value in zip(rows, values, strict=True):
        if is_unlabelled(value) or (group := spelling(value)).lower() in UNTYPED:
            faults.add(table.place(row), f": column {quoted(column)} holds no group")
        elif fault := label_fault(value).partition(",")[0]:
            faults.add(table.place(row), f": column {quoted(column)} holds {fault}")
        else:
            first, several = first or group, several or group != (first or group)
    if faults:
        raise DataError(
            f"{table.prefix}{faults}.\nAllowed with task.group={column}: a text or a number in every row.\n"
            "Fill these in, or leave task.group out: then rows are divided one by one."
        )
    if not several:
        raise DataError(
            f"{table.path}: all {len(rows)} rows have {quoted(first)} in column {quoted(column)}, "
            "so no split can be taken from them.\nAllowed with task.group: a column with 2 values or more.\n"
            "Name another column, or leave task.group out."
        )
    return Mapped(values, spelling)


@dataclass(frozen=True)
class UsableRows:
    """The rows of a table that have texts and a label, and how many have not, by reason."""

    rows: Sequence[int]
    dropped: Mapping[str, int]


def _check_columns(spec: TaskSpec, split: str, table: Table) -> None:
    for column in spec.columns:
        try:
            table.column(column)
        except DataError as error:
            if column in spec.kind.text_columns(spec):
                raise
            if split == "train":
                raise DataError(_of_label(spec, table, column, str(error).splitlines())) from error
            raise DataError(
                f"{str(error).splitlines()[0]}\nThe {split} split is scored, which needs labels.\n"
                f"{WITHOUT.get(split, WITHOUT['validation'])}, or give a file with labels."
            ) from error


def _of_label(spec: TaskSpec, table: Table, column: str, lines: Sequence[str]) -> str:
    """Return a message on a column that is not there, whose last line names the text's, for that of the label."""
    others = [name for name in table.columns if name not in spec.kind.text_columns(spec)]
    near = [*get_close_matches(column, others, 1), *others]
    *head, last = lines
    if " field " not in last and near and not spec.label_columns:
        last = f"In a shell: {shlex.quote(f'task.label={near[0]}')}"
    return "\n".join([*head, last.replace("task.text=", "task.label=")])


def usable_rows(spec: TaskSpec, table: Table) -> UsableRows:
    """Return the rows of a table that can be used.

    Raises:
        DataError: a cell holds something else than it should, or nothing where the task does not allow that; the
            message counts the rows with this fault.
    """
    texts = {name: table.column(name) for name in spec.kind.text_columns(spec)}
    labels = spec.kind.label_cells(spec, table)
    wrong, empty, unlabelled, mislabelled = Faults(), Faults(), Faults(), Faults()

    def complaint_of(label: Any) -> str | None:
        return spec.kind.label_complaint(spec, label) if spec.kind.has_label(label) else None

    known_complaint = lru_cache(complaint_of)  # of texts, of which most columns have a few

    def usable() -> Iterator[int]:
        for row, (label, *cells) in enumerate(zip(labels, *texts.values(), strict=True)):
            blank = ""
            for name, cell in zip(texts, cells, strict=True):
                if isinstance(cell, str) or not is_missing(cell):
                    if told := spec.kind.text_fault(cell):
                        wrong.add(table.place(row), f": column {quoted(name)} holds {told}")
                    elif not spec.kind.is_blank(cell):
                        continue
                blank = blank or name
            if blank and spec.empty != "keep":
                empty.add(table.place(row), f": the text in column {quoted(blank)} is empty")
            elif (complaint := (known_complaint if isinstance(label, str) else complaint_of)(label)) is None:
                if spec.unlabelled == "none":
                    yield row
                else:
                    unlabelled.add(table.place(row), f": column {quoted(spec.label)} holds no label")
            elif complaint:
                mislabelled.add(table.place(row), f": {complaint}")
            else:
                yield row

    found = spill.filled(usable(), np.int64, len(table))
    _refuse(spec, table, wrong, empty, unlabelled, mislabelled)
    if not len(found):
        raise DataError(
            f"{table.path} has no rows left: {len(table)} read, {empty.count} without text"
            f"{f', {unlabelled.count} without label' if unlabelled else ''}. Give texts."
        )
    counts = {"empty": empty.count, "unlabelled": unlabelled.count}
    rows = range(len(table)) if len(found) == len(table) else Numbers(found)
    return UsableRows(rows, {reason: count for reason, count in counts.items() if count})


def _refuse(
    spec: TaskSpec, table: Table, wrong: Faults, empty: Faults, unlabelled: Faults, mislabelled: Faults
) -> None:
    if wrong:
        raise DataError(
            f"{table.prefix}{wrong}; name the text's column with task.text=... (columns: {listed(table.columns)}).\n"
            f"Allowed: {spec.kind.allowed_text}\n{spec.kind.correct_text}"
        )
    if empty and spec.empty == "error":
        raise DataError(
            f"{table.prefix}{empty}.\n"
            "Allowed: texts that are not blank, or task.empty=drop (leave such rows out) or task.empty=keep.\n"
            "Give it a text, or set one of these."
        )
    if unlabelled and spec.unlabelled == "error":
        raise DataError(
            f"{table.prefix}{unlabelled}.\nAllowed: a label in every row.\n"
            f"Give it a label, or set task.unlabelled=drop (leave such rows out)"
            f"{' or none (such texts have none of the labels)' if spec.kind.may_lack_labels else ''}."
        )
    if mislabelled:
        raise DataError(f"{table.prefix}{mislabelled}.\nAllowed: {spec.kind.allowed_label}\n{spec.kind.correct_label}")


def _settle_contradictions(
    spec: TaskSpec, splits: Mapping[str, Rows[Any]], paths: Mapping[str, str]
) -> tuple[dict[str, Rows[Any]], int]:
    """Return the splits, without rows that contradict each other where the task says so, and how many there are."""
    settled: dict[str, Rows[Any]] = {}
    total = 0
    for name, rows in splits.items():
        decisions = spec.kind.decisions(rows)
        settled[name] = rows
        if decisions is None:
            continue
        found = contradictions(rows.content_hashes, decisions)
        count = int(np.count_nonzero(found))
        total += count
        if count and spec.contradicting == "error":
            text = rows.texts[int(found.argmax())]
            raise DataError(
                f"{paths[name]}: {count} rows have the same text as others and another label, as {quoted(text)}.\n"
                "Allowed with task.contradicting=error: one label per text.\n"
                "Correct them, or set task.contradicting=keep (train on all) or drop (leave all of them out)."
            )
        if count and spec.contradicting == "drop":
            if found.all():
                raise DataError(
                    f"{paths[name]} has no rows left: all {count} have the same text as others and another label.\n"
                    "Allowed with task.contradicting=drop: at least one text with one label.\n"
                    "Correct the labels, or set task.contradicting=keep."
                )
            settled[name] = rows.take(spill.places_of(found == 0))
    return settled, total


def _leaks(splits: Mapping[str, Rows[Any]]) -> dict[str, int]:
    """Return, for every other split, how many of its rows have texts that are trained on."""
    trained = splits["train"].content_hashes
    counts = {
        f"{name} in train": shared(rows.content_hashes, trained) for name, rows in splits.items() if name != "train"
    }
    return {name: count for name, count in counts.items() if count}


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for some in counts:
        total.update(some)
    return dict(total)


def _split(
    spec: TaskSpec, rows: Rows[Any], fractions: Mapping[str, float], path: str
) -> tuple[dict[str, Rows[Any]], int]:
    """Return the training rows without duplicates, divided by content hash, and the number of duplicates."""
    divide = spec.kind.divide if rows.groups is None else spec.kind.divide_by_group
    parts = divide(rows, fractions)
    for name, part in parts.items():
        if not len(part) and rows.groups is not None:
            raise DataError(
                f"{path}: {len(set(rows.groups))} groups of column {quoted(str(spec.group))} are too few to take "
                f"{name} from them; those that share a text count as one.\nAllowed: {len(parts)} groups or more.\n"
                "Give more rows, or task.validation_file=... and task.test_file=..."
            )
        if not len(part):
            raise DataError(
                f"{path}: {len(set(rows.contents))} different rows are too few to take {name} from them; "
                f"give more rows, or task.validation_file=... and task.test_file=..."
            )
    return {name: rows.take(part) for name, part in parts.items()}, len(rows) - sum(map(len, parts.values()))


def _generate(spec: TaskSpec) -> TaskRows:
    """Make up rows of the spec's shape: its splits, its classes or values, one text or two; the same for every seed.

    Training gets `synthetic_rows` rows, every other split half as many.
    """
    rows = spec.synthetic_rows or 256
    names = spec.kind.synthetic_names(spec)
    splits = ["train", "validation", *spec.validation_splits[1:]]
    if spec.test_split or spec.test_fraction:
        splits.append("test")
    made = {}
    for split in splits:
        count = rows if split == "train" else max(rows // 2, 1)
        made[split] = spec.kind.generate(spec, Random(f"{split} {spec.kind.name} {names}"), count, names)
    return TaskRows(made, names)
