"""Dropout with a mask that is cheap to draw on a CPU.

On a CPU torch draws one 53-bit number per element, which takes more than a quarter of a training step of MiniLM at
128 tokens. 16 bits are plenty for a probability, and one 64-bit draw provides four of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 1 << 16


def dropout_mask(like: Tensor, p: float) -> Tensor:
    """Draw the factors of dropout, in `like`'s shape and dtype: 0 with probability `p` (to 1/65536), else 1 / (1 - p).

    Draws from torch's CPU generator, so a seed or a restored state reproduces the mask.
    """
    dropped = round(p * _LEVELS)
    draws = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
    parts = draws.view(torch.int16)[: like.numel()].view(like.shape)
    # the comparison writes the product's dtype: mixed dtypes miss the CPU's fast path
    mask = torch.empty(like.shape, dtype=like.dtype)
    return torch.ge(parts, dropped - _LEVELS // 2, out=mask).mul_(_LEVELS / (_LEVELS - dropped))


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Apply dropout as `torch.nn.functional.dropout` does, with a cheaper mask where `x` is on a CPU."""
    if not training or x.device.type != "cpu" or not 1 <= round(p * _LEVELS) < _LEVELS:
        return F.dropout(x, p, training)
    return x * dropout_mask(x, p)


class Dropout(nn.Dropout):
    """Drop-in replacement for `torch.nn.Dropout` that uses the cheaper mask."""

    def forward(self, input: Tensor) -> Tensor:
        """Zero a share `p` of the elements and scale up the others; outside training return the input unchanged."""
        return dropout(input, self.p, self.training)


def replace_dropout(module: nn.Module) -> None:
    """Replace every `torch.nn.Dropout` in a module by `Dropout`, in place; parameters and everything else stay."""
    for name, child in module.named_children():
        if type(child) is nn.Dropout and not child.inplace:
            cheap = Dropout(child.p)
            cheap.train(child.training)
            setattr(module, name, cheap)
        else:
            replace_dropout(child)
