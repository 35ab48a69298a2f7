"""Read and check what a run is given: its data, its backbone, and the labels, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from prunekit.config.errors import ConfigError
from prunekit.files import json_sha256
from prunekit.models.sources import find_source
from prunekit.runs.kinds import kind_of


def cache_of_problems() -> Callable[[Mapping[str, Any]], str | None]:
    """Return a function that says what is wrong with the inputs of a configuration, None where nothing is.

    The data of configurations with the same task is read once.
    """
    tasks: dict[str, Mapping[str, Any]] = {}

    @cache
    def problem_of_data(task: str) -> str | None:
        return _problem(lambda: _read(tasks[task]))

    def problem(cfg: Mapping[str, Any]) -> str | None:
        key = json_sha256([cfg["task"], cfg.get("protect"), cfg["method"].get("prunes")], default=str)
        tasks[key] = cfg
        return _problem(lambda: kind_of(cfg).check(cfg, find_source(cfg))) or problem_of_data(key)

    return problem


def _read(cfg: Mapping[str, Any]) -> None:
    kind = kind_of(cfg)
    spec = kind.spec(cfg)
    kind.read(spec, kind.source(spec), cfg)


def _problem(check: Callable[[], None]) -> str | None:
    try:
        check()
    except ConfigError as error:
        return str(error)
    return None
