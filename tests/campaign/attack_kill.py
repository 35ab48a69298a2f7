"""Kills at random moments, several in a row, over all methods and both pipelines; then the same command to its end."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Literal

from campaign.frame import DEAD_END, REPAIRED, SILENT, UNTRIED, Case, Verdict, place_for
from campaign.lives import Life, Moment, live
from campaign.small_runs import JOBS, OTHER_KINDS, Job, at_home, differing

TITLE = "runs that are killed (kill -9)"
LONG, SHORT = 300, 1
MOST_KILLS = 3  # of one run
Share = tuple[Literal["cpu", "files"], float]


def cases(count: int, rng: random.Random, folder: Path) -> Iterator[Case]:
    """Yield histories of runs of every method."""
    return histories(JOBS, count, rng, folder)


def histories(names: Iterable[str], count: int, rng: random.Random, folder: Path) -> Iterator[Case]:
    """Yield runs, and at which share of what a whole one takes each of its processes is killed."""
    for _ in range(count):
        name = rng.choice(sorted(names))
        shares: list[Share] = [
            (rng.choice(("cpu", "files")), rng.uniform(0.1, 1) if number == 0 else rng.uniform(0.1, 0.8))
            for number in range(rng.randint(1, MOST_KILLS))
        ]
        words = ", ".join(f"{share:.2f} of its {'time' if kind == 'cpu' else 'files'}" for kind, share in shares)
        yield Case(f"{name}, at {words}", partial(attack, name, shares, folder))


@cache
def whole(name: str, folder: Path) -> tuple[dict[str, str], Life]:
    """Return what an uninterrupted run comes out with, and what it took."""
    place = folder / f"whole-{name}"
    job = (JOBS | OTHER_KINDS)[name]
    life = start(job, place)
    assert life.code in (0, 3), (place / "log.txt").read_text()
    return job.truth(place, teacher=True), life


def start(job: Job, place: Path, moment: Moment | None = None) -> Life:
    """Run the command in a process of its own, until it ends or its moment comes."""
    with at_home(place):
        return live((job.placed(place), place, moment))[0]


def attack(name: str, shares: list[Share], folder: Path) -> Verdict:
    """Kill a run again and again, let it end, and compare."""
    job, (truth, took) = (JOBS | OTHER_KINDS)[name], whole(name, folder)
    lengths = {"cpu": took.cpu, "files": float(took.files)}
    killed: Counter[str] = Counter()
    with place_for("kill", folder) as place:
        for kind, share in shares:
            life = start(job, place, Moment(kind, max(1.0 * (kind == "files"), share * lengths[kind])))
            if not life.was_killed:
                break
            killed[f"killed while {life.doing}"] += 1
        counts = {"kills": killed.total(), **killed}
        if not killed:
            return Verdict(UNTRIED)
        last = start(job, place)
        if last.code != took.code:
            return Verdict(DEAD_END, (place / "log.txt").read_text()[-600:], counts)
        found = job.truth(place, teacher=True)
        left = [path.name for pattern in ("*.ckpt", ".*.tmp", "scratch") for path in (place / "runs").rglob(pattern)]
        if found != truth or left:
            return Verdict(SILENT, f"differs: {differing(found, truth)}; left: {', '.join(left)}", counts)
    return Verdict(REPAIRED, "", counts)
