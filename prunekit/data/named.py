"""Datasets by name: of the hub, of a folder laid out as on the hub, or of a folder that save_to_disk wrote."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.config.errors import first_line
from prunekit.data.errors import DataError
from prunekit.data.hub import cached_snapshot, is_offline
from prunekit.data.store import datasets_quiet
from prunekit.data.tables import Table, read_parts

if TYPE_CHECKING:
    from datasets import Dataset

Place = tuple[str, str | None, str | None]  # what load_dataset is given: a path, a subset and a revision

REMOTE = "hf://datasets/"
SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk writes, of several splits and of one
OURS = ("csv", "json", "text")  # formats of which the readers of `datasets` change values


def read_hub(dataset: str, subset: str | None, revision: str | None, cache: Path | None) -> dict[str, Table]:
    """Return the splits of a dataset of the hub.

    Raises:
        DataError: there is no such dataset, subset or revision, or it cannot be reached.
    """
    snapshot = cached_snapshot(dataset, "dataset", os.environ, revision or "main")
    if snapshot is not None and is_offline(os.environ):
        return _read(_with_subset(snapshot, subset), dataset, cache)
    return _read((f"{REMOTE}{dataset}", subset, revision), dataset, cache)


def read_folder(folder: Path, subset: str | None, cache: Path | None) -> dict[str, Table]:
    """Return the same of a folder: one that save_to_disk wrote, or one that is laid out as on the hub.

    Raises:
        DataError: it is neither.
    """
    if is_saved(folder):
        return _read_saved(folder)
    return _read(_with_subset(folder, subset), str(folder), cache)


def _with_subset(folder: Path, subset: str | None) -> Place:
    """Return a folder, or one in it where there is no card that says what its subsets are."""
    if subset is not None and (folder / subset).is_dir() and not (folder / "README.md").is_file():
        return str((folder / subset).absolute()), None, None
    return str(folder.absolute()), subset, None


def is_saved(folder: Path) -> bool:
    """Return whether save_to_disk wrote a folder."""
    return any((folder / name).is_file() for name in SAVED)


def _read_saved(folder: Path) -> dict[str, Table]:
    import datasets  # heavy, as pyarrow is, and a configuration is checked without them

    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{folder} cannot be loaded ({first_line(error)}).\n"
            "Allowed: a folder that save_to_disk wrote, whole.\nSave the dataset again."
        ) from error
    parts: Mapping[str, Dataset] = found if isinstance(found, dict) else {str(found.split or "train"): found}
    return {name: Table.of([part], f"{folder}/{name}") for name, part in parts.items()}


def _read(place: Place, shown: str, cache: Path | None) -> dict[str, Table]:
    import datasets  # heavy

    path, subset, revision = place

    arrow = None if cache is None else str(cache / "rows")
    with datasets_quiet():
        try:
            builder = datasets.load_dataset_builder(path, subset, revision=revision, cache_dir=arrow)
            if builder.name in OURS and builder.config.data_files:
                return _read_files(builder, shown, cache)
            found = datasets.load_dataset(path, subset, revision=revision, cache_dir=arrow)
        except (DataError, KeyboardInterrupt):
            raise
        except Exception as error:  # of the hub's client, of HTTP, of builders: there is no common class
            raise _refused(shown, subset, revision, error) from error
    return {str(name): Table.of([part], f"{shown}, {name}") for name, part in found.items()}


def _read_files(builder: Any, shown: str, cache: Path | None) -> dict[str, Table]:
    """Read the files of a dataset's splits with our own readers."""
    return {
        str(name): read_parts([_local(address) for address in files], f"{shown}, {name}", cache)
        for name, files in builder.config.data_files.items()
    }


def _local(address: str) -> Path:
    """Return the path of a file, downloaded if it is the hub's: hf://datasets/<id>@<revision>/<path>."""
    if not address.startswith(REMOTE):
        return Path(address)
    from huggingface_hub import hf_hub_download  # heavy, and most tasks read no such file

    dataset, _, rest = address.removeprefix(REMOTE).partition("@")
    revision, _, file = rest.partition("/")
    return Path(hf_hub_download(dataset, file, repo_type="dataset", revision=revision))


def _refused(shown: str, subset: str | None, revision: str | None, error: Exception) -> DataError:
    what = "".join([shown, f" ({subset})" if subset else "", f" at {revision}" if revision else ""])
    return DataError(
        f"{what} cannot be loaded: {first_line(error)[:200]}\n"
        "Allowed: the id of a dataset of the hub, as stanfordnlp/imdb, or a folder, as ./imdb, with data files.\n"
        "Correct task.dataset, task.subset or task.revision; without a network, set PRUNEKIT_DATA to a folder with it."
    )
