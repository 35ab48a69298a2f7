"""Bands of text lengths: the texts that a run is trained on, and the groups by which its test is reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from prunekit.config.domains import length_quantile
from prunekit.config.errors import shown
from prunekit.data.errors import DataError


@dataclass(frozen=True)
class Band:
    """Texts of at least `low` and fewer than `high` tokens, special ones included."""

    low: int
    high: int

    def __contains__(self, length: int) -> bool:
        return self.low <= length < self.high

    def mask(self, lengths: Int[Tensor, "rows"]) -> Bool[Tensor, "rows"]:
        """Return which rows are in it."""
        return (lengths >= self.low) & (lengths < self.high)


def resolve(key: str, ends: Sequence[int | str], lengths: Int[Tensor, "rows"], max_length: int) -> list[Band]:
    """Return the bands between neighbouring ends; quantiles are those of `lengths`, `max` takes in the longest text.

    A quantile q is the smallest number of tokens with a share q of the texts below it, so [0, median) is the shorter
    half, without the texts that are as long as the median.

    Raises:
        DataError: an end is not longer than the one before it; `key` is the message's name for the ends.
    """
    tokens = [_token_count(end, lengths, max_length) for end in ends]
    for (first, low), (second, high) in pairwise(zip(ends, tokens, strict=True)):
        if low >= high:
            raise DataError(
                f"{key}={shown(list(ends))}: no text can be between {shown(first)} ({low} tokens) and {shown(second)} "
                f"({high}).\n"
                f"Allowed: rising lengths; training texts have {int(lengths.min())} to {int(lengths.max())} tokens, "
                f"median {_token_count('median', lengths, max_length)}.\n"
                "Choose ends further apart, or a larger task.max_length if texts are cut."
            )
    return [Band(low, high) for low, high in pairwise(tokens)]


def _token_count(end: int | str, lengths: Int[Tensor, "rows"], max_length: int) -> int:
    share = length_quantile(end)
    if share is None:
        return int(end)
    if share == 1.0:
        return max_length + 1
    # rounded up: texts exactly as long as the quantile are not below it
    return int(np.ceil(np.quantile(lengths.numpy(), share)))


def rows_between(key: str, split: str, lengths: Int[Tensor, "rows"], bands: Sequence[Band]) -> list[int]:
    """Return the numbers of the rows in one of the bands, rising.

    Raises:
        DataError: a band is empty in this split; `key` is the message's name for the bands.
    """
    for band in bands:
        if not band.mask(lengths).any():
            raise DataError(
                f"{key}: no text of {split} has {band.low} to {band.high - 1} tokens, so a band is empty.\n"
                f"Allowed: bands with texts; those of {split} have {int(lengths.min())} to {int(lengths.max())}.\n"
                "Move the ends, or leave this band out."
            )
    return torch.stack([band.mask(lengths) for band in bands]).any(0).nonzero().flatten().tolist()
