"""Dropout whose mask costs little on a CPU.

torch draws a CPU's mask one 53-bit number at a time, which takes more than a quarter of a training step of MiniLM at
128 tokens. 16 bits are plenty for a probability, and one 64-bit draw has four of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 1 << 16


def dropout_mask(like: Tensor, p: float) -> Tensor:
    """What dropout multiplies by, of `like`'s shape and dtype: 0 with probability `p` (to 1/65536), else 1 / (1 - p).

    Draws from torch's CPU generator, so a seed or a restored state gives the same mask.
    """
    dropped = round(p * _LEVELS)
    draws = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
    parts = draws.view(torch.int16)[: like.numel()].view(like.shape)
    # the comparison writes the dtype of the product: mixed dtypes leave the fast path of a CPU
    mask = torch.empty(like.shape, dtype=like.dtype)
    return torch.ge(parts, dropped - _LEVELS // 2, out=mask).mul_(_LEVELS / (_LEVELS - dropped))


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """`torch.nn.functional.dropout`, with a cheaper mask where `x` is on a CPU."""
    if not training or x.device.type != "cpu" or not 1 <= round(p * _LEVELS) < _LEVELS:
        return F.dropout(x, p, training)
    return x * dropout_mask(x, p)


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` by `dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """The input with a share `p` of its elements zeroed in training, the others scaled up."""
        return dropout(input, self.p, self.training)


def with_cheap_masks(module: nn.Module) -> None:
    """Replaces every dropout in a module by `Dropout`, in place; nothing else changes, least of all its parameters."""
    for name, child in module.named_children():
        if type(child) is nn.Dropout and not child.inplace:
            cheap = Dropout(child.p)
            cheap.train(child.training)
            setattr(module, name, cheap)
        else:
            with_cheap_masks(child)
