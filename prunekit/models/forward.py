"""Run a model that carries the pruned encoder, whatever its head: one tensor of logits, or the encoder alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.data.encoding import Batch
from prunekit.losses import PADDING
from prunekit.models.heads import logits_of
from prunekit.tokens import translation
from prunekit.tokens.cutting import cut
from prunekit.tokens.encoder import encoder_of
from prunekit.tokens.families.registry import family_of
from prunekit.tokens.state import Execution, Trace

NON_MODEL_KEYS = ("labels", "index", "example", "spans")


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Run a block in evaluation mode without gradients and autocast, because a decision must not depend on them.

    The model's training mode is restored.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        model.train(was_training)


def on_device(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """Return a batch on a device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def model_inputs(batch: Batch) -> dict[str, Tensor]:
    """Return the part of a batch that the encoder reads: neither labels nor what identifies rows."""
    return {name: tensor for name, tensor in batch.items() if name not in NON_MODEL_KEYS}


def as_read(model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    """Return inputs as the model reads them: cut where it reads cut texts, and padded where its decisions ask for it.

    Those of nearly all models are left as they are.
    """
    encoder = encoder_of(model)
    inputs, pruner = cut(batch, encoder.longest), encoder.pruner
    width = None if pruner is None or model.training else pruner.scorer.padded_to
    missing = 0 if width is None else width - inputs["input_ids"].shape[1]
    if missing <= 0:
        return inputs
    fill = {"input_ids": model.config.pad_token_id or 0, "attention_mask": 0, "token_type_ids": 0, "protected": 0}
    return {name: F.pad(inputs[name], (0, missing), value=fill[name]) for name in inputs}


def decodes(model: PreTrainedModel) -> bool:
    """Return whether a decoder reads the encoder."""
    return family_of(model).has_decoder


def forward_logits(
    model: PreTrainedModel,
    batch: Batch,
    execution: Execution,
    trace: Trace | None = None,
    budget: str | None = None,
) -> Float[Tensor, "decisions outputs"] | Float[Tensor, "batch tokens 2"]:
    """Return the logits of a model that carries the pruned encoder, whatever its head.

    For translation there is one row per target token in `labels`, for which the decoder reads the tokens before it
    (teacher forcing). `budget` is one of several that the model serves.
    """
    inputs: dict[str, Any] = model_inputs(batch)
    if not decodes(model):
        # only where it was asked for: a stock model inside would not know the argument
        how: dict[str, Any] = {} if budget is None else {"budget": budget}
        return logits_of(model(**as_read(model, inputs), execution=execution, trace=trace, **how), batch)
    targets = batch["labels"]
    return translation.forward(model, **inputs, targets=targets, execution=execution, trace=trace)[targets != PADDING]


def run_encoder(model: PreTrainedModel, batch: Batch, execution: Execution, **how: Any) -> None:
    """Run as much as a trace or a timing of pruning needs: the encoder, with a head that costs next to nothing.

    `how` is `trace` and `prune`, as the encoder takes them.
    """
    inputs: dict[str, Any] = model_inputs(batch)
    if decodes(model):
        translation.encode(model, **inputs, execution=execution, **how)
    else:
        model(**as_read(model, inputs), execution=execution, **how)


def run_stock_encoder(model: PreTrainedModel, batch: Batch) -> None:
    """Run the encoder of a plain model, which knows of no protected tokens."""
    inputs = {name: tensor for name, tensor in model_inputs(batch).items() if name != "protected"}
    if decodes(model):
        model.get_encoder()(**inputs)
    else:
        model(**inputs)
