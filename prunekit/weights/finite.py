"""Whether tensors hold numbers alone: no NaN and no infinity."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor


def is_finite(tensor: Float[Tensor, "..."]) -> bool:
    """Check whether all values are finite; torch.isfinite would take twice the tensor's memory."""
    if not tensor.numel():
        return True
    view = tensor if tensor.is_contiguous() or tensor.ndim < 2 else tensor.mT  # factors are stored by columns
    return bool(torch.isfinite(torch.stack(view.aminmax())).all())


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return what the first tensor that is not finite holds, and its name, as "NaN in a.weight"; None if all are."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not is_finite(tensor):
            return f"{'NaN' if tensor.isnan().any() else 'an infinity'} in {name}"
    return None
