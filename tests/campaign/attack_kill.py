"""Kills at random moments, several in a row, over methods and both pipelines; then the same command to its end."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from support.processes import Training

from campaign.frame import DEAD_END, REPAIRED, SAME, SILENT, Case
from campaign.small_runs import JOBS, Job, at_home

TITLE = "kill -9"
MOST_KILLS = 3  # of one run


def cases(count: int, rng: random.Random, folder: Path) -> Iterator[Case]:
    """Yield histories: a method, and after how many seconds each of its processes is killed."""
    truths: dict[str, tuple[dict[str, str], float]] = {}
    Training(["--help"], folder.parent).wait()  # the first process waits for the imports of all
    for number in range(count):
        name = rng.choice(sorted(JOBS))
        if name not in truths:
            began = time.monotonic()
            with at_home(folder / name):
                assert start(JOBS[name], folder / name).wait() in (0, 3)
            truths[name] = JOBS[name].truth(folder / name), time.monotonic() - began
        truth, seconds = truths[name]
        delays = [rng.uniform(0.1, 0.9) * seconds for _ in range(rng.randint(1, MOST_KILLS))]
        case = f"{name}, after {', '.join(f'{delay:.1f} s' for delay in delays)}"
        yield Case(case, partial(attack, JOBS[name], folder / f"case-{number}", delays, truth))


def start(job: Job, place: Path) -> Training:
    """Start the command in a process of its own."""
    place.mkdir(parents=True, exist_ok=True)
    words = [*job.words, f"runs_dir={place / 'runs'}", f"data.cache_dir={place / 'cache'}"]
    return Training([*words, "trainer.checkpoint_seconds=1"], place)


def attack(job: Job, place: Path, delays: list[float], truth: dict[str, str]) -> str:
    """Kill a run again and again, let it end, and compare."""
    killed = 0
    with at_home(place):
        for delay in delays:
            at = time.monotonic() + delay
            killed += start(job, place).kill_when(lambda at=at: time.monotonic() > at) < 0
        if start(job, place).wait() not in (0, 3):
            return DEAD_END
    if job.truth(place) != truth or list(place.rglob("*.ckpt")):
        return SILENT
    return REPAIRED if killed else SAME
