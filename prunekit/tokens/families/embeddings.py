"""Embeddings of token ids outside the model's own forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.tokens.families.positions import AFTER_PADDING, count_positions


def embeddings_of(model: PreTrainedModel) -> nn.Module:
    """Return the embedding module; for a translation model only the word embeddings, which its decoder shares."""
    embeddings: nn.Module | None = getattr(model.base_model, "embeddings", None)
    return model.get_input_embeddings() if embeddings is None else embeddings


# packed rows: token ids, token types (None: all 0) and positions in their sentence -> embeddings
EmbedRows = Callable[
    [Int[Tensor, "rows"], Int[Tensor, "rows"] | None, Int[Tensor, "rows"]], Float[Tensor, "rows hidden"]
]


def row_embedder(model: PreTrainedModel) -> EmbedRows:
    """Return a function that embeds packed rows of token ids as the input of the first layer.

    The function holds a reference to the embeddings only, not to the model.
    """
    base: Any = model.base_model
    embeddings, project = base.embeddings, getattr(base, "embeddings_project", None)
    padding = embeddings.padding_idx if model.config.model_type in AFTER_PADDING else None
    has_types = hasattr(embeddings, "token_type_embeddings")

    def embed(
        ids: Int[Tensor, "rows"], types: Int[Tensor, "rows"] | None, places: Int[Tensor, "rows"]
    ) -> Float[Tensor, "rows hidden"]:
        type_ids = {"token_type_ids": (torch.zeros_like(ids) if types is None else types)[None]} if has_types else {}
        positions = places if padding is None else _positions_after_padding(ids, places, padding)
        rows = embeddings(input_ids=ids[None], position_ids=positions[None], **type_ids)[0]
        return rows if project is None else project(rows)

    return embed


def _positions_after_padding(
    ids: Int[Tensor, "rows"], places: Int[Tensor, "rows"], padding: int
) -> Int[Tensor, "rows"]:
    """Return the positions of packed rows: each counts the tokens up to it in its sentence that are not padding."""
    counted = (ids != padding).long()
    total = counted.cumsum(0)
    start = torch.arange(len(ids), device=ids.device) - places
    before = (total - counted).index_select(0, start)
    return (total - before) * counted + padding


def most_tokens(config: Any) -> int | None:
    """Return the maximum number of tokens in a sentence, which is that of positions; None where they are relative."""
    positions = getattr(config, "max_position_embeddings", None)
    return count_positions(config.model_type, positions, config.pad_token_id)
