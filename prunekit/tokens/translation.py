"""A pruned encoder and the decoder that reads what is left of it: one forward pass, and generation.

The decoder is Hugging Face's own. Its cross-attention sees the survivors and nobody else; while gates are soft, each
token counts there by its gate, as it does in the encoder.
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
    """What is left of the sources behind a pruned encoder.

    Raises:
        TypeError: the model is no translation model that `install` prepared.
    """
    encoder = encoder_of(model)
    if not isinstance(encoder, TranslationEncoder):
        raise TypeError(f"{type(model).__name__} has no decoder; call the model itself.")
    return encoder.encode(input_ids, attention_mask, trace=trace, execution=execution, prune=prune, protected=protected)


def _cross_mask(left: Survivors) -> Tensor:
    """Mask of the cross-attention: 2-d and boolean where everybody counts in full, else additive, log keep."""
    keep = left.keep
    if bool(((keep == 0) | (keep == 1)).all()):
        return (keep > 0).long()
    bias = torch.where(keep > 0, keep, 1.0).log().to(left.hidden.dtype)
    return bias.masked_fill(keep <= 0, torch.finfo(bias.dtype).min)[:, None, None, :]


def forward(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "batch tokens"],
    attention_mask: Int[Tensor, "batch tokens"] | None = None,
    *,
    targets: Int[Tensor, "batch words"],
    **how: Any,
) -> Float[Tensor, "batch words vocabulary"]:
    """Logits of each word of the targets, given those before it; padding of `targets` is -100.

    `how` is that of `encode`.
    """
    left = encode(model, input_ids, attention_mask, **how)
    prepared: Any = model
    return prepared(
        encoder_outputs=BaseModelOutput(last_hidden_state=left.hidden),
        attention_mask=_cross_mask(left),
        decoder_input_ids=prepared.prepare_decoder_input_ids_from_labels(labels=targets),
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
    **how: Any,
) -> Int[Tensor, "batch words"]:
    """Translations by beam search; `how` is that of `encode`. The model's own settings hold for the rest."""
    left = encode(model, input_ids, attention_mask, **how)
    generator: Any = model
    return generator.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=left.hidden),
        attention_mask=_cross_mask(left),
        num_beams=beams,
        max_new_tokens=max_new_tokens,
        max_length=None,  # of the stored settings; two limits would be one too many
        do_sample=False,
    )
