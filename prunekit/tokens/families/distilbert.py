"""DistilBERT: post-norm layers with one module for the feed-forward block."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from prunekit.tokens.attention import AttentionCall
from prunekit.tokens.families.base import LayerParts
from prunekit.tokens.state import Signals


def _attend_distilbert(
    layer: Any, hidden: Float[Tensor, "batch tokens hidden"], call: AttentionCall
) -> tuple[Float[Tensor, "batch tokens hidden"], Signals]:
    mixed, signals = layer.attention(hidden, attention_mask=None, pruning_call=call)
    return layer.sa_layer_norm(mixed + hidden), signals


def _feed_forward_distilbert(
    layer: Any, attended: Float[Tensor, "batch tokens hidden"]
) -> Float[Tensor, "batch tokens hidden"]:
    return layer.output_layer_norm(layer.ffn(attended) + attended)


def _parts_distilbert(layer: Any) -> LayerParts:
    attention, ffn = layer.attention, layer.ffn
    return LayerParts(
        attention.q_lin, attention.k_lin, attention.v_lin, attention.out_lin, layer.sa_layer_norm,
        ffn.lin1, ffn.activation, ffn.lin2, layer.output_layer_norm, attention.n_heads,
    )  # fmt: skip
