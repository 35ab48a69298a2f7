"""Numbers in words, as the terminal, a card and a README show them: scores in hundredths, ratios with their noise."""

from __future__ import annotations

from collections.abc import Mapping

from prunekit.runs.result import Number

# metrics whose name says too little
METRIC_NAMES = {
    "agreement": "agreement with dense",
    "kl": "KL from dense, nats",
    "cosine": "cosine with dense",
    "overlap": "neighbours shared with dense",
}
DISTANCES = ("kl",)  # metrics that are no shares of 1, and better when lower
NOISE = 0.02  # a measured ratio this near to 1 means nothing, even on a quiet machine


def format_score(value: Number) -> str:
    """Write a score as the literature does: in hundredths, two decimals."""
    return f"{100 * value:.2f}"


def format_points(change: Number) -> str:
    """Write a change of a score in points (hundredths) with its sign."""
    text = f"{100 * change:+.2f}"
    return "0.00 points" if float(text) == 0 else f"{text} points"


def format_significant(value: Number, digits: int = 3) -> str:
    """Write at least `digits` significant digits, and never fewer than the whole part has: 1234, 12.3, 0.0123."""
    if value == 0:
        return "0"
    decimals = 0
    while abs(value) * 10**decimals < 10 ** (digits - 1) and decimals < 8:
        decimals += 1
    return f"{value:.{decimals}f}"


def noise(control: Number | None) -> float:
    """Return how far a ratio may be from 1 without meaning anything: as far as its A/A control is, at least 2 %."""
    if control is None:
        return NOISE
    return max(NOISE, abs(control - 1), abs(1 / control - 1))


def speed_verdict(ratio: Number, margin: Number) -> tuple[str, str]:
    """Return the words and the tone for a measured ratio dense / pruned."""
    if ratio >= 1 + margin:
        return f"{ratio:.2f}x faster", "good"
    if ratio <= 1 / (1 + margin):
        return f"{ratio:.2f}x: dense is faster here", "bad"
    return f"{ratio:.2f}x: no difference", "plain"


def format_seconds(seconds: Mapping[str, Number]) -> str:
    """Write how long each stage of a run took."""
    return ", ".join(f"{stage} {spent:.0f} s" for stage, spent in seconds.items())
