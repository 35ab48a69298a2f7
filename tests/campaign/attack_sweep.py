"""Sweeps that two processes run at the same time, and that are killed: no run is lost, and none is another."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path

from campaign.frame import DEAD_END, REPAIRED, SILENT, UNTRIED, Case, Verdict, place_for
from campaign.lives import Life, Moment, live
from campaign.small_runs import TOKENS, WEIGHTS, Job, at_home, differing

TITLE = "sweeps of two processes that are killed"
LONG, SHORT = 60, 0
PART = 5
MOST_KILLS = 4  # in one sweep
GRIDS = {
    "tokens": (TOKENS, ("topk", "first"), (1,)),
    "weights": (WEIGHTS, ("magnitude", "wanda"), (1, 2)),
}


def cases(count: int, rng: random.Random, folder: Path) -> Iterator[Case]:
    """Yield histories: a grid, and which of its two processes is killed when, as shares of what one alone takes."""
    for _ in range(count):
        grid = rng.choice(sorted(GRIDS))
        kills = [
            (rng.randrange(2), rng.choice(("cpu", "files")), rng.uniform(0.1, 0.8))
            for _ in range(rng.randint(1, MOST_KILLS))
        ]
        words = ", ".join(f"{'ab'[which]} at {share:.2f} of its {kind}" for which, kind, share in kills)
        yield Case(f"{grid}, {words}", partial(attack, grid, kills, folder))


def jobs_of(grid: str) -> list[Job]:
    """Return the runs of a grid."""
    words, methods, seeds = GRIDS[grid]
    return [Job([*words, f"method={method}", f"seed={seed}"]) for method, seed in product(methods, seeds)]


def command(grid: str, place: Path) -> list[str]:
    """Return the command line of a sweep in a folder."""
    words, methods, seeds = GRIDS[grid]
    job = Job([*words, f"method={','.join(methods)}", f"seed={','.join(map(str, seeds))}"])
    return ["train", "-m", *job.placed(place)]


@cache
def whole(grid: str, folder: Path) -> tuple[list[dict[str, str]], Life]:
    """Return what the runs of a sweep come out with that nobody disturbs, and what one process takes for it."""
    place = folder / f"whole-{grid}"
    with at_home(place):
        life = live((command(grid, place), place, None))[0]
    assert life.code in (0, 3), (place / "log.txt").read_text()
    return [job.truth(place, teacher=True) for job in jobs_of(grid)], life


def attack(grid: str, kills: Sequence[tuple[int, str, float]], folder: Path) -> Verdict:
    """Run a sweep by two processes, kill them as told, start them again, and compare every run."""
    truths, took = whole(grid, folder)
    lengths, waiting = {"cpu": took.cpu, "files": float(took.files)}, list(kills)
    killed: Counter[str] = Counter()
    with place_for("sweep", folder) as place, at_home(place):
        while True:
            moments: list[Moment | None] = [None, None]
            for which in range(2):
                mine = next((kill for kill in waiting if kill[0] == which), None)
                if mine is not None:
                    waiting.remove(mine)
                    moments[which] = Moment(mine[1], max(1.0 * (mine[1] == "files"), mine[2] * lengths[mine[1]]))
            lives = live(*((command(grid, place), place, moment) for moment in moments))
            killed.update(f"killed while {life.doing}" for life in lives if life.was_killed)
            if not any(life.was_killed for life in lives) and not waiting:
                break
        counts = {"kills": killed.total(), **killed}
        if any(life.code != took.code for life in lives):
            return Verdict(DEAD_END, (place / "log.txt").read_text()[-600:], counts)
        for job, truth in zip(jobs_of(grid), truths, strict=True):
            if (found := job.truth(place, teacher=True)) != truth:
                return Verdict(SILENT, f"{' '.join(job.words[-2:])} differs: {differing(found, truth)}", counts)
    return Verdict(REPAIRED if killed else UNTRIED, "", counts)
