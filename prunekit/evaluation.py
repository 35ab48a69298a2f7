"""Quality and cost of a model on a split, measured together from what was executed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.cost import CostMeter, Shape
from prunekit.data.answering import AnswerQuality
from prunekit.data.metrics import build_metrics
from prunekit.data.reading import Rows
from prunekit.data.spec import TaskSpec
from prunekit.heads import logits_of
from prunekit.tokens.state import Execution, Trace

Batch = Mapping[str, Tensor]
NOT_SEEN = ("labels", "index", "example", "spans")


def model_inputs(batch: Batch) -> dict[str, Tensor]:
    """The part of a batch that the model sees: neither labels nor what says which rows these are."""
    return {name: tensor for name, tensor in batch.items() if name not in NOT_SEEN}


def staying(batch: Batch) -> Int[Tensor, "batch"] | int:
    """How many tokens of each row no method may remove: those that the task marks, else [CLS] alone."""
    return batch["protected"].sum(-1) if "protected" in batch else 1


@dataclass(frozen=True)
class PerRow:
    """What happened to each sentence, in the order of its row number.

    `tokens` entered the feed-forward half of each layer; `right` is None for regression. `predicted` and `labels` are
    classes, or values under regression; None where answers are found: there a window is as right as its question.
    """

    lengths: Int[Tensor, "rows"]
    tokens: Int[Tensor, "rows layers"]
    right: Bool[Tensor, "rows"] | None
    predicted: Shaped[Tensor, "rows"] | None = None
    labels: Shaped[Tensor, "rows"] | None = None


@dataclass(frozen=True)
class Measured:
    """Metrics by name, cost by name (`CostMeter.compute`), mean tokens entering each layer's feed-forward half.

    `per_row` holds the rows that this process saw. `judged` counts what a prediction was made for: rows, or questions
    whose windows are rows. `settled` are keys of the task that it left open, as this split would have them.
    """

    metrics: dict[str, float]
    cost: dict[str, float]
    tokens_per_layer: list[float]
    rows: int
    per_row: PerRow
    judged: int
    settled: dict[str, Any] = field(default_factory=dict)
    answers: list[str] | None = field(default=None, repr=False)

    @property
    def reduction(self) -> float:
        """FLOPs reduction against the same sentences unpadded and unpruned."""
        return self.cost["flops_vs_unpadded"]


class Evaluation:
    """Collects metrics and executed token counts batch by batch; one use, then `compute`.

    `questions` are what was asked, where answers are found; without them such a task gets no metrics.
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
        self.metrics = None if finds else build_metrics(spec, classes).to(device)
        self.answers = AnswerQuality(spec, questions) if finds and questions is not None else None
        self.spec = spec
        self.cost = CostMeter(shape, spec.padded_length).to(device)
        self._seen: list[tuple[Tensor, ...]] = []

    def update(
        self, logits: Float[Tensor, "batch classes"] | Float[Tensor, "batch tokens 2"], batch: Batch, trace: Trace
    ) -> None:
        """Adds one batch."""
        told: tuple[Tensor, ...] = ()
        if self.metrics is not None:
            self.metrics.update(logits.float(), batch["labels"])
            classes = self.spec.kind == "classification"
            told = (logits.argmax(-1) if classes else logits.float().squeeze(-1), batch["labels"])
        if self.answers is not None:
            self.answers.update(logits, batch)
            told = (batch["example"],)
        lengths = batch["attention_mask"].sum(-1)
        self.cost.update(trace.tokens_in, trace.tokens_out, lengths, trace.scorer_macs)
        seen = (batch["index"], lengths, trace.tokens_out.T.round().long(), *told)
        self._seen.append(tuple(column.cpu() for column in seen))

    def compute(self) -> Measured:
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
        if self.answers is not None:
            found = self.answers.compute()
            quality, judged, texts = found.metrics, len(found.texts), found.texts
            (example,) = told
            # a window is as right as the answer to its question
            per_row = PerRow(lengths, counts, found.exact[example])
            if found.null_threshold is not None and self.spec.null_threshold is None:
                settled = {"null_threshold": found.null_threshold}
        return Measured(quality, costs, tokens, len(index), per_row, judged, settled, texts)


def predict(
    model: PreTrainedModel, batch: Batch, execution: Execution
) -> tuple[Float[Tensor, "batch classes"] | Float[Tensor, "batch tokens 2"], Trace]:
    """Logits in float32, and the trace; autocast is off, because a decision must not hang on it."""
    trace = Trace()
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        logits = logits_of(model(**model_inputs(batch), execution=execution, trace=trace), batch)
    return logits.float(), trace


def evaluate(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    spec: TaskSpec,
    shape: Shape,
    classes: int,
    execution: Execution,
    questions: Rows | None = None,
) -> Measured:
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


def kept_tokens(
    model: PreTrainedModel, batch: Batch
) -> tuple[Int[Tensor, "batch tokens"], Float[Tensor, "layers batch tokens"]]:
    """Per token of a batch the number of layers whose feed-forward half it entered, and what it received at each.

    What it received is the canonical score, whatever the model decides by; 0 where the token was gone. Runs under
    "mask", which keeps the same tokens as any other execution and leaves them where they are.
    """
    trace = Trace.scoring(range(model.config.num_hidden_layers))
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        model(**model_inputs(batch), execution="mask", trace=trace)
    real = batch["attention_mask"] > 0
    passed = torch.stack([(entry.keep > 0) & real for entry in trace.layers])
    entered = torch.cat([real[None], passed[:-1]])  # a layer's attention sees whom the layer before let through
    scores = torch.stack([entry.received if entry.received is not None else real.float() for entry in trace.layers])
    return passed.sum(0), scores.float() * entered
