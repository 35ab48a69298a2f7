"""Marian: the encoder of a translation model, with sinusoidal positions."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from prunekit.tokens.attention import AttentionCall
from prunekit.tokens.dropout import dropout
from prunekit.tokens.state import Signals


def _embed_marian(encoder: Any, input_ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens hidden"]:
    embedded = encoder.embed_tokens(input_ids) * encoder.stock["embed_scale"]
    embedded = embedded + encoder.embed_positions(input_ids.shape)
    return dropout(embedded, encoder.stock["dropout"], encoder.training)


def _attend_marian(
    layer: Any, hidden: Float[Tensor, "batch tokens hidden"], call: AttentionCall
) -> tuple[Float[Tensor, "batch tokens hidden"], Signals]:
    mixed, signals = layer.self_attn(hidden, attention_mask=None, pruning_call=call)
    return layer.self_attn_layer_norm(hidden + dropout(mixed, layer.dropout, layer.training)), signals


def _feed_forward_marian(
    layer: Any, attended: Float[Tensor, "batch tokens hidden"]
) -> Float[Tensor, "batch tokens hidden"]:
    inner = dropout(layer.activation_fn(layer.fc1(attended)), layer.activation_dropout, layer.training)
    return layer.final_layer_norm(attended + dropout(layer.fc2(inner), layer.dropout, layer.training))
