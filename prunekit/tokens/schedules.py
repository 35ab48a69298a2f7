"""Length schedules: which share of a sentence each layer keeps, and the search for the best ones.

A schedule is a share of the *unpruned* sentence per layer, never rising. Pure functions of numbers and a generator.
Source: Length-Adaptive Transformer, arXiv:2010.07003; there lengths are absolute, so that a text shorter than a
layer's length is not shortened by it at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from prunekit.tokens.budget import bisect

Schedule = tuple[float, ...]
CHANCE = 0.5  # of a layer to be drawn anew in a mutation, as published


@dataclass(frozen=True)
class Point:
    """A schedule with the FLOPs reduction and the score that were measured for it."""

    schedule: Schedule
    reduction: float
    score: float


def constant_ratio(layers: int, ratio: float) -> Schedule:
    """Each layer keeps this share of what the one before it kept."""
    return tuple(ratio ** (layer + 1) for layer in range(layers))


def drop_lengths(layers: int, drop: float, random: Random) -> Schedule:
    """LengthDrop: each layer keeps between 1 - `drop` and all of what the one before it kept, drawn uniformly."""
    share, shares = 1.0, []
    for _ in range(layers):
        share *= random.uniform(1 - drop, 1.0)
        shares.append(share)
    return tuple(shares)


def mutated(schedule: Schedule, random: Random) -> Schedule:
    """Each share is, by a chance of one half, drawn anew between the next layer's and the previous one's new share."""
    shares: list[float] = []
    for layer, share in enumerate(schedule):
        above = shares[-1] if shares else 1.0
        below = schedule[layer + 1] if layer + 1 < len(schedule) else schedule[-1]
        shares.append(random.uniform(below, above) if random.random() < CHANCE else share)
    return tuple(shares)


def crossed(one: Schedule, other: Schedule) -> Schedule:
    """The mean of two schedules, layer by layer."""
    return tuple((share + share_too) / 2 for share, share_too in zip(one, other, strict=True))


def bent(schedule: Schedule, exponent: float) -> Schedule:
    """A schedule of the same form that prunes more (exponent above 1) or less; 0 prunes nothing."""
    return tuple(share**exponent for share in schedule)


def bent_to(schedule: Schedule, reduction: Callable[[Schedule], float], asked: float) -> Schedule:
    """The schedule of this form whose FLOPs reduction is nearest to `asked`."""

    def at(knob: float) -> Schedule:
        # s / (1 - s) takes the unit interval to all exponents; at 1 whatever may go is gone
        return bent(schedule, knob / (1 - knob)) if knob < 1 else tuple(float(share == 1) for share in schedule)

    return at(bisect(lambda knob: reduction(at(knob)), asked, low=0.0, high=1.0, tolerance=1e-3).knob)


def pareto(points: Iterable[Point]) -> list[Point]:
    """The points that no other one beats in reduction and score at once, by rising reduction; of equals the first."""
    best: list[Point] = []
    # a stable sort: of two that are equal in both the one that was found first comes first
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
    adjusted: Callable[[Schedule], Schedule] | None = None,
) -> Iterator[Point]:
    """Measures schedules one by one, and yields what was measured: `start`, then children of the Pareto set.

    Each iteration takes the Pareto set of all that was measured, and makes `mutations` mutations of random members
    and `crossovers` means of two. Every second child is `adjusted`: bent to the FLOPs that are asked for. A schedule
    that comes up again is yielded again, not measured.
    """
    found: dict[Schedule, Point] = {}

    def look(schedule: Schedule) -> Point:
        rounded = tuple(round(share, 4) for share in schedule)  # a tenth of a token of 1000
        if rounded not in found:
            found[rounded] = measure(rounded)
        return found[rounded]

    for schedule in start:
        yield look(schedule)
    for _ in range(iterations):
        parents = [point.schedule for point in pareto(found.values())]
        children = [mutated(random.choice(parents), random) for _ in range(mutations)]
        children += [crossed(random.choice(parents), random.choice(parents)) for _ in range(crossovers)]
        for number, child in enumerate(children):
            yield look(adjusted(child) if adjusted is not None and number % 2 else child)
