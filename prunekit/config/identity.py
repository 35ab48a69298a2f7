"""The hash that names a run: the configuration without machine keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from prunekit.config.budget import without_idle_goal
from prunekit.config.keys import _walk, machine_keys


def is_dense(cfg: Mapping[str, Any]) -> bool:
    """Return whether a run prunes nothing: it is the teacher and the baseline of every other run on its task."""
    return bool(cfg["method"]["name"] == "dense")


def config_hash(cfg: Mapping[str, Any]) -> str:
    """Eight hex digits that name a configuration, whatever the order of its keys and the machine it runs on."""
    machine = machine_keys()
    cfg = without_idle_goal(cfg)
    flat = {path: value for path, value in _walk(cfg) if path not in machine and not isinstance(value, dict)}
    text = json.dumps(flat, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
