"""The one place that knows Hugging Face's heads: which one a task needs, and the shape of its outputs.

A method never does: its logits are one tensor, and losses, teachers and evaluation treat each choice alike. In place of
a head there may be a decoder: then there is a choice per word of the target, given those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from prunekit.data.encoding import Batch
from prunekit.data.kinds.base import TaskKind
from prunekit.data.kinds.distilled import DISTILLED_CLASSIFICATION, DISTILLED_MULTILABEL, DISTILLED_REGRESSION
from prunekit.data.kinds.embedding import DISTILLED_EMBEDDING, EMBEDDING
from prunekit.data.kinds.labelled import CLASSIFICATION, REGRESSION
from prunekit.data.kinds.multilabel import MULTILABEL
from prunekit.data.kinds.span import SPAN
from prunekit.data.kinds.tokens import TOKENS
from prunekit.data.kinds.translation import TRANSLATION
from prunekit.losses import PADDING
from prunekit.models.answers import SEVERAL
from prunekit.models.embedder import SentenceEmbedder
from prunekit.models.reading import read_config
from prunekit.models.sentence_folder import is_embedder

# logit of a position where nothing is: no probability in float32, and no infinity that differences could not bear
MASKED_LOGIT = -1e4


@dataclass(frozen=True)
class Head:
    """A model's head as a function of hidden states; `reads` says of which tokens.

    Of the "first" alone, `logits` takes [batch, 1, hidden]. Otherwise it gives logits per token, in the form of
    `logits_of`; where it `pools`, it takes the weight of each token too, 0 for padding, and gives a vector per text.
    """

    logits: Callable[..., Tensor]
    reads: Literal["first", "kept", "all"]
    pools: bool = False

    @property
    def first_only(self) -> bool:
        """Whether it reads the first token alone."""
        return self.reads == "first"


@dataclass(frozen=True)
class HeadType:
    """One kind of Hugging Face head: its auto class, the suffixes of its architectures, and the hub's task name.

    `settings` gives what a configuration must say about it, from the class names (None where there are none); it may
    differ between equal heads. `head_of` takes it from a model, None where the runtime does not compute it. `decodes`
    means that it is a decoder, which reads encoders of other families than the others do; `has_classes` that its
    outputs are classes, which have names; `several` that a text may have several of them at once; `has_modules` that it
    is made of modules of sentence-transformers, which its folder lists.
    """

    auto: Any
    architecture: tuple[str, ...]
    pipeline: str
    settings: Callable[[Sequence[str] | None], dict[str, Any]] = field(compare=False)
    head_of: Callable[[Any], Head] | None = field(default=None, compare=False)
    decodes: bool = False
    has_classes: bool = False
    several: bool = field(default=False, compare=False)
    has_modules: bool = False


def _class_settings(labels: Sequence[str] | None, problem: str = "single_label_classification") -> dict[str, Any]:
    names = {number: str(name) for number, name in enumerate(labels)} if labels else {0: "score"}
    return {
        "num_labels": len(names),
        "id2label": names,
        "label2id": {name: number for number, name in names.items()},
        "problem_type": problem if labels else "regression",
    }


def _classifier_of(model: Any) -> Head:
    if isinstance(model, SentenceEmbedder):  # a reranker whose head is made of modules
        return _vector_of(model)
    classifier = model.classifier
    if hasattr(model, "pre_classifier"):  # DistilBERT
        narrow = model.pre_classifier
        return Head(lambda hidden: classifier(narrow(hidden[:, 0]).relu()), "first")
    pooler = getattr(model.base_model, "pooler", None)
    if pooler is None:  # RoBERTa and ELECTRA, whose classifier picks the first token itself
        return Head(classifier, "first")
    return Head(lambda hidden: classifier(pooler(hidden)), "first")


CLASSIFIER = HeadType(
    AutoModelForSequenceClassification,
    ("ForSequenceClassification",),
    "text-classification",
    _class_settings,
    _classifier_of,
    has_classes=True,
)
READER = HeadType(
    AutoModelForQuestionAnswering,
    ("ForQuestionAnswering",),
    "question-answering",
    lambda labels: {"num_labels": 2},
    lambda model: Head(model.qa_outputs, "all"),
)
TAGGER = HeadType(
    AutoModelForTokenClassification,
    ("ForTokenClassification",),
    "token-classification",
    lambda labels: {name: value for name, value in _class_settings(labels).items() if name != "problem_type"},
    lambda model: Head(model.classifier, "all"),
    has_classes=True,
)
TRANSLATOR = HeadType(
    AutoModelForSeq2SeqLM,
    ("MTModel", "ForConditionalGeneration"),
    "translation",
    lambda labels: {},
    decodes=True,
)


def _vector_of(model: Any) -> Head:
    if model.head.modes == ("cls",):
        return Head(model.head, "first", pools=True)
    return Head(model.head, "kept" if model.pools_kept else "all", pools=True)


EMBEDDER = HeadType(
    SentenceEmbedder, ("SentenceEmbedder",), "sentence-similarity", lambda labels: {}, _vector_of, has_modules=True
)
SEVERAL_CLASSES = replace(CLASSIFIER, settings=partial(_class_settings, problem=SEVERAL), several=True)

HEADS: dict[TaskKind, HeadType] = {
    CLASSIFICATION: CLASSIFIER,
    REGRESSION: CLASSIFIER,
    MULTILABEL: SEVERAL_CLASSES,
    DISTILLED_CLASSIFICATION: CLASSIFIER,
    DISTILLED_REGRESSION: CLASSIFIER,
    DISTILLED_MULTILABEL: SEVERAL_CLASSES,
    SPAN: READER,
    TRANSLATION: TRANSLATOR,
    TOKENS: TAGGER,
    EMBEDDING: EMBEDDER,
    DISTILLED_EMBEDDING: EMBEDDER,
}


def stored_head(source: Any, wanted: HeadType = EMBEDDER) -> HeadType | None:
    """Return the head that a model was saved with; None where it has none that is known here.

    The modules of a SentenceTransformer are one where they are `wanted`: for other tasks it is an encoder without head.
    """
    found = head_called((read_config(source).architectures or [""])[0])
    return EMBEDDER if found is None and wanted.has_modules and is_embedder(source) else found


def head_called(architecture: str) -> HeadType | None:
    """Return the head of an architecture as config.json names it; None where it has none that is known here."""
    return next((head for head in HEADS.values() if architecture.endswith(head.architecture)), None)


def reorder_classes(model: Any, order: Sequence[int]) -> None:
    """Make output i of a classifier what was output `order[i]`."""
    classifier = model.classifier
    last: nn.Linear = getattr(classifier, "out_proj", classifier)  # RoBERTa and ELECTRA have two layers
    with torch.no_grad():
        last.weight.copy_(last.weight[list(order)])
        last.bias.copy_(last.bias[list(order)])


def logits_of(output: Any, batch: Batch) -> Float[Tensor, "decisions outputs"] | Float[Tensor, "batch tokens outputs"]:
    """Return the logits of any head as one tensor: of classes, or of the first and last token of an answer.

    Of words there is a row per labelled one, in the order of texts and words, or without `labels` in the batch logits
    for each token. Padding gets `MASKED_LOGIT`, so that no answer begins or ends there. Tokens beyond the batch, which
    the model was given as padding, are left out.
    """
    if "logits" in output:
        logits = output.logits
        if not by_token(logits):
            return logits
        logits = logits[:, : batch["input_ids"].shape[1]]
        if "labels" in batch:
            return logits[batch["labels"] != PADDING]
    else:
        logits = torch.stack([output.start_logits, output.end_logits], dim=-1)[:, : batch["input_ids"].shape[1]]
    return logits.masked_fill(batch["attention_mask"][..., None] == 0, MASKED_LOGIT)


def by_token(logits: Shaped[Tensor, "batch ..."]) -> bool:
    """Return whether there are logits for each token, as of answers, and not for each text or decision."""
    return logits.dim() == 3


def labels_words(model: Any) -> bool:
    """Return whether a model's head gives each word a label."""
    return head_called(type(model).__name__) is TAGGER


def head_of(model: Any) -> Head:
    """Return the head of a model in evaluation; it refers to the head's modules alone, not to the model.

    Raises:
        ValueError: the head is not supported here.
    """
    name = type(model).__name__
    head = head_called(name)
    if head is None or head.head_of is None:
        raise ValueError(
            f"{name} has a head that this runtime does not support; "
            f"it supports classification, regression, question answering, labels of words and vectors: use engine='hf'."
        )
    return head.head_of(model)
