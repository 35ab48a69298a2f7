"""A pruned encoder with Hugging Face's own decoder: one forward pass, and generation.

The decoder's cross-attention sees only the tokens that the encoder kept. While gates are soft, each token is weighted
there by its gate, as in the encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from prunekit.tokens.encoder import TranslationEncoder, encoder_of
from prunekit.tokens.layout import Survivors
from prunekit.tokens.state import Trace


def encode(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "batch tokens"],
    attention_mask: Int[Tensor, "batch tokens"] | None = None,
    *,
    trace: Trace | None = None,
    execution: str | None = None,
    prune: bool = True,
    protected: Bool[Tensor, "batch tokens"] | None = None,
) -> Survivors:
    """Encode the sources and return the tokens that the pruned encoder kept.

    Raises:
        TypeError: the model is not a translation model that `install` prepared.
    """
    encoder = encoder_of(model)
    if not isinstance(encoder, TranslationEncoder):
        raise TypeError(f"{type(model).__name__} has no decoder; call the model itself.")
    return encoder.encode(input_ids, attention_mask, trace=trace, execution=execution, prune=prune, protected=protected)


def _cross_mask(source: Survivors) -> Tensor:
    """Return the mask of the cross-attention: 2-d with 0 and 1 if keep is binary, else 4-d and additive, log keep."""
    keep = source.keep
    if bool(((keep == 0) | (keep == 1)).all()):
        return (keep > 0).long()
    bias = torch.where(keep > 0, keep, 1.0).log().to(source.hidden.dtype)
    return bias.masked_fill(keep <= 0, torch.finfo(bias.dtype).min)[:, None, None, :]


def forward(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "batch tokens"],
    attention_mask: Int[Tensor, "batch tokens"] | None = None,
    *,
    targets: Int[Tensor, "batch words"],
    trace: Trace | None = None,
    execution: str | None = None,
    prune: bool = True,
    protected: Bool[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, "batch words vocabulary"]:
    """Return the logits of each target word given the words before it; padding of `targets` is -100.

    Other arguments as in `encode`.
    """
    source = encode(
        model, input_ids, attention_mask, trace=trace, execution=execution, prune=prune, protected=protected
    )
    translator: Any = model
    return translator(
        encoder_outputs=BaseModelOutput(last_hidden_state=source.hidden),
        attention_mask=_cross_mask(source),
        decoder_input_ids=translator.prepare_decoder_input_ids_from_labels(labels=targets),
        use_cache=False,
    ).logits


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "batch tokens"],
    attention_mask: Int[Tensor, "batch tokens"] | None = None,
    *,
    beams: int = 4,
    max_new_tokens: int = 128,
    trace: Trace | None = None,
    execution: str | None = None,
    prune: bool = True,
    protected: Bool[Tensor, "batch tokens"] | None = None,
) -> Int[Tensor, "batch words"]:
    """Translate by beam search; other arguments as in `encode`.

    Everything else follows the model's own generation settings.
    """
    source = encode(
        model, input_ids, attention_mask, trace=trace, execution=execution, prune=prune, protected=protected
    )
    translator: Any = model
    return translator.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=source.hidden),
        attention_mask=_cross_mask(source),
        num_beams=beams,
        max_new_tokens=max_new_tokens,
        max_length=None,  # overrides the stored setting, so that max_new_tokens is the only limit
        do_sample=False,
    )
