"""Choose the finished runs that `prunekit table` and `prunekit report` compare."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from prunekit.config.errors import ConfigError
from prunekit.report.rows import FIELDS, NAMES, Collection, Row, select


def parse_conditions(given: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the conditions among a command's settings, `task=cola,sst2` as {"task": ["cola", "sst2"]}.

    Raises:
        ConfigError: a condition without a value.
    """
    conditions = {}
    for name, text in given["where"].items():
        conditions[name] = [part.strip() for part in text.split(",") if part.strip()]
        if not conditions[name]:
            raise ConfigError(
                f"{name}={text} is no condition.\nAllowed: name=value, or name=value,value.\n"
                "Write it as task=cola,sst2 budget=2x."
            )
    return conditions


def select_runs(found: Collection, given: Mapping[str, Any]) -> list[Row]:
    """Return the runs that meet all conditions; `given` are the command's settings.

    Raises:
        ConfigError: nothing is finished, or no run meets the conditions.
    """
    if not found.rows:
        raise ConfigError(
            f"{', '.join(given['paths'])} holds no finished run.\n"
            "Allowed: folders of runs, and files written by prunekit table save=FILE.\n"
            "Train first, as python train.py."
        )
    conditions = parse_conditions(given)
    settings = [name for name in given if name not in ("paths", "where")]
    known = {*NAMES, *(key for row in found.rows for key in row["config"])}
    for name in sorted(conditions.keys() - known):
        if meant := difflib.get_close_matches(name, settings, n=1, cutoff=0.75):
            raise ConfigError(
                f"{name}={given['where'][name]} is neither a setting nor a condition that any run could meet.\n"
                f"Allowed: {', '.join(settings)}; and conditions on {', '.join(NAMES)}, or a key of a configuration.\n"
                f"Did you mean {meant[0]}=...?"
            )
    runs = select(found.rows, conditions)
    if not runs:
        typed = " ".join(f"{name}={','.join(values)}" for name, values in conditions.items())
        raise ConfigError(
            f"{typed}: no run meets all of it.\n"
            f"Allowed: any of {', '.join(FIELDS)} and the configuration's keys.\nLeave one condition out."
        )
    return runs
