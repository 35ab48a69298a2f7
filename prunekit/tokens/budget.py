"""Meeting a budget: bisection on a method's knob, and the refusal of what cannot be reached."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


class InfeasibleBudget(ValueError):  # noqa: N818 - says what it is about
    """The budget lies outside what the method can reach on these sentences."""


@dataclass(frozen=True)
class Bisected:
    """The best knob found, what it reached, whether that is within tolerance, and what the ends of the range reach."""

    knob: float
    reached: float
    met: bool
    low: float  # the smaller of the two ends
    high: float


def bisect(
    measure: Callable[[float], float],
    target: float,
    *,
    low: float,
    high: float,
    tolerance: float = 0.02,
    iterations: int = 40,
) -> Bisected:
    """The knob whose measured FLOPs reduction is nearest to `target`, for a measure that rises or falls with the knob.

    Steps and plateaus are fine: the best knob seen is returned, whether or not it is within `tolerance` (a fraction
    of FLOPs). Stops as soon as it is.
    """
    ends = {low: measure(low), high: measure(high)}
    least, most = min(ends.values()), max(ends.values())
    rises = ends[low] < ends[high]

    def gap(reached: float) -> float:
        return abs(target / reached - 1)

    best = min(ends, key=lambda knob: gap(ends[knob]))
    reached, below, above = ends[best], low, high
    for _ in range(iterations):
        if gap(reached) <= tolerance or not least < target < most:
            break
        middle = (below + above) / 2
        found = measure(middle)
        if gap(found) < gap(reached):
            best, reached = middle, found
        below, above = (middle, above) if (found < target) == rises else (below, middle)
    return Bisected(best, reached, gap(reached) <= tolerance, least, most)


def check_feasible(asked: float, low: float, high: float, what: str) -> None:
    """Refuses a FLOPs reduction outside [low, high].

    Raises:
        InfeasibleBudget: says what was asked, and the feasible range.
    """
    if low <= asked <= high:
        return
    # rounded inwards, so that what the message offers is accepted
    low, high = math.ceil(round(low * 100, 6)) / 100, math.floor(round(high * 100, 6)) / 100
    raise InfeasibleBudget(
        f"budget={asked:g}x cannot be met by {what}; feasible there: {low:.2f}x to {high:.2f}x.\n"
        f"Ask for a budget in that range, or let the method decide at earlier layers."
    )
