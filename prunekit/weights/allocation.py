"""Allocation of sparsity: a sparsity for each matrix, so that together they reach the sparsity asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Allocation = Literal["uniform", "rank", "owl"]


def prunable_sparsity(sparsity: float, of: str, prunable: int, total: int) -> float:
    """Return the share of the prunable weights to remove; `sparsity` is a share of those that `of` names.

    `of` is "prunable" or "model", with `prunable` and `total` weights.

    Raises:
        ValueError: more weights would have to be removed than are prunable.
    """
    share = sparsity if of == "prunable" else sparsity * total / prunable
    if share > 1:
        raise ValueError(
            f"method.sparsity={sparsity:g} of the whole model would remove {share:.3g} of its prunable weights.\n"
            f"Allowed: up to {prunable / total:.3g} with method.sparsity_of=model, for this model.\n"
            "Ask for less, or set method.sparsity_of=prunable."
        )
    return share


def allocate_by_rank(
    sensitivity: Mapping[str, float], sizes: Mapping[str, int], sparsity: float, spread: float = 0.1
) -> dict[str, float]:
    """Return sparsities whose densities rise in equal steps with the rank of sensitivity.

    The densities range from 1 - s - spread to 1 - s + spread. Where matrices of different sizes would miss the total,
    all are shifted by the same amount.
    Source: arXiv:2310.09499, algorithm 1 (whose text calls the density sparsity).
    """
    order = sorted(sensitivity, key=lambda name: sensitivity[name])
    steps = max(1, len(order) - 1)
    wanted = {name: sparsity + spread - place * 2 * spread / steps for place, name in enumerate(order)}
    if len(order) == 1:
        wanted = dict.fromkeys(order, sparsity)
    return shift_to_total({name: wanted[name] for name in sensitivity}, sizes, sparsity)


def allocate_by_outliers(
    outliers: Mapping[str, float | int], sizes: Mapping[str, int], sparsity: float, spread: float = 0.08
) -> dict[str, float]:
    """Return lower sparsities for more outliers: outlier shares scaled to 0..2*spread, centred, and subtracted.

    Source: OWL, arXiv:2310.05175.
    """
    values = torch.tensor(list(outliers.values()), dtype=torch.float64)
    span = float(values.max() - values.min())
    scaled = (values - values.min()) / span * 2 * spread if span > 0 else torch.zeros_like(values)
    wanted = {name: float(sparsity - (v - scaled.mean())) for name, v in zip(outliers, scaled, strict=True)}
    return shift_to_total(wanted, sizes, sparsity)


def outlier_share(scores: list[Float[Tensor, "_ _"]], times: float | int = 5.0) -> float:
    """Return the share of a block's scores |w| * input norm that exceed `times` their mean."""
    total = sum(float(score.sum()) for score in scores)
    count = sum(score.numel() for score in scores)
    return sum(int((score > times * total / count).sum()) for score in scores) / count


def shift_to_total(wanted: Mapping[str, float], sizes: Mapping[str, int], sparsity: float) -> dict[str, float]:
    """Add one common shift to the wanted sparsities, clipped to 0..1, so that their weighted mean is `sparsity`."""
    total = sum(sizes[name] for name in wanted)

    def add(shift: float) -> dict[str, float]:
        return {name: min(1.0, max(0.0, value + shift)) for name, value in wanted.items()}

    def mean(sparsities: Mapping[str, float]) -> float:
        return sum(sparsities[name] * sizes[name] for name in sparsities) / total

    if abs(mean(add(0.0)) - sparsity) < 1e-9:
        return add(0.0)
    low, high = -1.0 - max(wanted.values()), 1.0 + max(wanted.values())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(add(middle)) < sparsity else (low, middle)
    return add((low + high) / 2)
