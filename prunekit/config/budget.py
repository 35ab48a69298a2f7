"""Budgets and goals: how they are typed, and how a run's folder names them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prunekit.config.errors import ConfigError, shown

GOAL = "goal.latency_ms"
MOST = 1e6  # times fewer FLOPs, which no model has to save


def has_goal(cfg: Mapping[str, Any]) -> bool:
    """Return whether a latency is asked for in place of a budget."""
    goal = cfg.get("goal")  # which may be anything before it is checked
    return isinstance(goal, Mapping) and goal.get("latency_ms") is not None


def without_idle_goal(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration without the block `goal` where no goal is set: its other keys then mean nothing."""
    return {key: value for key, value in cfg.items() if key != "goal" or has_goal(cfg)}


def budget_label(value: Any) -> str:
    """Return the budget as a folder name: "3x", "dense" where nothing is pruned, "own" where the method decides."""
    reduction = parse_budget(value)
    if reduction is None:
        return "own"
    return "dense" if reduction == 1 else f"{reduction:.4g}x"


def amount_label(cfg: Mapping[str, Any]) -> str:
    """Return how much is pruned as a folder name: the budget, or the goal as "12ms"."""
    return f"{cfg['goal']['latency_ms']:g}ms" if has_goal(cfg) else budget_label(cfg["budget"])


def parse_budget(value: Any) -> float | None:
    """Return the FLOPs reduction against the same sentences unpadded, at least 1; None leaves it to the method's knob.

    "3x" is 3.0; 0.4, the share of FLOPs kept, is 2.5.

    Raises:
        ConfigError: the value is not a budget.
    """
    if value is None:
        return None
    reduction = 0.0
    if isinstance(value, str) and (match := re.fullmatch(r"([0-9]+\.?[0-9]*)[xX]", value)):
        reduction = float(match[1])
    elif isinstance(value, float) and 0 < value <= 1:
        reduction = 1 / value
    if 1 <= reduction <= MOST:
        return reduction
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    example = f"{value}x" if is_number and 1 < value <= MOST else "3x"
    raise ConfigError(
        f"budget={shown(value)} is not a budget.\n"
        f"Allowed: 1x and more, up to {MOST:.0f}x (times fewer FLOPs than unpadded), a fraction in (0..1] (FLOPs kept, "
        "as 0.4), or null.\n"
        f"Write budget={example}, or null to use the method's own knob."
    )
