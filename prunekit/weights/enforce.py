"""Fine-tuning that keeps zeros zero: momentum and weight decay would bring removed weights back.

LoRA stays an adapter: merging it into the weights would fill the zeros, which `check_zeros` finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from prunekit.weights.decoder import weight_of


class MaskEnforcer:
    """Puts the zeros back: at once, and after every step of an optimiser that it watches.

    `apply=False` leaves the weights as they are for now, to check them. An enforcer for adapters (LoRA) is made before
    they are put around the model, which renames its matrices.

    Raises:
        ValueError: a mask for a matrix that the model lacks, or of another shape.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Bool[Tensor, "_ _"]], *, apply: bool = True) -> None:
        modules = dict(model.named_modules())
        for name, mask in masks.items():
            there = modules.get(name)
            shape = tuple(weight_of(there).shape) if there is not None and hasattr(there, "weight") else None
            if shape != tuple(mask.shape):
                raise ValueError(
                    f"the mask of {name} has shape {tuple(mask.shape)}, the model has {shape or 'no such matrix'}; "
                    f"give the masks of this model."
                )
        self.pairs = [(name, modules[name], mask) for name, mask in masks.items()]
        if apply:
            self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Sets every removed weight to 0."""
        for _, module, mask in self.pairs:
            weight = weight_of(module)
            weight.masked_fill_(~mask.to(weight.device), 0)

    def watch(self, optimizer: torch.optim.Optimizer) -> Any:
        """Applies the masks after each of the optimiser's steps; the handle's `remove()` ends it."""
        return optimizer.register_step_post_hook(lambda *_: self.apply())

    def check_zeros(self) -> None:
        """Raises ValueError where a removed weight is not 0, as after a merge of LoRA; call it before saving."""
        for name, module, mask in self.pairs:
            weight = weight_of(module)
            back = int((weight[~mask.to(weight.device)] != 0).sum())
            if back:
                raise ValueError(
                    f"{back} removed weights of {name} are not 0 any more; apply the masks, "
                    f"and keep LoRA as an adapter instead of merging it."
                )
