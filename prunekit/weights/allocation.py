"""How much each matrix loses, so that together they lose what was asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Allocation = Literal["uniform", "rank", "owl"]


def prunable_sparsity(sparsity: float, of: str, prunable: int, total: int) -> float:
    """The share of the prunable weights that has to go; `of` says whose share `sparsity` is, prunable or model.

    Raises:
        ValueError: more would have to go than is prunable.
    """
    found = sparsity if of == "prunable" else sparsity * total / prunable
    if found > 1:
        raise ValueError(
            f"method.sparsity={sparsity:g} of the whole model would take {found:.3g} of its prunable weights.\n"
            f"Allowed: up to {prunable / total:.3g} with method.sparsity_of=model, here.\n"
            "Ask for less, or set method.sparsity_of=prunable."
        )
    return found


def by_rank(
    sensitivity: Mapping[str, float], sizes: Mapping[str, int], sparsity: float, spread: float = 0.1
) -> dict[str, float]:
    """Densities rise in equal steps from 1 - s - spread to 1 - s + spread with the rank of sensitivity.

    Source: arXiv:2310.09499, algorithm 1 (whose text calls the density sparsity). Shifted together where matrices of
    different sizes would miss the total.
    """
    order = sorted(sensitivity, key=lambda name: sensitivity[name])
    steps = max(1, len(order) - 1)
    wanted = {name: sparsity + spread - place * 2 * spread / steps for place, name in enumerate(order)}
    if len(order) == 1:
        wanted = dict.fromkeys(order, sparsity)
    return shifted({name: wanted[name] for name in sensitivity}, sizes, sparsity)


def by_outliers(
    outliers: Mapping[str, float | int], sizes: Mapping[str, int], sparsity: float, spread: float = 0.08
) -> dict[str, float]:
    """Who has more outliers loses less: outlier shares scaled to 0..2*spread, centred, and subtracted.

    Source: OWL, arXiv:2310.05175.
    """
    values = torch.tensor(list(outliers.values()), dtype=torch.float64)
    span = float(values.max() - values.min())
    scaled = (values - values.min()) / span * 2 * spread if span > 0 else torch.zeros_like(values)
    wanted = {name: float(sparsity - (v - scaled.mean())) for name, v in zip(outliers, scaled, strict=True)}
    return shifted(wanted, sizes, sparsity)


def outlier_share(scores: list[Float[Tensor, "_ _"]], times: float | int = 5.0) -> float:
    """Share of a block's scores |w| * input norm that exceed `times` their mean."""
    total = sum(float(score.sum()) for score in scores)
    count = sum(score.numel() for score in scores)
    return sum(int((score > times * total / count).sum()) for score in scores) / count


def shifted(wanted: Mapping[str, float], sizes: Mapping[str, int], sparsity: float) -> dict[str, float]:
    """The wanted sparsities plus one common shift, cut to 0..1, so that together they make `sparsity`."""
    total = sum(sizes[name] for name in wanted)

    def made(shift: float) -> dict[str, float]:
        return {name: min(1.0, max(0.0, value + shift)) for name, value in wanted.items()}

    def mean(found: Mapping[str, float]) -> float:
        return sum(found[name] * sizes[name] for name in found) / total

    if abs(mean(made(0.0)) - sparsity) < 1e-9:
        return made(0.0)
    low, high = -1.0 - max(wanted.values()), 1.0 + max(wanted.values())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(made(middle)) < sparsity else (low, middle)
    return made((low + high) / 2)
