"""Counters of what a batcher did since its start, and how long its answers took."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

REMEMBERED = 10_000  # most recent answers from which the latency percentiles are computed
# upper ends of the counted latencies, in seconds
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass
class Tally:
    """Counters since the start. Outcomes count calls of `submit`; times are those of answered calls."""

    outcomes: Counter[str] = field(default_factory=Counter)
    batches: int = 0
    texts: int = 0
    tokens: int = 0
    computing_s: float = 0.0
    answered_s: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    answered_total_s: float = 0.0
    answered_within: Counter[float] = field(default_factory=Counter)  # by the smallest of BUCKETS that it fits

    def count_answer(self, seconds: float) -> None:
        """Count an answered call that took so long."""
        self.outcomes["ok"] += 1
        self.answered_s.append(seconds)
        self.answered_total_s += seconds
        self.answered_within[next((end for end in BUCKETS if seconds <= end), math.inf)] += 1

    def summary(self) -> dict[str, Any]:
        """Return the counters as plain numbers; percentiles cover the most recent answers, None before the first."""
        ordered = sorted(self.answered_s)
        return {
            "requests": dict(self.outcomes),
            "batches": self.batches,
            "texts": self.texts,
            "tokens": self.tokens,
            "computing_s": self.computing_s,
            "mean_batch_texts": self.texts / self.batches if self.batches else None,
            "mean_batch_tokens": self.tokens / self.batches if self.batches else None,
            "latency_ms": {f"p{percent}": percentile_ms(ordered, percent) for percent in (50, 95, 99)},
        }


def percentile_ms(ordered: Sequence[float], percent: float | int) -> float | None:
    """Return the nearest-rank percentile of sorted seconds, in milliseconds; None for an empty sequence."""
    if not ordered:
        return None
    return 1000 * ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]
