"""Fine-tuning that keeps removed weights at 0, where momentum and weight decay would change them again.

LoRA has to remain an adapter: merging it into the weights would fill the zeros, which `check_zeros` detects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from prunekit.weights.decoder import weight_of


class MaskEnforcer:
    """Masks that set removed weights to 0: at once, and after every step of an optimiser that it watches.

    `apply=False` leaves the weights unchanged at first, so that they can be checked. With adapters (LoRA), build the
    enforcer before they are wrapped around the model, because wrapping renames its matrices.

    Raises:
        ValueError: a mask for a matrix that the model does not have, or of another shape.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Bool[Tensor, "_ _"]], *, apply: bool = True) -> None:
        modules = dict(model.named_modules())
        for name, mask in masks.items():
            module = modules.get(name)
            shape = tuple(weight_of(module).shape) if module is not None and hasattr(module, "weight") else None
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
        """Set every removed weight to 0, in place."""
        for _, module, mask in self.pairs:
            weight = weight_of(module)
            weight.masked_fill_(~mask.to(weight.device), 0)

    def watch(self, optimizer: torch.optim.Optimizer) -> Any:
        """Apply the masks after each step of the optimiser; returns a handle whose `remove()` stops this."""
        return optimizer.register_step_post_hook(lambda *_: self.apply())

    def check_zeros(self) -> None:
        """Check that every removed weight is 0; call it before saving.

        Raises:
            ValueError: one is not, for example after LoRA was merged.
        """
        for name, module, mask in self.pairs:
            weight = weight_of(module)
            nonzero = int((weight[~mask.to(weight.device)] != 0).sum())
            if nonzero:
                raise ValueError(
                    f"{nonzero} removed weights of {name} are no longer 0; apply the masks, "
                    f"and keep LoRA as an adapter instead of merging it."
                )
