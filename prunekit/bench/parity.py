"""Two runtimes of one model beside each other, text by text: labels, logits, and which tokens stayed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.evaluation.evaluate import Batch, predict
from prunekit.models.forward import model_inputs
from prunekit.models.heads import by_token

# what two orders of summation in float32 may differ by
FLOAT32_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Seen:
    """What a runtime made of one text; `depth` is the number of layers whose feed-forward half each token entered."""

    logits: Float[np.ndarray, "outputs"] | Float[np.ndarray, "tokens 2"]
    depth: Int[np.ndarray, "tokens"]


Runtime = Callable[[Batch], list[Seen]]


def reference(model: PreTrainedModel, *, prune: bool = True) -> Runtime:
    """The model itself under "mask", which hides tokens and moves none: what all other executions are held to."""

    def run(batch: Batch) -> list[Seen]:
        logits, trace = predict(model, batch, "mask" if prune else "dense")
        real = batch["attention_mask"] > 0
        depth = torch.stack([entry.keep > 0 for entry in trace.layers]).sum(0)
        return [
            Seen(_of_text(logits, row, chosen).numpy(), depth[row][chosen].numpy()) for row, chosen in enumerate(real)
        ]

    return run


def engine(call: Callable[..., Any]) -> Runtime:
    """A `GraphEngine`, or what reads a padded batch and answers like one."""

    def run(batch: Batch) -> list[Seen]:
        found = call(model_inputs(batch))
        real = batch["attention_mask"] > 0
        return [
            Seen(_of_text(found.logits, row, chosen).numpy(), depth)
            for row, (chosen, depth) in enumerate(zip(real, found.depth, strict=True))
        ]

    return run


def _of_text(logits: Tensor, row: int, real: Tensor) -> Tensor:
    return logits[row][: int(real.sum())] if by_token(logits) else logits[row]


def compare(
    one: Runtime, other: Runtime, batches: Iterable[Batch], metrics: Callable[[], Any] | None = None
) -> dict[str, Any]:
    """How far `other` is from `one` over all texts; with `metrics`, how good each is as well ("score", by metric).

    `labels_agree` is the share of texts with the same prediction (under regression those within 1e-3, of answers the
    same first and last token), `kept_equal` the share whose tokens stayed equally long, `tokens_equal` that of tokens.
    `max_difference` is of logits; `max_difference_same_tokens` among texts whose kept tokens are equal.
    """
    agree, kept, differences, tokens = [], [], [], np.zeros(2, np.int64)
    quality = [] if metrics is None else [metrics(), metrics()]
    for batch in batches:
        pair = one(batch), other(batch)
        for meter, texts in zip(quality, pair, strict=False):
            meter.update(torch.from_numpy(np.stack([text.logits for text in texts])), batch["labels"])
        for seen, found in zip(*pair, strict=True):
            difference = float(np.abs(seen.logits - found.logits).max())
            same = seen.depth == found.depth
            agree.append(_same_label(seen.logits, found.logits))
            kept.append(bool(same.all()))
            differences.append(difference)
            tokens += (int(same.sum()), len(same))
    all_of, equal = np.array(differences), np.array(kept)
    scores = [{name: float(value) for name, value in meter.compute().items()} for meter in quality]
    return {
        "rows": len(all_of),
        "labels_agree": float(np.mean(agree)),
        "labels_differ": int(len(agree) - np.sum(agree)),
        "max_difference": float(all_of.max()),
        "mean_difference": float(all_of.mean()),
        "max_difference_same_tokens": float(all_of[equal].max()) if equal.any() else 0.0,
        "kept_equal": float(equal.mean()),
        "kept_differ": int((~equal).sum()),
        "tokens_equal": float(tokens[0] / tokens[1]),
        **({"score": dict(zip(("model", "export"), scores, strict=True))} if scores else {}),
    }


def _same_label(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape == (1,):  # a value has no label
        return bool(np.abs(one - other).max() <= FLOAT32_TOLERANCE)
    return bool((one.argmax(0 if one.ndim == 2 else -1) == other.argmax(0 if other.ndim == 2 else -1)).all())


def faithful(found: Mapping[str, Any]) -> bool:
    """Whether a float32 runtime is the same function: equal labels, and equal logits wherever the same tokens stay.

    A score that ties with a threshold or another score up to rounding may fall on either side; of such texts up to
    one in a hundred is let pass, and the report counts them.
    """
    return bool(
        found["max_difference_same_tokens"] <= FLOAT32_TOLERANCE
        and found["kept_equal"] >= 0.99
        and found["labels_agree"] >= 0.995
    )
