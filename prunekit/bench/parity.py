"""Compare two runtimes of one model, text by text: labels, logits, and which tokens were kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.bench.result import Parity, ParityScore
from prunekit.data.encoding import Batch
from prunekit.evaluation.evaluate import predict
from prunekit.models.answers import Answers
from prunekit.models.forward import model_inputs
from prunekit.models.heads import by_token
from prunekit.runtime.engine import PackedEngine

# by which two orders of summation in float32 may differ
FLOAT32_TOLERANCE = 1e-3


@dataclass(frozen=True)
class TextOutput:
    """A runtime's output for one text; `depth` is the number of layers whose feed-forward half each token entered."""

    logits: Float[np.ndarray, "outputs"] | Float[np.ndarray, "tokens 2"]
    depth: Int[np.ndarray, "tokens"]


Runtime = Callable[[Batch], list[TextOutput]]


def model_runtime(model: PreTrainedModel, *, prune: bool = True) -> Runtime:
    """Return the model itself under "mask", which hides tokens and moves none: the reference for other executions."""

    def run(batch: Batch) -> list[TextOutput]:
        logits, trace = predict(model, batch, "mask" if prune else "dense")
        real = batch["attention_mask"] > 0
        depth = torch.stack([entry.keep > 0 for entry in trace.layers]).sum(0)
        return [
            TextOutput(_logits_of_text(logits, row, chosen).numpy(), depth[row][chosen].numpy())
            for row, chosen in enumerate(real)
        ]

    return run


def engine_runtime(call: Callable[..., Any]) -> Runtime:
    """Return a `GraphEngine` as a runtime, or anything that reads a padded batch and answers like one."""

    def run(batch: Batch) -> list[TextOutput]:
        output = call(model_inputs(batch))
        real = batch["attention_mask"] > 0
        return [
            TextOutput(_logits_of_text(output.logits, row, chosen).numpy(), depth)
            for row, (chosen, depth) in enumerate(zip(real, output.depth, strict=True))
        ]

    return run


def packed_runtime(engine: PackedEngine, *, prune: bool = True) -> Runtime:
    """Return the packed engine as a runtime; make it with `cls_last=False`, so that its last layer keeps all tokens."""

    def run(batch: Batch) -> list[TextOutput]:
        output = engine(model_inputs(batch), prune=prune)
        real, texts = batch["attention_mask"] > 0, []
        for row, chosen in enumerate(real):
            depth = np.zeros(int(chosen.sum()), np.int64)
            for layer in output.kept:
                depth[layer[row]] += 1
            texts.append(TextOutput(_logits_of_text(output.logits, row, chosen).numpy(), depth))
        return texts

    return run


def _logits_of_text(logits: Tensor, row: int, real: Tensor) -> Tensor:
    return logits[row][: int(real.sum())] if by_token(logits) else logits[row]


def compare(
    one: Runtime,
    other: Runtime,
    batches: Iterable[Batch],
    answers: Answers,
    metrics: Callable[[], Any] | None = None,
) -> Parity:
    """Return how far `other` is from `one` over all texts; with `metrics`, also the score of each, by metric.

    Labels agree where the prediction is the same, as `answers` reads it: under regression within 1e-3; for answers in
    texts, the same first and last token.
    """
    agree, kept, differences, tokens = [], [], [], np.zeros(2, np.int64)
    meters = [] if metrics is None else [metrics(), metrics()]
    for batch in batches:
        pair = one(batch), other(batch)
        for meter, texts in zip(meters, pair, strict=False):
            meter.update(torch.from_numpy(np.stack([text.logits for text in texts])), batch["labels"])
        for left, right in zip(*pair, strict=True):
            same = left.depth == right.depth
            agree.append(_has_same_label(left.logits, right.logits, answers))
            kept.append(bool(same.all()))
            differences.append(float(np.abs(left.logits - right.logits).max()))
            tokens += (int(same.sum()), len(same))
    all_differences, equal = np.array(differences), np.array(kept)
    scores = [{name: float(value) for name, value in meter.compute().items()} for meter in meters]
    return Parity(
        rows=len(all_differences),
        labels_agree=float(np.mean(agree)),
        labels_differ=int(len(agree) - np.sum(agree)),
        max_difference=float(all_differences.max()),
        mean_difference=float(all_differences.mean()),
        max_difference_same_tokens=float(all_differences[equal].max()) if equal.any() else 0.0,
        kept_equal=float(equal.mean()),
        kept_differ=int((~equal).sum()),
        tokens_equal=float(tokens[0] / tokens[1]),
        score=ParityScore(model=scores[0], export=scores[1]) if scores else None,
    )


def _has_same_label(one: np.ndarray, other: np.ndarray, answers: Answers) -> bool:
    if one.ndim == 2:  # of each token
        return bool((one.argmax(0) == other.argmax(0)).all())
    return bool(answers.agree(torch.from_numpy(one)[None], torch.from_numpy(other)[None])[0])


def is_faithful(parity: Parity) -> bool:
    """Return whether a float32 runtime is the same function: equal labels, equal logits where kept tokens are equal.

    A score that ties with a threshold or another score up to rounding may fall on either side; one in a hundred such
    texts is allowed, and the report counts them.
    """
    return (
        parity.max_difference_same_tokens <= FLOAT32_TOLERANCE
        and parity.kept_equal >= 0.99
        and parity.labels_agree >= 0.995
    )
