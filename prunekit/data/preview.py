"""Numbers of a task's data to look at before training: balance, lengths, unknown tokens, repetitions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from prunekit.data.encoding import EncodedSplit
from prunekit.data.rows import Rows
from prunekit.data.splitting import distinct

BINS = 8  # of a histogram
BAR = 40  # characters of its longest bar


@dataclass(frozen=True)
class Lengths:
    """Tokens of the texts of a split, special ones included, and the share of texts that are cut."""

    mean: float
    median: int
    q95: int
    longest: int
    cut: float

    @classmethod
    def of(cls, split: EncodedSplit) -> Lengths:
        """Return those of a split."""
        tokens = split.lengths.numpy()
        median, q95 = (int(value) for value in np.quantile(tokens, (0.5, 0.95), method="higher"))
        return cls(float(tokens.mean()), median, q95, int(tokens.max()), split.truncated / len(split))


def class_shares(rows: Rows[Any], names: Sequence[str], *, of_words: bool = False) -> dict[str, float]:
    """Return the share of rows of each class, by name, the most frequent first; a row may have several or none.

    Where each word of a row has a label (`of_words`), the share is of all words.
    """
    several = (label if isinstance(label, tuple) else (label,) for label in rows.labels)
    counts = Counter(chain.from_iterable(several))
    total = counts.total() if of_words else len(rows)
    shares = {name: counts.get(number, 0) / total for number, name in enumerate(names)}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def histogram(lengths: Sequence[int] | np.ndarray, bins: int = BINS) -> list[tuple[int, int, float]]:
    """Return (first length, last length, share of texts) per bin, of equal width, from the shortest to the longest."""
    low, high = int(min(lengths)), int(max(lengths))
    width = -(-(high - low + 1) // bins)
    counts = np.bincount((np.asarray(lengths) - low) // width)
    last = (high - low) // width
    return [
        (low + place * width, min(low + (place + 1) * width - 1, high), float(counts[place]) / len(lengths))
        for place in range(last + 1)
    ]


def draw(bins: Sequence[tuple[int, int, float]]) -> list[str]:
    """Return a histogram as lines."""
    most = max(share for _, _, share in bins)
    wide = max(len(f"{low}-{high}") for low, high, _ in bins)
    return [
        f"{f'{low}-{high}':>{wide}} {'#' * round(BAR * share / most):{BAR}} {100 * share:5.1f} %"
        for low, high, share in bins
    ]


def repeated(rows: Rows[Any]) -> int:
    """Return how many rows have the same texts as an earlier one."""
    return len(rows) - distinct(rows.content_hashes)


def warnings(
    splits: Mapping[str, Rows[Any]], names: Sequence[str] | None, lengths: Lengths, max_length: int
) -> list[str]:
    """Return what is likely to go wrong with this data, each with what to do about it.

    `names` are the classes of texts; None where texts have values, or their words the classes.
    """
    train, found = splits["train"], []
    if names:
        shares = class_shares(train, names)
        rarest = min(shares, key=lambda name: shares[name])
        if shares[rarest] * len(train) < 20:
            found.append(f"class {rarest} has {round(shares[rarest] * len(train))} training rows; give 20 or more")
        if max(shares.values()) > 5 * min(shares.values()):
            found.append(f"classes are unequal: accuracy hides {rarest}; look at task.metrics=[macro_f1]")
    if lengths.cut > 0.05:
        found.append(f"{100 * lengths.cut:.0f} % of the texts are cut at {max_length} tokens; raise task.max_length")
    if lengths.q95 < max_length / 2:
        found.append(f"95 % of the texts have at most {lengths.q95} tokens; task.max_length={max_length} is not needed")
    if lengths.mean < 16:
        found.append(f"texts of {lengths.mean:.0f} tokens leave little to prune")
    if double := repeated(train):
        found.append(f"{double} training rows repeat the texts of others")
    return found
