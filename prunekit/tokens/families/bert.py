"""BERT, RoBERTa, XLM-RoBERTa, CamemBERT and ELECTRA: post-norm layers with separate query, key and value."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from prunekit.tokens.attention import AttentionCall
from prunekit.tokens.families.base import Family, LayerParts
from prunekit.tokens.state import Signals


def _attend_bert(
    layer: Any, hidden: Float[Tensor, "batch tokens hidden"], call: AttentionCall
) -> tuple[Float[Tensor, "batch tokens hidden"], Signals]:
    attended, signals = layer.attention(hidden, None, pruning_call=call)
    return attended, signals


def _feed_forward_bert(
    layer: Any, attended: Float[Tensor, "batch tokens hidden"]
) -> Float[Tensor, "batch tokens hidden"]:
    return layer.feed_forward_chunk(attended)


def _parts_bert(layer: Any) -> LayerParts:
    attention, output = layer.attention.self, layer.attention.output
    return LayerParts(
        attention.query, attention.key, attention.value, output.dense, output.LayerNorm,
        layer.intermediate.dense, layer.intermediate.intermediate_act_fn, layer.output.dense, layer.output.LayerNorm,
        attention.num_attention_heads,
    )  # fmt: skip


_BERT = Family("encoder", _attend_bert, _feed_forward_bert, parts=_parts_bert)
