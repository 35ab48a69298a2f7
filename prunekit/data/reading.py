"""Read a task's rows and check them: texts and labels per split. What is wrong with the data is reported by row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from prunekit.data.errors import DataError
from prunekit.data.rows import Rows, TaskRows
from prunekit.data.sources import TaskSource, hub_folder
from prunekit.data.spec import TaskSpec
from prunekit.data.tables import Table, read_class_folders, read_split, read_table

# what to do about a split that is asked for and has no file
WITHOUT = {
    "train": "Set task.train_split=<name of the file>",
    "validation": "Set task.validation_splits=[] to take it from the training rows",
    "test": "Set task.test_split=null to do without it, or to take it from the training rows",
}


def read_task(spec: TaskSpec, source: TaskSource) -> TaskRows:
    """Read and check every split; make a missing one by content hash from the training rows.

    Raises:
        DataError: the first thing that is wrong, with file and row.
    """
    if source.kind == "synthetic":
        return _generate(spec)
    tables = {split: spec.kind.flatten(spec, table) for split, table in _tables(spec, source).items()}
    for table in tables.values():
        for column in spec.columns:
            table.column(column)
    names = spec.kind.label_names(spec, tables["train"])
    dropped: dict[str, int] = {}
    splits: dict[str, Rows[Any]] = {}
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


def _tables(spec: TaskSpec, source: TaskSource) -> dict[str, Table]:
    """Read the table of every split that exists as a file, by our names."""
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


def _checked(spec: TaskSpec, table: Table, names: tuple[str, ...] | None) -> tuple[Rows[Any], int]:
    """Return the rows of a table, and how many were left out because a text is empty."""
    columns = {name: table.column(name) for name in spec.kind.text_columns(spec)}
    kept: list[int] = []
    for row in range(len(table)):
        empty = [name for name, texts in columns.items() if not _has_text(table, row, name, texts[row])]
        if not empty or spec.empty == "keep":
            kept.append(row)
        elif spec.empty == "error":
            raise DataError(
                f"{table.at(row)}: the text in column {empty[0]!r} is empty.\n"
                f"Give it a text, or set task.empty=drop (leave such rows out) or task.empty=keep."
            )
    if not kept:
        raise DataError(f"{table.path} has no rows left: {len(table)} read, {len(table)} without text. Give texts.")
    return spec.kind.rows(spec, table, kept, names), len(table) - len(kept)


def _has_text(table: Table, row: int, column: str, value: Any) -> bool:
    if value is not None and not isinstance(value, str):
        raise DataError(
            f"{table.at(row)}: column {column!r} holds {value!r}, which is not text; name the text's column with "
            f"task.text=... (columns: {', '.join(table.columns)})."
        )
    return bool(value and value.strip())


def _split(
    spec: TaskSpec, rows: Rows[Any], fractions: Mapping[str, float], path: str
) -> tuple[dict[str, Rows[Any]], int]:
    """Return the training rows without duplicates, divided by content hash, and the number of duplicates."""
    parts = spec.kind.divide(rows, fractions)
    for name, part in parts.items():
        if not part:
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
