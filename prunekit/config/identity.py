"""The hash of a configuration, without machine keys; and whether a method prunes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunekit.config.budget import without_idle_goal
from prunekit.config.keys import former_defaults, machine_keys, path_keys, values_before, without_machine_keys
from prunekit.files import json_sha256

# the method that prunes nothing, the only one known by name: it trains the teachers of all others, has neither a budget
# nor a teacher of its own, and is what tables and reports compare with
DENSE = "dense"

# the block of digests of files that the configuration names by path, which stands in its place for their contents
OWN, FILES = "own", "files"
FROM_MODEL = {"backbone.name", "backbone.hub"}  # of a given model, which is known by its weights and not by its name


def is_dense(method: str) -> bool:
    """Return whether the method of this name prunes nothing."""
    return method == DENSE


def config_hash(cfg: Mapping[str, Any]) -> str:
    """Return eight hex digits that name a configuration, whatever the order of its keys and the machine it runs on.

    A key that is younger than its file does not count where it has the value that runs had before, and a default that
    changed counts as what it was. Files that `own` has digests of are named by these: neither their paths nor the
    spelling of them count.
    """
    younger, former = values_before(), former_defaults()
    idle = machine_keys() | _paths_of_own(cfg) | (FROM_MODEL if cfg.get("model") else set())
    counted = {}
    for path, value in without_machine_keys(without_idle_goal(cfg), idle).items():
        written = (path, json.dumps(value, default=str))
        if written not in younger:
            counted[path] = former.get(written, value)
    return json_sha256(counted, ensure_ascii=False, default=str)[:8]


def _paths_of_own(cfg: Mapping[str, Any]) -> set[str]:
    """Return the keys of paths that `own` has a digest for: those of the task together, others by their block."""
    own = cfg.get(OWN, {})
    blocks = {path: path.partition(".")[0] for path in path_keys()}
    return {path for path, block in blocks.items() if (FILES if block == "task" else block) in own}


def with_absolute_paths(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with absolute paths where `own` has a digest of what they name."""
    paths = _paths_of_own(cfg)

    def absolute(block: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        return {
            name: absolute(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else str(Path(value).absolute())
            if f"{prefix}{name}" in paths and value is not None
            else value
            for name, value in block.items()
        }

    return absolute(cfg, "")
