"""Choose which weights to keep: exactly the number the sparsity implies per group, highest scores first.

Among equal scores the lower index is removed first. A mask is True for kept weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

GroupKind = Literal["matrix", "column_block", "row", "nm", "global"]


@dataclass(frozen=True)
class Groups:
    """Groups of weights that compete with each other.

    matrix: all weights of a matrix. column_block: all rows of adjacent columns, in `n_blocks` blocks or in blocks of
    `width` columns; the last may be narrower. row: the weights of one output. nm: `keep` of every `of` neighbours in a
    row. global: all matrices, of which each loses at most `max_sparsity`.
    """

    kind: GroupKind = "column_block"
    n_blocks: int = 32
    width: int | None = None
    keep: int = 2
    of: int = 4
    max_sparsity: float = 0.9

    def columns(self, inputs: int) -> int:
        """Return the width of a column block in a matrix with this many inputs."""
        return min(inputs, self.width or math.ceil(inputs / self.n_blocks))


def removed_count(sparsity: float, size: int) -> int:
    """Return floor(sparsity * size), robust to the rounding of binary fractions.

    Raises:
        ValueError: a sparsity outside 0..1.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity {sparsity:g} is out of range; give a share of the weights from 0 to 1.")
    return math.floor(sparsity * size + 1e-6)


def keep_mask(
    score: Float[Tensor, "outputs inputs"], sparsity: float, groups: Groups = Groups()
) -> Bool[Tensor, "outputs inputs"]:
    """Return the mask of one matrix, True = kept.

    Raises:
        ValueError: NaN scores; a sparsity that is out of range or not that of n:m; a number of inputs that m does not
            divide; groups over several matrices (see `keep_masks`).
    """
    _check_not_nan(score)
    inputs = score.shape[1]
    if groups.kind == "global":
        raise ValueError("global groups span all matrices; use keep_masks.")
    if groups.kind == "nm":
        return _keep_n_of_m(score, sparsity, groups)
    if groups.kind == "row":
        return _keep_highest(score, removed_count(sparsity, inputs))
    if groups.kind == "matrix":
        return _keep_highest(score.reshape(1, -1), removed_count(sparsity, score.numel())).reshape(score.shape)
    parts = []
    for block in score.split(groups.columns(inputs), dim=1):
        flat = block.reshape(1, -1)
        parts.append(_keep_highest(flat, removed_count(sparsity, flat.numel())).reshape(block.shape))
    return torch.cat(parts, dim=1)


def keep_masks(
    scores: Mapping[str, Float[Tensor, "_ _"]], sparsity: Mapping[str, float], groups: Groups = Groups()
) -> dict[str, Bool[Tensor, "_ _"]]:
    """Return the masks of all matrices; `sparsity` is per matrix, and under global groups only sets the total.

    Under global groups scores are divided by their matrix's mean, so that matrices of different scales are comparable.

    Raises:
        ValueError: as in `keep_mask`; a total that the cap of global groups does not allow.
    """
    if groups.kind != "global":
        return {name: keep_mask(score, sparsity[name], groups) for name, score in scores.items()}
    total = sum(sparsity[name] * score.numel() for name, score in scores.items())
    count = sum(score.numel() for score in scores.values())
    most = sum(removed_count(groups.max_sparsity, score.numel()) for score in scores.values())
    if total > groups.max_sparsity * count + 1e-6 or removed_count(total / count, count) > most:
        raise ValueError(
            f"sparsity {total / count:.3g} is more than max_sparsity={groups.max_sparsity:g} per matrix allows; "
            f"ask for less, or raise method.granularity.max_sparsity."
        )
    flat = []
    for score in scores.values():
        _check_not_nan(score)
        mean = score.mean()
        scaled = (score / mean if float(mean) > 0 else score).reshape(-1).clone()
        protected = _keep_highest(scaled[None], removed_count(groups.max_sparsity, scaled.numel()))[0]
        scaled[protected] = torch.inf  # always kept, because of the cap
        flat.append(scaled)
    kept = _keep_highest(torch.cat(flat)[None], removed_count(total / count, count))[0]
    parts = kept.split([len(scaled) for scaled in flat])
    return {name: part.reshape(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def _check_not_nan(score: Tensor) -> None:
    if score.isnan().any():
        raise ValueError(f"{int(score.isnan().sum())} of {score.numel()} scores are NaN; check the calibration.")


def _keep_highest(score: Float[Tensor, "groups size"], remove: int) -> Bool[Tensor, "groups size"]:
    """Return True for all but the `remove` lowest of each group; among equals the lower index is removed first."""
    if remove == 0:
        return torch.ones_like(score, dtype=torch.bool)
    last = score.kthvalue(remove, dim=1, keepdim=True).values
    below, equal = score < last, score == last
    missing = remove - below.sum(1, keepdim=True)
    return ~(below | (equal & (equal.cumsum(1) <= missing)))


def _keep_n_of_m(score: Tensor, sparsity: float, groups: Groups) -> Tensor:
    outputs, inputs = score.shape
    if abs(sparsity - (1 - groups.keep / groups.of)) > 1e-6:
        raise ValueError(
            f"{groups.keep}:{groups.of} has sparsity {1 - groups.keep / groups.of:g}, not {sparsity:g}; "
            f"set method.sparsity={1 - groups.keep / groups.of:g}, or choose other groups."
        )
    if inputs % groups.of:
        raise ValueError(
            f"{groups.keep}:{groups.of} needs a number of inputs that {groups.of} divides, but a matrix has {inputs}; "
            f"choose other groups, or leave that matrix out with method.scope."
        )
    return _keep_highest(score.reshape(-1, groups.of), groups.of - groups.keep).reshape(outputs, inputs)


def is_nm(mask: Bool[Tensor, "outputs inputs"], keep: int = 2, of: int = 4) -> bool:
    """Check whether at most `keep` of every `of` neighbours in a row are kept."""
    return mask.shape[1] % of == 0 and bool((mask.reshape(-1, of).sum(1) <= keep).all())
