"""Sources of a task's data, tried in this order: an explicit path, an installed package, PRUNEKIT_DATA, the hub.

Imports nothing heavy, and detects an unreachable hub within `PROBE_SECONDS`, so that a run that cannot start fails at
once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prunekit.config.errors import ConfigError
from prunekit.data.hub import DATA_VARIABLE, cached_snapshot, embedded_option, find_in_data_folder, why_unreachable
from prunekit.data.packages import package_folder
from prunekit.data.spec import TaskSpec


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
    if spec.package and spec.package_folder and (found := package_folder(spec.package, spec.package_folder)):
        return TaskSource("folder", str(found))
    tried = [f"{spec.package} (not installed)"] if spec.package else []
    if spec.folder:
        folder, why = find_in_data_folder([spec.folder], env)
        if folder:
            return TaskSource("folder", str(folder))
        tried.append(why)
    if spec.hub:
        if cached_snapshot(spec.hub, "dataset", env) or not (why := why_unreachable(spec.hub, "datasets", env)):
            return TaskSource("hub", spec.hub)
        tried.append(why)
    if not tried:
        raise ConfigError(f"task={spec.name} has no data of its own; set task.file=<a .csv, .jsonl or .parquet file>.")
    raise ConfigError(
        f"task={spec.name}: no data. Tried {'; '.join(tried)}.\n"
        + (
            f"Option 1: {DATA_VARIABLE}=<folder that holds {spec.folder}/>, laid out as on the hub.\n"
            if spec.folder
            else ""
        )
        + embedded_option(spec.package, "task=bbc_news backbone=minilm")
    )


def own_files_digest(spec: TaskSpec) -> str | None:
    """Return a hex digest of the content of the files that the spec names; None if it names none.

    A path does not identify its content; with the digest, an old result is not mistaken for that of an edited file.
    """
    paths = [Path(path) for path in (spec.file, spec.validation_file, spec.test_file) if path is not None]
    if not paths or spec.synthetic_rows:
        return None
    digest = hashlib.sha256()
    for path in paths:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in filter(Path.is_file, files):  # `find_task` reports missing ones
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def hub_folder(spec: TaskSpec) -> Path:
    """Return the folder of a task's hub files in the local cache, downloading them if necessary."""
    from huggingface_hub import snapshot_download  # slow, and most tasks are not downloaded

    assert spec.hub is not None
    patterns = [f"{spec.hub_config}/*"] if spec.hub_config else ["*.parquet", "*.jsonl", "*.csv"]
    cached = cached_snapshot(spec.hub, "dataset", os.environ) is not None
    arguments: dict[str, Any] = {"repo_type": "dataset", "allow_patterns": patterns}
    reachable = not why_unreachable(spec.hub, "datasets", os.environ)
    folder = snapshot_download(spec.hub, local_files_only=cached and not reachable, **arguments)
    return Path(folder) / (spec.hub_config or "")


def _explicit(spec: TaskSpec) -> TaskSource:
    for key in ("file", "validation_file", "test_file"):
        path = getattr(spec, key)
        if path is not None and not Path(path).exists():
            raise ConfigError(f"task.{key}={path} does not exist (looked in {Path.cwd()}); give the path of a file.")
    assert spec.file is not None
    return TaskSource("folder" if Path(spec.file).is_dir() else "file", spec.file)
