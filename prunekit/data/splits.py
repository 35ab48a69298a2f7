"""Find and read the splits of a task, wherever it is: own files, folders, and datasets of the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prunekit.config.errors import quoted
from prunekit.data.errors import DataError
from prunekit.data.named import is_saved, read_folder, read_hub
from prunekit.data.sources import TaskSource
from prunekit.data.spec import TaskSpec
from prunekit.data.tables import Table, read_class_folders, read_split, read_table

# what to do about a split that is asked for and does not exist
WITHOUT = {
    "train": "Set task.train_split=<name of the file>",
    "validation": "Set task.validation_splits=[] to take it from the training rows",
    "test": "Set task.test_split=null to do without it, or to take it from the training rows",
}


def read_splits(spec: TaskSpec, source: TaskSource, cache: Path | None = None) -> dict[str, Table]:
    """Read the table of every split of a task that exists, by our names; nothing in it is checked.

    Rows of large files are kept in the folder `cache`, by default the user's cache folder.

    Raises:
        DataError: a split that the task needs does not exist, or a file cannot be read.
    """
    if source.kind == "file":
        paths = {"train": spec.file, "validation": spec.validation_file, "test": spec.test_file}
        return {split: read_table(Path(path), cache) for split, path in paths.items() if path is not None}
    folder = Path(source.where)
    if source.kind == "hub" or spec.dataset is not None or is_saved(folder):
        return _by_our_names(spec, read_all_splits(spec, source, cache), str(source))
    names = [spec.train_split, *spec.validation_splits, *([spec.test_split] if spec.test_split else [])]
    found = {name: table for name in names if (table := read_split(folder, name, cache)) is not None}
    if spec.train_split not in found and len(by_class := read_class_folders(folder, spec.text, spec.label)):
        return {"train": by_class}
    if not found and any(folder.glob("*/*")):  # files deeper in the folder, as data/train-00000-of-00001.parquet
        found = read_folder(folder, None, cache)
    return _by_our_names(spec, found, str(folder))


def read_all_splits(spec: TaskSpec, source: TaskSource, cache: Path | None = None) -> dict[str, Table]:
    """Read the splits of a dataset of the hub, or of a folder that is laid out like one, by its names.

    Raises:
        DataError: it cannot be read.
    """
    if source.kind == "hub":
        return read_hub(source.where, spec.hub_config or spec.subset, spec.revision, cache)
    # a folder that was found for the dataset is that of the subset
    return read_folder(Path(source.where), spec.subset if source.where == spec.dataset else None, cache)


def _by_our_names(spec: TaskSpec, found: Mapping[str, Table], where: str) -> dict[str, Table]:
    first, *more = spec.validation_splits or (None,)
    asked = {"train": spec.train_split, "validation": first, **{name: name for name in more if name in found}}
    asked["test"] = spec.test_split
    tables: dict[str, Table] = {}
    for split, name in asked.items():
        if name is None:
            continue
        if name not in found:
            raise DataError(
                f"{where} has no split {quoted(name)}; it holds {_contents(where, found)}.\n"
                f"A split is {name}-00000-of-00001.parquet, or {name}.parquet, .csv, .tsv, .jsonl.\n"
                f"{WITHOUT[split]}."
            )
        tables[split] = found[name]
    return tables


def _contents(where: str, found: Mapping[str, Table]) -> str:
    folder = Path(where)
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else list(found)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") if names else "nothing"
