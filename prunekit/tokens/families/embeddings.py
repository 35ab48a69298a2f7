"""Embeddings of token ids outside the model's own forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel


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

    The function holds a reference to the embeddings only, not to the model. Sentences must not contain the padding
    token.
    """
    base: Any = model.base_model
    embeddings, project = base.embeddings, getattr(base, "embeddings_project", None)
    # RoBERTa and its relatives start positions after the padding token's id
    first = getattr(embeddings, "padding_idx", -1) + 1
    has_types = hasattr(embeddings, "token_type_embeddings")

    def embed(
        ids: Int[Tensor, "rows"], types: Int[Tensor, "rows"] | None, places: Int[Tensor, "rows"]
    ) -> Float[Tensor, "rows hidden"]:
        type_ids = {"token_type_ids": (torch.zeros_like(ids) if types is None else types)[None]} if has_types else {}
        rows = embeddings(input_ids=ids[None], position_ids=places[None] + first, **type_ids)[0]
        return rows if project is None else project(rows)

    return embed


def most_tokens(model: PreTrainedModel) -> int:
    """Return the maximum number of tokens in a sentence, which is the number of positions."""
    base: Any = model.base_model
    return model.config.max_position_embeddings - getattr(base.embeddings, "padding_idx", -1) - 1
