"""Repair: adjust the kept weights to compensate for the removed ones, one column after the other.

Source: SparseGPT, arXiv:2301.00774, algorithm 1; the rule for one column is Optimal Brain Surgeon's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunekit.weights.importance import InverseFactor
from prunekit.weights.masks import Groups, keep_mask


@dataclass(frozen=True)
class SweepResult:
    """Weight after a sweep, its mask, and half the squared error of the layer's output under the damped Hessian."""

    weight: Float[Tensor, "outputs inputs"]
    keep: Bool[Tensor, "outputs inputs"]
    error: float


@torch.no_grad()
def obs_sweep(
    weight: Float[Tensor, "outputs inputs"],
    factor: InverseFactor,
    *,
    keep: Bool[Tensor, "outputs inputs"] | None = None,
    sparsity: float = 0.5,
    groups: Groups | None = None,
    block: int = 128,
) -> SweepResult:
    """Prune from the first column to the last; later columns compensate for what a column loses.

    With `keep` the mask is fixed, and the result does not depend on `block`. Without it each block of columns chooses
    its mask from the weights as updated so far: exactly floor(sparsity * size) of its weights are removed, or n of m
    are kept if `groups` is of kind "nm".
    """
    work = weight.detach().float().clone()
    work[:, factor.dead.bool()] = 0
    upper, inputs = factor.upper, work.shape[1]
    kept = torch.ones_like(work, dtype=torch.bool) if keep is None else keep.clone()
    nm = groups is not None and groups.kind == "nm"
    if nm and groups is not None:
        block = max(groups.of, block - block % groups.of)
    squared = 0.0
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        part, factor_part = work[:, start:end], upper[start:end, start:end]
        errors = torch.zeros_like(part)
        if keep is None and not nm:
            score = part.square() / factor_part.diagonal().square()
            kept[:, start:end] = keep_mask(score, sparsity, Groups("matrix"))
        for column in range(end - start):
            if keep is None and nm and groups is not None and column % groups.of == 0:
                ahead = slice(column, column + groups.of)
                score = part[:, ahead].square() / factor_part.diagonal()[ahead].square()
                kept[:, start + column : start + column + groups.of] = keep_mask(score, sparsity, groups)
            old = part[:, column].clone()
            lost = (old * ~kept[:, start + column]) / factor_part[column, column]
            part[:, column:] -= lost[:, None] * factor_part[column, column:][None]
            part[:, column] = old * kept[:, start + column]
            errors[:, column] = lost
        work[:, end:] -= errors @ upper[start:end, end:]
        squared += float(errors.double().square().sum())
    return SweepResult(work * kept, kept, squared / 2)
