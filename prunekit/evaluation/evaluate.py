"""Quality and cost of a model on a split, measured together from what was executed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torchmetrics import MeanMetric
from transformers import PreTrainedModel

from prunekit.cost import CostMeter, Shape
from prunekit.data.rows import Rows
from prunekit.data.spec import WORD_ACCURACY, TaskSpec
from prunekit.evaluation.metrics import build_metrics
from prunekit.evaluation.question_answering import AnswerQuality
from prunekit.losses import PADDING
from prunekit.models.forward import forward_logits, run_encoder
from prunekit.tokens.state import Execution, Trace

Batch = Mapping[str, Tensor]


def protected_count(batch: Batch) -> Int[Tensor, "batch"] | int:
    """How many tokens of each row no method may remove: those that the task marks, else [CLS] alone."""
    return batch["protected"].sum(-1) if "protected" in batch else 1


@dataclass(frozen=True)
class PerRow:
    """What happened to each sentence, in the order of its row number.

    `tokens` entered the feed-forward half of each layer; `right` is None for regression and translation. `predicted`
    and `labels` are classes, or values under regression; None where answers are found, there a window is as right as
    its question, and of translations, of which `words` counts the words of the targets.
    """

    lengths: Int[Tensor, "rows"]
    tokens: Int[Tensor, "rows layers"]
    right: Bool[Tensor, "rows"] | None
    predicted: Shaped[Tensor, "rows"] | None = None
    labels: Shaped[Tensor, "rows"] | None = None
    words: Int[Tensor, "rows"] | None = None


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics by name, cost by name (`CostMeter.compute`), mean tokens entering each layer's feed-forward half.

    `per_row` holds the rows that this process saw. `judged` counts what a prediction was made for: rows, or questions
    whose windows are rows. `settled` are keys of the task that it left open, as this split would have them. `answers`
    are texts, found or translated, one per thing judged, and `details` what more there is to say about them.
    """

    metrics: dict[str, float]
    cost: dict[str, float]
    tokens_per_layer: list[float]
    rows: int
    per_row: PerRow
    judged: int
    settled: dict[str, Any] = field(default_factory=dict)
    answers: list[str] | None = field(default=None, repr=False)
    details: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def reduction(self) -> float:
        """FLOPs reduction against the same sentences unpadded and unpruned."""
        return self.cost["flops_vs_unpadded"]


class Evaluation:
    """Collects metrics and executed token counts batch by batch; one use, then `compute`.

    `questions` are what was asked, where answers are found; without them such a task gets no metrics. Of a translation
    the share of words that teacher forcing gets right is measured here; what it writes by itself is another matter
    (translation_pipeline.py).
    """

    def __init__(
        self,
        spec: TaskSpec,
        shape: Shape,
        classes: int,
        device: torch.device | str = "cpu",
        questions: Rows | None = None,
    ) -> None:
        finds = spec.kind == "span"
        self.words = MeanMetric().to(device) if spec.kind == "translation" else None
        self.metrics = None if finds or self.words is not None else build_metrics(spec, classes).to(device)
        self.answers = AnswerQuality(spec, questions) if finds and questions is not None else None
        self.spec = spec
        self.cost = CostMeter(shape, spec.padded_length).to(device)
        self._seen: list[tuple[Tensor, ...]] = []

    def update(
        self, logits: Float[Tensor, "decisions classes"] | Float[Tensor, "batch tokens 2"], batch: Batch, trace: Trace
    ) -> None:
        """Adds one batch."""
        told: tuple[Tensor, ...] = ()
        if self.metrics is not None:
            self.metrics.update(logits.float(), batch["labels"])
            classes = self.spec.kind == "classification"
            told = (logits.argmax(-1) if classes else logits.float().squeeze(-1), batch["labels"])
        if self.words is not None:
            real = batch["labels"] != PADDING
            self.words.update((logits.argmax(-1) == batch["labels"][real]).float())
            told = (real.sum(-1),)
        if self.answers is not None:
            self.answers.update(logits, batch)
            told = (batch["example"],)
        lengths = batch["attention_mask"].sum(-1)
        self.cost.update(trace.tokens_in, trace.tokens_out, lengths, trace.scorer_macs)
        seen = (batch["index"], lengths, trace.tokens_out.T.round().long(), *told)
        self._seen.append(tuple(column.cpu() for column in seen))

    def compute(self) -> EvaluationResult:
        """What was measured over all batches, synchronised over processes."""
        spent = self.cost.compute()
        tokens = [float(count) for count in spent.pop("tokens_out_mean")]
        costs = {name: float(value) for name, value in spent.items()}
        index, *columns = (torch.cat(column) for column in zip(*self._seen, strict=True))
        order = index.argsort()
        lengths, counts, *told = (column[order] for column in columns)
        per_row = PerRow(lengths, counts, None)
        quality: dict[str, float] = {}
        judged, settled, texts = len(index), {}, None
        if self.metrics is not None:
            quality = {name: float(value) for name, value in self.metrics.compute().items()}
            predicted, labels = told
            right = predicted == labels if self.spec.kind == "classification" else None
            per_row = PerRow(lengths, counts, right, predicted, labels)
        if self.words is not None:
            quality = {WORD_ACCURACY: float(self.words.compute())}
            per_row = PerRow(lengths, counts, None, words=told[0])
        if self.answers is not None:
            found = self.answers.compute()
            quality, judged, texts = found.metrics, len(found.texts), found.texts
            (example,) = told
            # a window is as right as the answer to its question
            per_row = PerRow(lengths, counts, found.exact[example])
            if found.null_threshold is not None and self.spec.null_threshold is None:
                settled = {"null_threshold": found.null_threshold}
        return EvaluationResult(quality, costs, tokens, len(index), per_row, judged, settled, texts)


