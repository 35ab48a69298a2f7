"""Embed rows of token ids outside the model's own forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel


def embeddings_of(model: PreTrainedModel) -> nn.Module:
    """What a text becomes before the first layer; of a translation model the words alone, which its decoder shares."""
    found: nn.Module | None = getattr(model.base_model, "embeddings", None)
    return model.get_input_embeddings() if found is None else found


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
