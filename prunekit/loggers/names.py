"""The names of a run in tracking libraries, within their limits: a long or strange name loses no record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prunekit.config.identity import config_hash
from prunekit.runs.folder import RunFolder
from prunekit.runs.names import byte_size, fit_name

TAG, NAME = 64, 128  # W&B's limits of characters: of a tag; of a run, a group and a project
PROJECT_FORBIDS = "/\\#?%:"  # by W&B
PATH_FORBIDS = "/\\:"  # where a name becomes a folder


def join(parts: Sequence[str], separator: str, most: int, size: Callable[[str], int] = len, forbidden: str = "") -> str:
    """Return the parts of a name in one; where they are too long together, the longest are cut, as `fit_name` does."""
    share = most
    while True:
        joined = separator.join(fit_name(part, share, size, forbidden) for part in parts)
        excess = size(joined) - most
        if excess <= 0:
            return joined
        share -= max(1, excess // len(parts) ** 2)


def run_name(cfg: Mapping[str, Any], folder: RunFolder) -> str:
    """Return a readable name that sorts next to those of similar runs: top-cola-minilm-3x-s1."""
    return join([*_words(cfg, folder), f"s{cfg['seed']}"], "-", NAME)


def run_folder_name(cfg: Mapping[str, Any], folder: RunFolder) -> str:
    """Return the run's name with its hash, in letters and a length that a folder may have."""
    return join([*_words(cfg, folder), f"s{cfg['seed']}", folder.hash], "-", NAME, byte_size, PATH_FORBIDS)


def run_group(cfg: Mapping[str, Any]) -> str:
    """Return the name shared by runs that differ in nothing but the seed."""
    path = RunFolder.of(cfg).path
    rest = {key: value for key, value in cfg.items() if key != "seed"}
    return join([*path.parts[-5:-1], config_hash(rest)], "/", NAME)


def run_tags(cfg: Mapping[str, Any], folder: RunFolder) -> list[str]:
    """Return method, task, backbone and budget, each once."""
    return list(dict.fromkeys(fit_name(word, TAG) for word in _words(cfg, folder)))


def project_name(project: str) -> str:
    """Return the name of a project as W&B admits it."""
    return fit_name(project, NAME, forbidden=PROJECT_FORBIDS)


def _words(cfg: Mapping[str, Any], folder: RunFolder) -> list[str]:
    return [*(str(cfg[key]["name"]) for key in ("method", "task", "backbone")), folder.path.parent.name]