def predict(
    model: PreTrainedModel, batch: Batch, execution: Execution
) -> tuple[Float[Tensor, "decisions classes"] | Float[Tensor, "batch tokens 2"], Trace]:
    """Logits in float32, and the trace; autocast is off, because a decision must not hang on it."""
    trace = Trace()
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        logits = forward_logits(model, batch, execution, trace)
    return logits.float(), trace


def evaluate(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    spec: TaskSpec,
    shape: Shape,
    classes: int,
    execution: Execution,
    questions: Rows | None = None,
) -> EvaluationResult:
    """Runs a model that carries the traversal over a split, in evaluation mode; `questions` as in `Evaluation`."""
    was_training = model.training
    model.eval()
    found = Evaluation(spec, shape, classes, model.device, questions)
    for batch in batches:
        here = {name: tensor.to(model.device) for name, tensor in batch.items()}
        logits, trace = predict(model, here, execution)
        found.update(logits, here, trace)
    model.train(was_training)
    return found.compute()


def executed_reduction(model: PreTrainedModel, batches: Iterable[Batch], shape: Shape, execution: Execution) -> float:
    """FLOPs reduction of the encoder against the same sentences unpruned and unpadded; runs no decoder.

    In evaluation mode, with autocast off, as `evaluate` measures it.
    """
    was_training = model.training
    model.eval()
    meter = CostMeter(shape, padded_to=1).to(model.device)
    for batch in batches:
        here, trace = {name: tensor.to(model.device) for name, tensor in batch.items()}, Trace()
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            run_encoder(model, here, execution, trace=trace)
        meter.update(trace.tokens_in, trace.tokens_out, here["attention_mask"].sum(-1), trace.scorer_macs)
    model.train(was_training)
    return float(meter.compute()["flops_vs_unpadded"])


def kept_tokens(
    model: PreTrainedModel, batch: Batch
) -> tuple[Int[Tensor, "batch tokens"], Float[Tensor, "layers batch tokens"]]:
    """Per token of a batch the number of layers whose feed-forward half it entered, and what it received at each.

    What it received is the canonical score, whatever the model decides by; 0 where the token was gone. Runs under
    "mask", which keeps the same tokens as any other execution and leaves them where they are.
    """
    trace = Trace.scoring(range(model.config.num_hidden_layers))
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        run_encoder(model, batch, "mask", trace=trace)
    real = batch["attention_mask"] > 0
    passed = torch.stack([(entry.keep > 0) & real for entry in trace.layers])
    entered = torch.cat([real[None], passed[:-1]])  # a layer's attention sees whom the layer before let through
    scores = torch.stack([entry.received if entry.received is not None else real.float() for entry in trace.layers])
    return passed.sum(0), scores.float() * entered
