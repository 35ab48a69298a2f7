"""T5: pre-norm layers whose relative positions are a bias on the attention logits."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from prunekit.tokens.attention import AttentionCall
from prunekit.tokens.state import Signals


def _embed_t5(encoder: Any, input_ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens hidden"]:
    return encoder.dropout(encoder.embed_tokens(input_ids))


def _attend_t5(
    layer: Any, hidden: Float[Tensor, "batch tokens hidden"], call: AttentionCall
) -> tuple[Float[Tensor, "batch tokens hidden"], Signals]:
    # giving a bias keeps T5 from computing one for contiguous positions; the actual bias is in `call`
    bias = call.relative if call.relative is not None else hidden.new_zeros(())
    attended, _, signals = layer.layer[0](hidden, position_bias=bias, pruning_call=call)
    return attended, signals


def _feed_forward_t5(
    layer: Any, attended: Float[Tensor, "batch tokens hidden"]
) -> Float[Tensor, "batch tokens hidden"]:
    return layer.layer[-1](attended)


def _finish_t5(encoder: Any, hidden: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens hidden"]:
    return encoder.dropout(encoder.final_layer_norm(hidden))


def _relative_t5(
    layers: nn.ModuleList, position: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch heads tokens tokens"]:
    first: Any = layers[0]
    attention = first.layer[0].SelfAttention
    distance = position[:, None, :] - position[:, :, None]
    bucket = attention._relative_position_bucket(
        distance,
        bidirectional=True,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    return attention.relative_attention_bias(bucket).permute(0, 3, 1, 2)
