"""What identifies a run: the hash of its configuration without machine keys, and whether it prunes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunekit.config.budget import without_idle_goal
from prunekit.config.keys import machine_keys, values_before, without_machine_keys
from prunekit.files import json_sha256

# the method that prunes nothing, the only one known by name: it trains the teachers of all others, has neither a budget
# nor a teacher of its own, and is what tables and reports compare with
DENSE = "dense"


def is_dense(method: str) -> bool:
    """Return whether the method of this name prunes nothing."""
    return method == DENSE


def config_hash(cfg: Mapping[str, Any]) -> str:
    """Return eight hex digits that name a configuration, whatever the order of its keys and the machine it runs on.

    A key that is younger than its file does not count where it has the value that runs had before.
    """
    before, none = values_before(), object()
    values = without_machine_keys(without_idle_goal(cfg), machine_keys())
    counted = {path: value for path, value in values.items() if value != before.get(path, none)}
    return json_sha256(counted, ensure_ascii=False, default=str)[:8]
