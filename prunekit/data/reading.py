"""A task's rows, checked: texts and numeric labels per split. What is wrong with the data is said here, by row."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunekit.data.rows import Rows, TaskRows
from prunekit.data.sources import TaskSource, hub_folder
from prunekit.data.spans import flattened, read_answers
from prunekit.data.spec import DataError, TaskSpec
from prunekit.data.splitting import hash_split
from prunekit.data.tables import Table, read_class_folders, read_split, read_table

# what to do about a split that is asked for and has no file
WITHOUT = {
    "train": "Set task.train_split=<name of the file>",
    "validation": "Set task.validation_splits=[] to take it from the training rows",
    "test": "Set task.test_split=null to do without it, or to take it from the training rows",
}


def read_task(spec: TaskSpec, source: TaskSource) -> TaskRows:
    """Reads and checks every split; makes a missing one by content hash from the training rows.

    Raises:
        DataError: the first thing that is wrong, with file and row.
    """
    if source.kind == "synthetic":
        from prunekit.data.synthetic import synthetic_task

        return synthetic_task(spec)
    tables = _tables(spec, source)
    if spec.kind == "span":
        tables = {split: flattened(spec, table) for split, table in tables.items()}
    for table in tables.values():
        for column in spec.columns:
            table.column(column)
    names = label_names(spec, tables["train"])
    dropped: dict[str, int] = {}
    splits: dict[str, Rows] = {}
    for split, table in tables.items():
        splits[split], empty = _checked(spec, table, names)
        if empty:
            dropped["empty"] = dropped.get("empty", 0) + empty
    fractions = {}
    if "test" not in splits and spec.test_fraction > 0:
        fractions["test"] = spec.test_fraction
    if "validation" not in splits:
        fractions["validation"] = spec.validation_fraction
    if fractions:
        made, duplicates = _split(spec, splits["train"], fractions, tables["train"].path)
        splits = made | {name: rows for name, rows in splits.items() if name != "train"}
        if duplicates:
            dropped["duplicates"] = duplicates
    order = ["train", "validation", *(name for name in splits if name not in ("train", "validation", "test")), "test"]
    return TaskRows({name: splits[name] for name in order if name in splits}, names, dropped)


def label_names(spec: TaskSpec, train: Table) -> tuple[str, ...] | None:
    """The classes in the order of their numbers: the spec's, or the different labels of the training table, sorted.

    Labels that are all whole numbers are sorted as numbers. None where the task has no classes.
    """
    if spec.kind != "classification":
        return None
    if spec.labels is not None:
        return spec.labels
    found = {_name(value) for value in train.column(spec.label) if value is not None and _name(value)}
    numbers = all(re.fullmatch("-?[0-9]+", name) for name in found)
    names = tuple(sorted(found, key=int) if numbers else sorted(found))
    if len(names) < 2:
        raise DataError(
            f"{train.path}: column {spec.label!r} has {len(names)} different labels; classification needs 2 or more. "
            f"Choose another column with task.label=..."
        )
    if len(names) == len(train) > 2:
        raise DataError(
            f"{train.path}: column {spec.label!r} has {len(names)} different labels in {len(train)} rows, so no "
            f"class can be learnt. Choose another column with task.label=..., or set task.kind=regression."
        )
    if "f1" in spec.metrics and len(names) != 2:
        raise DataError(f"metric f1 is of two classes, but {train.path} has {len(names)}; use task.metrics=[macro_f1].")
    return names


def _tables(spec: TaskSpec, source: TaskSource) -> dict[str, Table]:
    """The table of every split that exists as a file, by our names."""
    if source.kind == "file":
        paths = {"train": spec.file, "validation": spec.validation_file, "test": spec.test_file}
        return {split: read_table(Path(path)) for split, path in paths.items() if path is not None}
    folder = hub_folder(spec) if source.kind == "hub" else Path(source.where)
    train = read_split(folder, spec.train_split)
    if train is None and len(by_class := read_class_folders(folder, spec.text, spec.label)):
        return {"train": by_class}
    tables: dict[str, Table | None] = {"train": train}
    for number, name in enumerate(spec.validation_splits):
        found = read_split(folder, name)
        if found is not None or number == 0:
            tables["validation" if number == 0 else name] = found
    if spec.test_split is not None:
        tables["test"] = read_split(folder, spec.test_split)
    asked = {"train": spec.train_split, "validation": "".join(spec.validation_splits[:1]), "test": spec.test_split}
    present: dict[str, Table] = {}
    for split, table in tables.items():
        if table is None:
            raise DataError(
                f"{folder} has no split {asked[split]!r}; it holds {_contents(folder)}.\n"
                f"A split is {asked[split]}-00000-of-00001.parquet, or {asked[split]}.parquet, .csv, .tsv, .jsonl.\n"
                f"{WITHOUT[split]}."
            )
        present[split] = table
    return present


def _contents(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") if names else "nothing"


def _checked(spec: TaskSpec, table: Table, names: tuple[str, ...] | None) -> tuple[Rows, int]:
    """The rows of a table, and how many were left out for want of text."""
    texts = table.column(spec.text)
    second_column = spec.label if spec.kind == "translation" else spec.text_pair
    pairs = table.column(second_column) if second_column else None
    kept: list[int] = []
    for row in range(len(table)):
        full = [_has_text(table, row, spec.text, texts[row])]
        if pairs is not None:
            full.append(_has_text(table, row, str(second_column), pairs[row]))
        if all(full) or spec.empty == "keep":
            kept.append(row)
        elif spec.empty == "error":
            column = spec.text if not full[0] else second_column
            raise DataError(
                f"{table.at(row)}: the text in column {column!r} is empty.\n"
                f"Give it a text, or set task.empty=drop (leave such rows out) or task.empty=keep."
            )
    if not kept:
        raise DataError(f"{table.path} has no rows left: {len(table)} read, {len(table)} without text. Give texts.")
    second = None if pairs is None else [pairs[row] or "" for row in kept]
    if spec.kind == "translation":
        return Rows([texts[row] or "" for row in kept], None, second or []), len(table) - len(kept)
    if spec.kind == "span":
        answers = read_answers(spec, table, kept)
        places = [table.at(row) for row in kept]
        given = table.columns.get(spec.id or "")
        ids = [str(row + 1 if given is None or given[row] is None else given[row]) for row in kept]
        return Rows([texts[row].strip() for row in kept], second, answers, places, ids), len(table) - len(kept)
    numbers = _class_numbers(spec, table, names, kept) if names is not None else _scores(spec, table, kept)
    return Rows([texts[row] or "" for row in kept], second, numbers), len(table) - len(kept)


def _has_text(table: Table, row: int, column: str, value: Any) -> bool:
    if value is not None and not isinstance(value, str):
        raise DataError(
            f"{table.at(row)}: column {column!r} holds {value!r}, which is not text; name the text's column with "
            f"task.text=... (columns: {', '.join(table.columns)})."
        )
    return bool(value and value.strip())


def _name(value: Any) -> str:
    return str(value).strip()


def _class_numbers(spec: TaskSpec, table: Table, names: tuple[str, ...], kept: Sequence[int]) -> list[int]:
    """Labels as class numbers: by name, or, in a column of whole numbers that are no names, as they are."""
    raw = table.column(spec.label)
    number = {name: place for place, name in enumerate(names)}
    if all(
        isinstance(raw[row], int) and not isinstance(raw[row], bool) and str(raw[row]) not in number for row in kept
    ):
        number = {str(place): place for place in range(len(names))}
    found = []
    for row in kept:
        place = number.get(_name(raw[row]))
        if place is None:
            shown = [f"{label} ({names[at]})" if label != names[at] else label for label, at in number.items()]
            allowed = ", ".join(shown[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            raise DataError(
                f"{table.at(row)}: label {raw[row]!r} is not in the set {allowed}; correct it or task.labels."
            )
        found.append(place)
    return found


def _scores(spec: TaskSpec, table: Table, kept: Sequence[int]) -> list[float]:
    raw = table.column(spec.label)
    found = []
    for row in kept:
        try:
            value = float(raw[row])
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise DataError(
                f"{table.at(row)}: label {raw[row]!r} is not a number, as task.kind=regression needs; correct it, "
                f"or set task.kind=classification."
            )
        found.append(value)
    return found


def _split(spec: TaskSpec, rows: Rows, fractions: Mapping[str, float], path: str) -> tuple[dict[str, Rows], int]:
    """The training rows without duplicates, divided by content hash."""
    keys = list(zip(rows.texts, rows.pairs or [""] * len(rows), strict=True))
    if spec.kind == "span":
        parts = _by_context(keys, fractions)
    else:
        classes: Any = rows.labels if spec.kind == "classification" else [0] * len(rows)
        parts = hash_split(keys, [int(c) for c in classes], fractions)
    for name, part in parts.items():
        if not part:
            raise DataError(
                f"{path}: {len(set(keys))} different rows are too few to take {name} from them; "
                f"give more rows, or task.validation_file=... and task.test_file=..."
            )
    return {name: rows.take(part) for name, part in parts.items()}, len(rows) - sum(map(len, parts.values()))


def _by_context(keys: Sequence[tuple[str, str]], fractions: Mapping[str, float]) -> dict[str, list[int]]:
    """Row numbers per part: questions about one context stay together, or a part would ask about texts trained on.

    Of rows with the same question and context the first stays.
    """
    contexts = list(dict.fromkeys(context for _, context in keys))
    first = sorted({key: row for row, key in reversed(list(enumerate(keys)))}.values())
    of_context: dict[str, list[int]] = {}
    for row in first:
        of_context.setdefault(keys[row][1], []).append(row)
    split = hash_split([(context,) for context in contexts], [0] * len(contexts), fractions)
    return {name: [row for place in part for row in of_context[contexts[place]]] for name, part in split.items()}
