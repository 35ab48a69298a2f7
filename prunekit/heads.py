"""What stands behind the encoder: the one place that knows Hugging Face's heads and the shape of their outputs.

A method never does: its logits are one tensor, and losses, teachers and evaluation treat each choice alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from transformers import AutoConfig, AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from prunekit.data.spec import Kind

# logit of a position where nothing is: no probability in float32, and no infinity that differences could not bear
NOWHERE = -1e4


@dataclass(frozen=True)
class Head:
    """One of Hugging Face's heads: its class, how its architectures are called, and the hub's name for its task."""

    auto: Any
    architecture: str
    pipeline: str


CLASSIFIER = Head(AutoModelForSequenceClassification, "ForSequenceClassification", "text-classification")
READER = Head(AutoModelForQuestionAnswering, "ForQuestionAnswering", "question-answering")
HEADS: dict[Kind, Head] = {"classification": CLASSIFIER, "regression": CLASSIFIER, "span": READER}


def stored_head(source: Any) -> Head | None:
    """The head that a model was saved with; None where it has none that is known here."""
    saved = (AutoConfig.from_pretrained(source).architectures or [""])[0]
    return next((head for head in (CLASSIFIER, READER) if saved.endswith(head.architecture)), None)


def logits_of(
    output: Any, batch: Mapping[str, Tensor]
) -> Float[Tensor, "batch outputs"] | Float[Tensor, "batch tokens 2"]:
    """The logits of any head as one tensor: of classes, or of the first and last token of an answer.

    Padding begins and ends no answer.
    """
    if "logits" in output:
        return output.logits
    logits = torch.stack([output.start_logits, output.end_logits], dim=-1)
    return logits.masked_fill(batch["attention_mask"][..., None] == 0, NOWHERE)


def by_token(logits: Shaped[Tensor, "batch ..."]) -> bool:
    """Whether there is a logit per token, as of answers, and not per class."""
    return logits.dim() == 3
