"""Meeting a budget: bisection over a method's knob, and the check that a budget is feasible."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


class InfeasibleBudgetError(ValueError):
    """A budget outside the range that the method can reach on these sentences."""


@dataclass(frozen=True)
class BisectionResult:
    """The best knob tried, its reduction, whether that is within tolerance, and the reductions at the range's ends."""

    knob: float
    reached: float
    met: bool
    low: float  # the smaller of the reductions at the two ends
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
    set_knob: Callable[[float], object] | None = None,
) -> BisectionResult:
    """Find the knob whose measured FLOPs reduction is nearest to `target`, for a measure monotonic in the knob.

    Steps and plateaus are fine: the best knob tried is returned, whether or not it is within `tolerance` (a fraction
    of FLOPs). The search stops as soon as one is.

    Where measurements are expensive, `known` maps knobs between `low` and `high`, both included, to their reductions:
    none of these is measured again, and every other step interpolates between the nearest two instead of halving.

    Where measuring needs the knob to be set somewhere, `set_knob` sets it: before each measurement, and at the end to
    the best knob, which need not be the last one tried, nor one that was measured at all.
    """

    def at(knob: float) -> float:
        if set_knob is not None:
            set_knob(knob)
        return measure(knob)

    seen = {low: at(low), high: at(high)} if known is None else dict(known)
    least, most = min(seen[low], seen[high]), max(seen[low], seen[high])
    rises = seen[low] < seen[high]

    def error(knob: float) -> float:
        return abs(target / seen[knob] - 1)

    def is_below(knob: float) -> bool:
        return (seen[knob] < target) == rises

    below = max((knob for knob in seen if is_below(knob)), default=low)
    above = min((knob for knob in seen if knob > below), default=high)
    for step in range(iterations):
        if min(map(error, seen)) <= tolerance or not least < target < most:
            break
        share = 0.5
        if known is not None and step % 2 == 0 and seen[below] != seen[above]:
            # in logarithms, in which FLOPs fall about evenly; never so close to an end that nothing is learned
            share = math.log(target / seen[below]) / math.log(seen[above] / seen[below])
            share = min(0.95, max(0.05, share))
        middle = below + share * (above - below)
        seen[middle] = at(middle)
        below, above = (middle, above) if is_below(middle) else (below, middle)
    best = min(seen, key=error)
    if set_knob is not None:
        set_knob(best)
    return BisectionResult(best, seen[best], error(best) <= tolerance, least, most)


def check_reachable(asked: float, steps: Sequence[float], tolerance: float, what: str) -> None:
    """Check that one of the reductions that a method can reach is within `tolerance` of `asked`, as a share of FLOPs.

    Raises:
        InfeasibleBudgetError: none is; the message gives the nearest ones.
    """
    nearest = min(steps, key=lambda step: abs(asked / step - 1))
    error = abs(asked / nearest - 1)
    if error <= tolerance:
        return
    near = [*sorted(step for step in steps if step < asked)[-1:], *sorted(step for step in steps if step > asked)[:1]]
    words = " and ".join(f"{step:.3g}x" for step in near)
    raise InfeasibleBudgetError(
        f"budget={asked:g}x cannot be met within budget_tolerance={tolerance:g} by {what}, which goes in whole steps.\n"
        f"Allowed: the nearest steps are {words}; or a tolerance of {error:.2g} and more.\n"
        f"Give budget={nearest:.3g}x, or budget_tolerance={math.ceil(100 * error) / 100:g}."
    )


def check_feasible(asked: float, low: float, high: float, what: str) -> None:
    """Check that a FLOPs reduction lies within [low, high].

    Raises:
        InfeasibleBudgetError: it does not; the message gives the feasible range.
    """
    if low <= asked <= high:
        return
    # rounded inwards, so that any budget in the range shown is accepted
    low, high = math.ceil(round(low * 100, 6)) / 100, math.floor(round(high * 100, 6)) / 100
    raise InfeasibleBudgetError(
        f"budget={asked:g}x cannot be met by {what}; the feasible range is {low:.2f}x to {high:.2f}x.\n"
        f"Ask for a budget in that range, or let the method decide at earlier layers."
    )
