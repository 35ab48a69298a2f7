"""Length schedules: the share of a sentence that each layer keeps, and the search for the best schedules.

A schedule is a share of the *unpruned* sentence per layer, never rising. Pure functions of numbers and a generator.
Source: Length-Adaptive Transformer, arXiv:2010.07003, where lengths are absolute, so that a layer does not shorten
a text that is already shorter than its length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from prunekit.tokens.budget import bisect

Schedule = tuple[float, ...]
CHANCE = 0.5  # that a mutation draws a layer's share anew, as published


@dataclass(frozen=True)
class Point:
    """A schedule with its measured FLOPs reduction and score."""

    schedule: Schedule
    reduction: float
    score: float


def constant_ratio(layers: int, ratio: float) -> Schedule:
    """Return the schedule in which each layer keeps this share of the tokens that the previous layer kept."""
    return tuple(ratio ** (layer + 1) for layer in range(layers))


def drop_lengths(layers: int, drop: float, random: Random) -> Schedule:
    """Draw a LengthDrop schedule: each layer keeps 1 - `drop` to 1 of what the previous layer kept, uniformly drawn."""
    share, shares = 1.0, []
    for _ in range(layers):
        share *= random.uniform(1 - drop, 1.0)
        shares.append(share)
    return tuple(shares)


def mutate(schedule: Schedule, random: Random) -> Schedule:
    """Draw each share anew with probability 1/2, between the next layer's share and the previous layer's new one."""
    shares: list[float] = []
    for layer, share in enumerate(schedule):
        above = shares[-1] if shares else 1.0
        below = schedule[layer + 1] if layer + 1 < len(schedule) else schedule[-1]
        shares.append(random.uniform(below, above) if random.random() < CHANCE else share)
    return tuple(shares)


def cross_over(one: Schedule, other: Schedule) -> Schedule:
    """Return the mean of two schedules, layer by layer."""
    return tuple((share + share_too) / 2 for share, share_too in zip(one, other, strict=True))


def bend(schedule: Schedule, exponent: float) -> Schedule:
    """Return a schedule of the same form that prunes more (exponent above 1) or less (below 1); 0 prunes nothing."""
    return tuple(share**exponent for share in schedule)


def bend_to(schedule: Schedule, reduction: Callable[[Schedule], float], asked: float) -> Schedule:
    """Return the schedule of the same form whose FLOPs reduction is nearest to `asked`."""

    def at(knob: float) -> Schedule:
        # s / (1 - s) maps the unit interval to all exponents; knob 1 drops every token that may be dropped
        return bend(schedule, knob / (1 - knob)) if knob < 1 else tuple(float(share == 1) for share in schedule)

    return at(bisect(lambda knob: reduction(at(knob)), asked, low=0.0, high=1.0, tolerance=1e-3).knob)


def pareto(points: Iterable[Point]) -> list[Point]:
    """Return the points that no other dominates, by rising reduction; of equal points the first."""
    best: list[Point] = []
    # the sort is stable: of two equal points the one measured first comes first
    for point in sorted(points, key=lambda point: (-point.reduction, -point.score)):
        if not best or point.score > best[-1].score:
            best.append(point)
    return best[::-1]


def evolve(
    start: Sequence[Schedule],
    measure: Callable[[Schedule], Point],
    *,
    iterations: int,
    mutations: int,
    crossovers: int,
    random: Random,
    adjust: Callable[[Schedule], Schedule] | None = None,
) -> Iterator[Point]:
    """Measure schedules one by one and yield each point: first `start`, then children of the Pareto set.

    Each iteration takes the Pareto set of all points so far, and makes `mutations` mutations of random members and
    `crossovers` means of two. Every second child goes through `adjust`, which bends it to the budget. A schedule that
    occurs again is yielded again without being measured again.
    """
    points: dict[Schedule, Point] = {}

    def measure_once(schedule: Schedule) -> Point:
        rounded = tuple(round(share, 4) for share in schedule)  # a tenth of a token in 1000
        if rounded not in points:
            points[rounded] = measure(rounded)
        return points[rounded]

    for schedule in start:
        yield measure_once(schedule)
    for _ in range(iterations):
        parents = [point.schedule for point in pareto(points.values())]
        children = [mutate(random.choice(parents), random) for _ in range(mutations)]
        children += [cross_over(random.choice(parents), random.choice(parents)) for _ in range(crossovers)]
        for number, child in enumerate(children):
            yield measure_once(adjust(child) if adjust is not None and number % 2 else child)
