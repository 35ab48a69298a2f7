"""What stands behind the encoder: the one place that knows Hugging Face's heads and the shape of their outputs.

A method never does: its logits are one tensor, and losses, teachers and evaluation treat each choice alike. What stands
behind the encoder may be a decoder: then there is a choice per word of the target, given those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from prunekit.data.spec import TaskKind

Batch = Mapping[str, Tensor]
# logit of a position where nothing is: no probability in float32, and no infinity that differences could not bear
MASKED_LOGIT = -1e4


@dataclass(frozen=True)
class HeadType:
    """One of Hugging Face's heads: its class, how its architectures end, and the hub's name for its task.

    `decodes` says that it is a decoder, which stands behind encoders of other families than the others do.
    """

    auto: Any
    architecture: tuple[str, ...]
    pipeline: str
    decodes: bool = False


CLASSIFIER = HeadType(AutoModelForSequenceClassification, ("ForSequenceClassification",), "text-classification")
READER = HeadType(AutoModelForQuestionAnswering, ("ForQuestionAnswering",), "question-answering")
TRANSLATOR = HeadType(AutoModelForSeq2SeqLM, ("MTModel", "ForConditionalGeneration"), "translation", decodes=True)

HEADS: dict[TaskKind, HeadType] = {
    "classification": CLASSIFIER,
    "regression": CLASSIFIER,
    "span": READER,
    "translation": TRANSLATOR,
}


def stored_head(source: Any) -> HeadType | None:
    """The head that a model was saved with; None where it has none that is known here."""
    saved = (AutoConfig.from_pretrained(source).architectures or [""])[0]
    return next((head for head in (CLASSIFIER, READER, TRANSLATOR) if saved.endswith(head.architecture)), None)


def logits_of(
    output: Any, batch: Mapping[str, Tensor]
) -> Float[Tensor, "batch outputs"] | Float[Tensor, "batch tokens 2"]:
    """The logits of any head as one tensor: of classes, or of the first and last token of an answer.

    Padding begins and ends no answer.
    """
    if "logits" in output:
        return output.logits
    logits = torch.stack([output.start_logits, output.end_logits], dim=-1)
    return logits.masked_fill(batch["attention_mask"][..., None] == 0, MASKED_LOGIT)


def by_token(logits: Shaped[Tensor, "batch ..."]) -> bool:
    """Whether there is a logit per token, as of answers, and not per class."""
    return logits.dim() == 3


@dataclass(frozen=True)
class Head:
    """A model's head as a function of hidden states; `first_only` says that it reads the first token alone.

    `logits` then takes [batch, 1, hidden]; otherwise it gives logits per token, in the form of `logits_of`.
    """

    logits: Callable[[Float[Tensor, "batch tokens hidden"]], Tensor]
    first_only: bool


def head_of(model: Any) -> Head:
    """The head of a model in evaluation; it holds on to the head's modules alone, not to the model.

    Raises:
        ValueError: a head that is not known here.
    """
    name = type(model).__name__
    if name.endswith(READER.architecture):
        return Head(model.qa_outputs, first_only=False)
    if not name.endswith(CLASSIFIER.architecture):
        raise ValueError(
            f"{name} has a head that this runtime does not know; "
            f"it runs classification, regression and question answering: use engine='hf'."
        )
    classifier = model.classifier
    if hasattr(model, "pre_classifier"):  # DistilBERT
        narrow = model.pre_classifier
        return Head(lambda hidden: classifier(narrow(hidden[:, 0]).relu()), first_only=True)
    pooler = getattr(model.base_model, "pooler", None)
    if pooler is None:  # RoBERTa and ELECTRA, whose classifier picks the first token itself
        return Head(classifier, first_only=True)
    return Head(lambda hidden: classifier(pooler(hidden)), first_only=True)
