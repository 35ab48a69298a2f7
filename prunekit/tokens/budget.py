"""Meeting a budget: bisection on a method's knob, and the refusal of what cannot be reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass


class InfeasibleBudgetError(ValueError):
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
    known: Mapping[float, float] | None = None,
) -> Bisected:
    """The knob whose measured FLOPs reduction is nearest to `target`, for a measure that rises or falls with the knob.

    Steps and plateaus are fine: the best knob seen is returned, whether or not it is within `tolerance` (a fraction
    of FLOPs). Stops as soon as it is.

    Where a measurement is dear, `known` are reductions at knobs between `low` and `high`, both included: none is
    measured again, and every other step interpolates between the nearest two instead of halving.
    """
    seen = {low: measure(low), high: measure(high)} if known is None else dict(known)
    least, most = min(seen[low], seen[high]), max(seen[low], seen[high])
    rises = seen[low] < seen[high]

    def gap(knob: float) -> float:
        return abs(target / seen[knob] - 1)

    def short(knob: float) -> bool:
        return (seen[knob] < target) == rises

    below = max((knob for knob in seen if short(knob)), default=low)
    above = min((knob for knob in seen if knob > below), default=high)
    for step in range(iterations):
        if min(map(gap, seen)) <= tolerance or not least < target < most:
            break
        share = 0.5
        if known is not None and step % 2 == 0 and seen[below] != seen[above]:
            # in the logarithm, in which FLOPs fall about evenly; never so near an end that nothing is learned
            share = math.log(target / seen[below]) / math.log(seen[above] / seen[below])
            share = min(0.95, max(0.05, share))
        middle = below + share * (above - below)
        seen[middle] = measure(middle)
        below, above = (middle, above) if short(middle) else (below, middle)
    best = min(seen, key=gap)
    return Bisected(best, seen[best], gap(best) <= tolerance, least, most)


def check_feasible(asked: float, low: float, high: float, what: str) -> None:
    """Refuses a FLOPs reduction outside [low, high].

    Raises:
        InfeasibleBudgetError: says what was asked, and the feasible range.
    """
    if low <= asked <= high:
        return
    # rounded inwards, so that what the message offers is accepted
    low, high = math.ceil(round(low * 100, 6)) / 100, math.floor(round(high * 100, 6)) / 100
    raise InfeasibleBudgetError(
        f"budget={asked:g}x cannot be met by {what}; feasible there: {low:.2f}x to {high:.2f}x.\n"
        f"Ask for a budget in that range, or let the method decide at earlier layers."
    )
