"""Run a model that carries the encoder, whatever its head: one tensor of logits, or the encoder alone."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import (
    PreTrainedModel,
)

from prunekit.losses import PADDING
from prunekit.models.heads import Batch, logits_of
from prunekit.tokens import translation
from prunekit.tokens.families.registry import family_of
from prunekit.tokens.state import Execution, Trace

NON_MODEL_KEYS = ("labels", "index", "example", "spans")


def model_inputs(batch: Batch) -> dict[str, Tensor]:
    """The part of a batch that the encoder sees: neither labels nor what says which rows these are."""
    return {name: tensor for name, tensor in batch.items() if name not in NON_MODEL_KEYS}


def decodes(model: PreTrainedModel) -> bool:
    """Whether a decoder stands behind the encoder."""
    return family_of(model).has_decoder


def forward_logits(
    model: PreTrainedModel, batch: Batch, execution: Execution, trace: Trace | None = None
) -> Float[Tensor, "decisions outputs"] | Float[Tensor, "batch tokens 2"]:
    """The logits of a model that carries the traversal, whatever its head.

    Of a translation they have a row per word of the targets, `labels`, which the decoder is given up to that word.
    """
    inputs: dict[str, Any] = model_inputs(batch)
    if not decodes(model):
        return logits_of(model(**inputs, execution=execution, trace=trace), batch)
    targets = batch["labels"]
    return translation.forward(model, **inputs, targets=targets, execution=execution, trace=trace)[targets != PADDING]


def run_encoder(model: PreTrainedModel, batch: Batch, execution: Execution, **how: Any) -> None:
    """Runs as much as a trace needs, or a clock of what is pruned: the encoder, with a head that costs nothing.

    `how` is `trace` and `prune`, as the traversal takes them.
    """
    inputs: dict[str, Any] = model_inputs(batch)
    if decodes(model):
        translation.encode(model, **inputs, execution=execution, **how)
    else:
        model(**inputs, execution=execution, **how)


def run_stock_encoder(model: PreTrainedModel, batch: Batch) -> None:
    """The same of a plain model, which knows of no token that must stay."""
    inputs = {name: tensor for name, tensor in model_inputs(batch).items() if name != "protected"}
    if decodes(model):
        model.get_encoder()(**inputs)
    else:
        model(**inputs)
