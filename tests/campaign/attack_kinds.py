"""Kills at random moments of runs that answer questions, translate, label words or give several labels."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from campaign.attack_kill import histories
from campaign.frame import Case
from campaign.small_runs import OTHER_KINDS

TITLE = "runs of other kinds of tasks that are killed"
LONG, SHORT = 40, 1


def cases(count: int, rng: random.Random, folder: Path) -> Iterator[Case]:
    """Yield histories of runs of every such kind."""
    return histories(OTHER_KINDS, count, rng, folder)
