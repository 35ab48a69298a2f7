"""Sources of a task's data, tried in this order: an explicit path, an installed package, PRUNEKIT_DATA, the hub.

Imports nothing heavy, and detects an unreachable hub within `PROBE_SECONDS`, so that a run that cannot start fails at
once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prunekit.config.errors import ConfigError, shown
from prunekit.data.contents import content_digest
from prunekit.data.hub import (
    DATA_VARIABLE,
    cached_snapshot,
    embedded_option,
    find_in_data_folder,
    is_folder,
    why_unreachable,
)
from prunekit.data.packages import package_folder
from prunekit.data.spec import TaskSpec

FILES = ("file", "validation_file", "test_file")  # keys of a task that name files of the user's own
OWN_FILES = (*FILES, "dataset")


@dataclass(frozen=True)
class TaskSource:
    """The source of a task's rows: a file, a folder (possibly a package's), a dataset of the hub, or a generator."""

    kind: Literal["file", "folder", "hub", "synthetic"]
    where: str

    def __str__(self) -> str:
        return {"hub": f"hub:{self.where}", "synthetic": "generated"}.get(self.kind, self.where)


def find_task(spec: TaskSpec, env: Mapping[str, str] | None = None) -> TaskSource:
    """Find the source of a task's rows.

    Raises:
        ConfigError: not found; raised within 5 seconds, with what was tried and two options.
    """
    env = os.environ if env is None else env
    if spec.synthetic_rows:
        return TaskSource("synthetic", "")
    if spec.file is not None:
        return _explicit(spec)
    if spec.dataset is not None and is_folder(spec.dataset):
        if not Path(spec.dataset).is_dir():
            raise ConfigError(
                f"task.dataset={shown(spec.dataset)} is no folder (looked in {Path.cwd()}).\n"
                "Allowed: the id of a dataset of the hub, as stanfordnlp/imdb, or a folder that is laid out like one.\n"
                "Correct the path."
            )
        return TaskSource("folder", spec.dataset)
    if spec.package and spec.package_folder and (found := package_folder(spec.package, spec.package_folder)):
        return TaskSource("folder", str(found))
    tried = [f"{spec.package} (not installed)"] if spec.package else []
    places = [spec.folder] if spec.folder else [] if spec.dataset is None else _places(spec.dataset, spec.subset)
    if places:
        folder, why = find_in_data_folder(places, env)
        if folder:
            return TaskSource("folder", str(folder))
        tried.append(why)
    if dataset := spec.hub or spec.dataset:
        cached = cached_snapshot(dataset, "dataset", env, spec.revision or "main")
        if cached or not (why := why_unreachable(dataset, "datasets", env)):
            return TaskSource("hub", dataset)
        tried.append(why)
    if not tried:
        raise ConfigError(f"task={spec.name} has no data of its own; set task.file=<a .csv, .jsonl or .parquet file>.")
    raise ConfigError(
        f"task={spec.name}: no data. Tried {'; '.join(tried)}.\n"
        + (f"Option 1: {DATA_VARIABLE}=<folder that holds {places[0]}/>, laid out as on the hub.\n" if places else "")
        + embedded_option(spec.package, "task=bbc_news backbone=minilm")
    )


def own_files_digest(spec: TaskSpec) -> str | None:
    """Return a hex digest of the content of the files that the spec names; None if it names none.

    A path does not identify its content; with the digest, an old result is not mistaken for that of an edited file,
    and a file that was moved is the same.
    """
    named = {key: value for key in OWN_FILES if (value := getattr(spec, key)) is not None}
    if not is_folder(named.get("dataset", ".")):
        del named["dataset"]  # of the hub
    return content_digest(named) if named and not spec.synthetic_rows else None


def _places(dataset: str, subset: str | None) -> list[str]:
    """Return where in PRUNEKIT_DATA a dataset may be: under its id, or under its name without the owner's."""
    names = dict.fromkeys((dataset, dataset.rpartition("/")[2]))
    return [f"{name}/{subset}" if subset else name for name in names]


def _explicit(spec: TaskSpec) -> TaskSource:
    for key in FILES:
        path = getattr(spec, key)
        if path is not None and not Path(path).exists():
            raise ConfigError(f"task.{key}={path} does not exist (looked in {Path.cwd()}); give the path of a file.")
    assert spec.file is not None
    return TaskSource("folder" if Path(spec.file).is_dir() else "file", spec.file)
