"""Rows given from Python, kept in a file that the readers of files read: their checks and a run's name are the same.

Frames are known by what they offer, so neither pandas nor polars is needed: pandas by `iloc`, `datasets` by `features`,
polars and Arrow by `__arrow_c_stream__`. Of a table the columns that a task needs are kept, as JSON lines, which hold
texts, numbers, booleans and lists of them exactly; what is missing is null.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from prunekit.config.errors import listed, quoted
from prunekit.config.places import cache_folder, why_unwritable
from prunekit.data.cells import is_missing, scalar
from prunekit.data.delimited import check_names
from prunekit.data.errors import DataError
from prunekit.data.faults import Faults
from prunekit.data.guessing import VALIDATION
from prunekit.data.kinds.distilled import DISTILLED_CLASSIFICATION
from prunekit.data.sources import FILES
from prunekit.data.spec import TaskSpec

BLOCK = 4096  # rows that are Python objects at the same time
SHOWN = "the table given"
KINDS = "a pandas or polars frame, a datasets.Dataset, an Arrow table, a list of dicts, or a dict of lists"

Block = Sequence[Sequence[Any]]  # some rows: the values of each column


@dataclass(frozen=True)
class _Given:
    """A table: the names of its columns, a function from places of columns to blocks of rows, and names of classes."""

    names: Sequence[str]
    blocks: Callable[[Sequence[int]], Iterable[Block]]
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)


def task_of(
    data: Any,
    *,
    text: str = "text",
    label: str | Sequence[str] | None = "label",
    text_pair: str | None = None,
    cache_dir: str | Path | None = None,
    **keys: Any,
) -> dict[str, Any]:
    """Return the keys of a task whose rows are given: its columns, and the files in which they are now kept.

    Without a `label` the texts have none, and the answers of a model that is given are learned.

    `data` is one table, or a mapping from "train", "validation" and "test" to tables, as a DatasetDict is; a table is
    a pandas or polars frame, a Dataset, an Arrow table, a list of dicts, a dict of lists, or the path of a file. An
    index is no column. Equal rows are one file of the folder `given` in `cache_dir` (by default the user's cache
    folder), whatever held them, so a run of them is not repeated. `keys` are further keys of a task.

    Raises:
        DataError: this is no table, lacks a column, or holds what is neither text, number, boolean nor missing.
    """
    labels = list(label) if isinstance(label, list | tuple) else label  # columns of 0 and 1 of kind="multilabel"
    task: dict[str, Any] = {"text": text, "text_pair": text_pair, "label": labels, **keys}
    unlabelled = {"kind": DISTILLED_CLASSIFICATION.name} if label is None else {}
    spec = TaskSpec.from_config({"name": "rows", **task, **unlabelled})
    for key, table in _splits(data).items():
        if isinstance(table, str | os.PathLike):
            task[key] = str(table)
            continue
        given = _given(table)
        columns = [_place(given.names, name) for name in spec.columns]
        columns += [place for place, name in enumerate(given.names) if _is_meant(name, keys)]
        names = given.classes.get(given.names[_place(given.names, label)]) if isinstance(label, str) else None
        if names is not None and key == FILES[0]:
            task.setdefault("labels", list(names))
        folder = (Path(cache_dir) if cache_dir is not None else cache_folder()) / "given"
        task[key] = str(_keep(given, list(dict.fromkeys(columns)), folder))
    return task


def _is_meant(name: str, keys: Mapping[str, Any]) -> bool:
    """Return whether the value of a key names a column, or a field of its records, as that of the ids does."""
    lists = [value if isinstance(value, list | tuple) else [value] for value in keys.values()]
    return any(isinstance(word, str) and f"{word}.".startswith(f"{name}.") for words in lists for word in words)


def _splits(data: Any) -> dict[str, Any]:
    """Return tables by the keys of a task that name their files."""
    if not (isinstance(data, Mapping) and "train" in data and _is_table(data["train"])):
        return {"file": data}
    keys = dict(zip(("train", "validation", "test"), FILES, strict=True)) | dict.fromkeys(VALIDATION, FILES[1])
    found: dict[str, Any] = {}
    for name, table in data.items():
        key = keys.get(name)
        if key is None or key in found:
            raise DataError(
                f"the tables given are the splits {listed(data)}.\n"
                "Allowed: train, and one each of validation (or valid, val, dev) and test.\n"
                f"Choose them: {{name: data[name] for name in ({', '.join(map(repr, [*data][:2]))})}}"
            )
        found[key] = table
    return found


def _is_table(value: Any) -> bool:
    """Return whether this is a table, and not a column of one."""
    if isinstance(value, str | os.PathLike):
        return True
    is_list = isinstance(value, list | tuple)
    return isinstance(value[0], Mapping) if is_list and value else not is_list and _reader(value) is not None


# -- tables ------------------------------------------------------------------------------------------


def _given(table: Any) -> _Given:
    """Return what a table holds, read block by block.

    Raises:
        DataError: it is none.
    """
    reader = _reader(table)
    if reader is None:
        what = type(table).__name__
        does = {"LazyFrame": "Type: frame.collect()", "IterableDataset": "Type: Dataset.from_list(list(rows))"}
        raise DataError(
            f"{SHOWN} is of type {what}, {quoted(table)}.\nAllowed: {KINDS}, or the path of a file.\n"
            f"{does.get(what, 'Give one of these.')}"
        )
    given = reader(table)
    check_names(SHOWN, given.names)
    if not given.names:
        raise DataError(f"{SHOWN} is empty, {quoted(table)}.\nAllowed: one row per text.\nGive rows.")
    return given


def _reader(table: Any) -> Callable[[Any], _Given] | None:
    if isinstance(table, Mapping):
        return _of_columns
    if isinstance(table, list | tuple):
        return _of_records
    if hasattr(table, "iloc") and hasattr(table, "columns"):
        return _of_pandas
    if hasattr(table, "features") and hasattr(table, "select_columns") and hasattr(table, "__len__"):
        return _of_dataset
    return _of_arrow if hasattr(table, "__arrow_c_stream__") else None


def _of_columns(columns: Mapping[Any, Any]) -> _Given:
    sized = {name: len(column) for name, column in columns.items() if _is_column(column)}
    if len(sized) < len(columns) or len(set(sized.values())) > 1:
        held = [f"{name}: {sized.get(name, 'no list')}" for name in columns]
        raise DataError(
            f"{SHOWN} is a dict of columns of these lengths: {listed(held)}.\n"
            "Allowed: a dict of lists of the same length.\n"
            "Give every column a value for each row, None where it has none."
        )
    values = list(columns.values())
    count = next(iter(sized.values()), 0)

    def blocks(places: Sequence[int]) -> Iterator[Block]:
        for start in range(0, count, BLOCK):
            yield [list(values[place][start : start + BLOCK]) for place in places]

    return _Given([str(name) for name in columns], blocks)


def _is_column(column: Any) -> bool:
    return hasattr(column, "__len__") and hasattr(column, "__getitem__") and not isinstance(column, str | bytes | dict)


def _of_records(records: Sequence[Any]) -> _Given:
    faults = Faults()
    names: dict[Any, None] = {}
    for row, record in enumerate(records, 1):
        if isinstance(record, Mapping):
            names.update(dict.fromkeys(record))
        else:
            faults.add(f"row {row}", f" is {quoted(record)}, not a dict")
    if faults:
        raise DataError(f"{SHOWN}, {faults}.\nAllowed: {KINDS}.\nGive each row as a dict of its columns.")
    keys = list(names)

    def blocks(places: Sequence[int]) -> Iterator[Block]:
        for start in range(0, len(records), BLOCK):
            some = records[start : start + BLOCK]
            yield [[record.get(keys[place]) for record in some] for place in places]

    return _Given([str(name) for name in keys], blocks)


def _of_pandas(frame: Any) -> _Given:
    def blocks(places: Sequence[int]) -> Iterator[Block]:
        for start in range(0, len(frame), BLOCK):
            some = frame.iloc[start : start + BLOCK]
            yield [some.iloc[:, place].tolist() for place in places]

    return _Given([str(name) for name in frame.columns], blocks)


def _of_dataset(dataset: Any) -> _Given:
    names = list(dataset.column_names)

    def blocks(places: Sequence[int]) -> Iterator[Block]:
        chosen = dataset.select_columns([names[place] for place in places]).with_format("arrow")
        for table in chosen.iter(BLOCK):
            yield [_named(table.column(names[place]).to_pylist(), classes.get(names[place])) for place in places]

    kinds = {name: dataset.features[name] for name in names}
    known = {name: getattr(getattr(kind, "feature", kind), "names", None) for name, kind in kinds.items()}
    classes = {name: list(map(str, own)) for name, own in known.items() if own is not None}
    return _Given(names, blocks, classes)


def _named(values: list[Any], names: Sequence[str] | None) -> list[Any]:
    """Return the names of classes for their numbers; a number that is none stays, as -1 of a secret test."""
    if names is None:
        return values
    return [
        _named(value, names)
        if isinstance(value, list)
        else names[value]
        if isinstance(value, int) and 0 <= value < len(names)
        else value
        for value in values
    ]


def _of_arrow(frame: Any) -> _Given:
    import pyarrow  # heavy, and lists are read without it

    table = pyarrow.table(frame)

    def blocks(places: Sequence[int]) -> Iterator[Block]:
        for batch in table.select(list(places)).to_batches(BLOCK):
            yield [column.to_pylist() for column in batch.columns]

    return _Given(table.column_names, blocks)


# -- the file ----------------------------------------------------------------------------------------


def _place(names: Sequence[str], name: str) -> int:
    """Return the place of a column, or of the column of records that has the field of a path with dots."""
    found = [own for own in names if own == name] or [own for own in names if own.strip() == name.strip()]
    found = found or sorted((own for own in names if name.startswith(f"{own}.")), key=len)
    if found:
        return list(names).index(found[-1])
    raise DataError(
        f"{SHOWN} has no column {quoted(name)}; its columns are {listed(names)}.\n"
        "Allowed: the name of a column; an index is none.\nName them with text=... and label=..."
    )


def _keep(given: _Given, places: Sequence[int], folder: Path) -> Path:
    """Write these columns into a file that is named by its content, if it is not there yet, and return its path."""
    if (why := why_unwritable(folder)) is not None:
        raise DataError(
            f"{folder} cannot be written ({why}), where rows given from Python are kept.\n"
            "Allowed: a folder that can be written.\nGive another cache_dir=..."
        )
    digest = hashlib.sha256()
    scratch = folder / f"{uuid4().hex}.tmp"
    try:
        with scratch.open("wb") as stream:
            for line in _lines(given, places):
                digest.update(line)
                stream.write(line)
        path = folder / f"{digest.hexdigest()[:32]}.jsonl"
        if not path.is_file():
            scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return path


def _lines(given: _Given, places: Sequence[int]) -> Iterator[bytes]:
    """Yield a JSON object per row.

    Raises:
        DataError: there are no rows, or values that JSON does not hold.
    """
    names = [given.names[place] for place in places]
    faults: dict[str, Faults] = {}
    row = 0
    for block in given.blocks(places):
        for cells in zip(*block, strict=True):
            row += 1
            try:
                line = json.dumps(dict(zip(names, map(_plain, cells), strict=True)))
            except (TypeError, ValueError, RecursionError):
                line = ""
                for name, cell in zip(names, cells, strict=True):
                    if fault := _fault(cell):
                        faults.setdefault(name, Faults()).add(f"row {row}", f": column {quoted(name)} holds {fault}")
            yield f"{line}\n".encode()
    for found in islice(faults.values(), 1):
        raise DataError(
            f"{SHOWN}, {found}.\nAllowed: texts, numbers, booleans, lists and dicts of them, and None.\n"
            "Convert the column, as with .astype(str), or name another one."
        )
    if not row:
        raise DataError(f"{SHOWN} has no rows.\nAllowed: one row per text.\nGive rows.")


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it: numbers of numpy as Python's, arrays as lists, and null where it is missing."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0:
        return [_plain(part) for part in value]
    value = scalar(value)
    return None if is_missing(value) else value


def _fault(value: Any) -> str:
    """Return what about a value JSON does not hold, in words; "" if nothing is."""
    try:
        json.dumps(_plain(value))
    except TypeError:
        return f"{quoted(value)} of type {type(value).__name__}"
    except (ValueError, RecursionError) as error:
        return f"what no file can hold ({error})"
    return ""
