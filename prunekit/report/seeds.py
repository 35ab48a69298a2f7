"""Statistics over seeds: mean, spread, interval, and the test of a difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

LEVEL = 0.05  # of tests and intervals


@dataclass(frozen=True)
class Summary:
    """A number over seeds; `sd`, `low` and `high` (95 % interval of the mean, Student's t) are None for one seed."""

    n: int
    mean: float | int
    sd: float | int | None
    low: float | int | None
    high: float | int | None

    @property
    def half(self) -> float | int | None:
        """Half the width of the interval."""
        return None if self.high is None else self.high - self.mean


def summary(values: Sequence[float | int]) -> Summary:
    """Summarise one value per seed.

    Raises:
        ValueError: there is none.
    """
    if not values:
        raise ValueError("a summary of 0 values was asked for; give 1 or more.")
    mean = fmean(values)
    if len(values) == 1:
        return Summary(1, mean, None, None, None)
    from scipy.special import stdtrit  # slow to import, and one seed needs none of it

    sd = stdev(values)
    half = float(stdtrit(len(values) - 1, 1 - LEVEL / 2)) * sd / math.sqrt(len(values))
    return Summary(len(values), mean, sd, mean - half, mean + half)


def difference(one: Mapping[int, float | int], other: Mapping[int, float | int]) -> float | int | None:
    """Return the two-sided p value for the difference of two means, values given by seed.

    Paired t-test over the seeds that both have, if there are two or more; otherwise Welch's t-test. None where neither
    is possible: too few seeds, or no spread at all.
    """
    shared = sorted(one.keys() & other.keys())
    if len(shared) >= 2:
        gaps = [one[seed] - other[seed] for seed in shared]
        return _p(fmean(gaps), stdev(gaps) / math.sqrt(len(gaps)), len(gaps) - 1)
    if len(one) < 2 or len(other) < 2:
        return None
    first, second = (stdev(found.values()) ** 2 / len(found) for found in (one, other))
    if first + second < 1e-24:
        return None
    # the degrees of freedom of Welch and Satterthwaite
    freedom = (first + second) ** 2 / (first**2 / (len(one) - 1) + second**2 / (len(other) - 1))
    return _p(fmean(one.values()) - fmean(other.values()), math.sqrt(first + second), freedom)


def _p(gap: float | int, error: float | int, freedom: float | int) -> float | int | None:
    from scipy.special import stdtr  # slow to import, and one seed needs none of it

    if abs(gap) < 1e-12:
        return 1.0
    if error < 1e-12:
        return None
    return float(2 * stdtr(freedom, -abs(gap / error)))


def holm(p_values: Sequence[float | int | None]) -> list[float | int | None]:
    """Correct p values for their number (Holm, Scandinavian Journal of Statistics 6, 1979); None stays None."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | int | None] = [None] * len(p_values)
    largest: float | int = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[place] = largest
    return corrected
