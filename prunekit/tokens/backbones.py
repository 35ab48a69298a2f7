"""Where each Hugging Face family keeps its layers, and how one of its layers splits into two halves.

A new family of the same make is one entry here. This file and attention.py alone know the insides of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.tokens.attention import AttentionCall
from prunekit.tokens.state import Signals

# a layer of Hugging Face: a module whose parts torch does not type
Attend = Callable[[Any, Tensor, AttentionCall], tuple[Tensor, Signals]]
FeedForward = Callable[[Any, Tensor], Tensor]


def _attend_bert(
    layer: Any, hidden: Float[Tensor, "batch tokens hidden"], call: AttentionCall
) -> tuple[Float[Tensor, "batch tokens hidden"], Signals]:
    attended, signals = layer.attention(hidden, None, pruning_call=call)
    return attended, signals


def _feed_forward_bert(
    layer: Any, attended: Float[Tensor, "batch tokens hidden"]
) -> Float[Tensor, "batch tokens hidden"]:
    return layer.feed_forward_chunk(attended)


def _attend_distilbert(
    layer: Any, hidden: Float[Tensor, "batch tokens hidden"], call: AttentionCall
) -> tuple[Float[Tensor, "batch tokens hidden"], Signals]:
    mixed, signals = layer.attention(hidden, attention_mask=None, pruning_call=call)
    return layer.sa_layer_norm(mixed + hidden), signals


def _feed_forward_distilbert(
    layer: Any, attended: Float[Tensor, "batch tokens hidden"]
) -> Float[Tensor, "batch tokens hidden"]:
    return layer.output_layer_norm(layer.ffn(attended) + attended)


@dataclass(frozen=True)
class Family:
    """A Hugging Face architecture: the name of the submodule that loops over `.layer`, and a layer's two halves."""

    encoder: str
    attend: Attend
    feed_forward: FeedForward


_BERT = Family("encoder", _attend_bert, _feed_forward_bert)
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": Family("transformer", _attend_distilbert, _feed_forward_distilbert),
}


def family_of(model: PreTrainedModel) -> Family:
    """The family of a Hugging Face model.

    Raises:
        ValueError: the architecture is not supported, or the model is a decoder.
    """
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise ValueError(
            f"{type(model).__name__} is of the family {kind!r}, which prunekit cannot prune; "
            f"supported are {', '.join(sorted(FAMILIES))}; add it in tokens/backbones.py or choose another backbone."
        )
    if getattr(model.config, "is_decoder", False):
        raise ValueError(
            f"{type(model).__name__} has is_decoder=True, but tokens can be removed from encoders only; "
            f"set is_decoder=False."
        )
    return FAMILIES[kind]
