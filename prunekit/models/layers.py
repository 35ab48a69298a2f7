"""Fewer layers: a model without some of them is an ordinary, smaller Hugging Face model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from prunekit.models.sizes import size_names
from prunekit.tokens.encoder import encoder_module
from prunekit.tokens.families.registry import family_of


def keep_layers(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Remove all layers of an encoder but these (0-based), in place, and return the model; its config counts them."""
    family, encoder = family_of(model), encoder_module(model)
    layers = getattr(encoder, family.layers)
    setattr(encoder, family.layers, nn.ModuleList(layers[number] for number in kept))
    setattr(model.config, size_names(model.config.model_type).layers, len(kept))
    return model


def middle_layers(layers: int, kept: int) -> tuple[int, ...]:
    """Return the middle layer of each of `kept` stretches of equal length.

    Source: the layers that sentence-transformers keeps in its example of distillation, 1, 4, 7 and 10 of 12.
    """
    return tuple((2 * number + 1) * layers // (2 * kept) for number in range(kept))
