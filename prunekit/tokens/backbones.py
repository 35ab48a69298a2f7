"""Where each Hugging Face family keeps its layers, and how one of its layers splits into two halves.

A new family of the same make is one entry here. This file and attention.py alone know the insides of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.tokens.attention import AttentionCall
from prunekit.tokens.dropout import dropout
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


def _embed_t5(encoder: Any, input_ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens hidden"]:
    return encoder.dropout(encoder.embed_tokens(input_ids))


def _attend_t5(
    layer: Any, hidden: Float[Tensor, "batch tokens hidden"], call: AttentionCall
) -> tuple[Float[Tensor, "batch tokens hidden"], Signals]:
    # a bias that is given is not computed from contiguous positions; ours travels in the call
    given = call.relative if call.relative is not None else hidden.new_zeros(())
    attended, _, signals = layer.layer[0](hidden, position_bias=given, pruning_call=call)
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


@dataclass(frozen=True)
class LayerParts:
    """The modules of one layer, whatever its family calls them: what a runtime of its own is compiled from.

    hidden = attention_norm(output(attention(query, key, value)) + hidden), then norm(down(activation(up(x))) + x).
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    activation: Callable[[Tensor], Tensor]
    down: nn.Linear
    norm: nn.LayerNorm
    heads: int


def _parts_bert(layer: Any) -> LayerParts:
    own, behind, last = layer.attention.self, layer.attention.output, layer.output
    return LayerParts(
        own.query, own.key, own.value, behind.dense, behind.LayerNorm,
        layer.intermediate.dense, layer.intermediate.intermediate_act_fn, last.dense, last.LayerNorm,
        own.num_attention_heads,
    )  # fmt: skip


def _parts_distilbert(layer: Any) -> LayerParts:
    own, ffn = layer.attention, layer.ffn
    return LayerParts(
        own.q_lin, own.k_lin, own.v_lin, own.out_lin, layer.sa_layer_norm,
        ffn.lin1, ffn.activation, ffn.lin2, layer.output_layer_norm, own.n_heads,
    )  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A Hugging Face architecture: the submodule that loops over layers, what it calls them, and a layer's two halves.

    `relative` is what attention adds for distances, from the tokens' positions in the unpruned text. Where the encoder
    of a translation model embeds tokens itself, `embed` does that, with what is not a module of it named in `stock`;
    `finish` is what it does behind the last layer. `parts` takes a layer apart, None where nobody wrote that yet.
    """

    encoder: str
    attend: Attend
    feed_forward: FeedForward
    layers: str = "layer"
    relative: Callable[[nn.ModuleList, Tensor], Tensor] | None = None
    embed: Callable[[Any, Tensor], Tensor] | None = None
    finish: Callable[[Any, Tensor], Tensor] | None = None
    stock: tuple[str, ...] = ()
    parts: Callable[[Any], LayerParts] | None = None

    @property
    def translates(self) -> bool:
        """Whether a decoder reads what the encoder leaves."""
        return self.embed is not None


_BERT = Family("encoder", _attend_bert, _feed_forward_bert, parts=_parts_bert)
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": Family("transformer", _attend_distilbert, _feed_forward_distilbert, parts=_parts_distilbert),
    "marian": Family(
        "encoder",
        _attend_marian,
        _feed_forward_marian,
        layers="layers",
        embed=_embed_marian,
        stock=("embed_scale", "dropout"),
    ),
    "t5": Family(
        "encoder",
        _attend_t5,
        _feed_forward_t5,
        layers="block",
        relative=_relative_t5,
        embed=_embed_t5,
        finish=_finish_t5,
    ),
}


def embeddings_of(model: PreTrainedModel) -> nn.Module:
    """What a text becomes before the first layer; of a translation model the words alone, which its decoder shares."""
    found: nn.Module | None = getattr(model.base_model, "embeddings", None)
    return model.get_input_embeddings() if found is None else found


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


# ids, token types (None: all 0) and places in their own sentence, of rows that lie end to end -> their embeddings
EmbedRows = Callable[
    [Int[Tensor, "rows"], Int[Tensor, "rows"] | None, Int[Tensor, "rows"]], Float[Tensor, "rows hidden"]
]


def row_embedder(model: PreTrainedModel) -> EmbedRows:
    """What turns token ids into what enters the first layer, for rows instead of padded sentences.

    It holds on to the embeddings alone, not to the model. Sentences may not contain the padding token.
    """
    base: Any = model.base_model
    embeddings, project = base.embeddings, getattr(base, "embeddings_project", None)
    # RoBERTa and its kin count positions from behind the padding token's id
    first = getattr(embeddings, "padding_idx", -1) + 1
    typed = hasattr(embeddings, "token_type_embeddings")

    def embed(
        ids: Int[Tensor, "rows"], types: Int[Tensor, "rows"] | None, places: Int[Tensor, "rows"]
    ) -> Float[Tensor, "rows hidden"]:
        given = {"token_type_ids": (torch.zeros_like(ids) if types is None else types)[None]} if typed else {}
        rows = embeddings(input_ids=ids[None], position_ids=places[None] + first, **given)[0]
        return rows if project is None else project(rows)

    return embed


def most_tokens(model: PreTrainedModel) -> int:
    """How many tokens a sentence may have: as many as there are positions."""
    base: Any = model.base_model
    return model.config.max_position_embeddings - getattr(base.embeddings, "padding_idx", -1) - 1
