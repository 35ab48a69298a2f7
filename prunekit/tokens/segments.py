"""Models that protect the first of two texts, such as the query of a reranker: the encoder is told which tokens it has.

The encoder sees no token ids, by which the texts are told apart, so the model marks the tokens at every call.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel


def first_segment(ids: Int[Tensor, "batch tokens"], separator: int) -> Bool[Tensor, "batch tokens"]:
    """Return the tokens before the second text: [CLS], the first text, and the separators between the two.

    `separator` is the token that ends a text, as [SEP]; RoBERTa has two of it between texts. Of a text alone all tokens
    are the first segment. Padding on the right is none of it.
    """
    ends = ids == separator
    has_ended = ends.long().cumsum(1) > 0
    return (has_ended & ~ends).long().cumsum(1) == 0


def forward_protecting(
    model: PreTrainedModel,
    separator: int,
    input_ids: Int[Tensor, "batch tokens"] | None = None,
    *args: Any,
    protected: Bool[Tensor, "batch tokens"] | None = None,
    **more: Any,
) -> Any:
    """Run a model that protects the first segment of what it reads, unless the caller says what is `protected`."""
    if protected is None and input_ids is not None:
        protected = first_segment(input_ids, separator)
    return type(model).forward(model, input_ids, *args, protected=protected, **more)
