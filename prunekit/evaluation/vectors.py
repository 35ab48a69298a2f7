"""Judge vectors of texts by those of the dense model, and by scores of pairs where there are some."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.regression import pearson_corrcoef, spearman_corrcoef

from prunekit.data.encoding import Batch, VectorTargets
from prunekit.data.spec import TaskSpec
from prunekit.evaluation.judging import Judge, RowColumns, Verdict

NEIGHBOURS = 10
COMPARED = 20_000  # texts, the first, whose neighbours are looked for among each other: the work is quadratic
BLOCK = 1024  # texts at a time


def mean_cosine(vectors: Float[Tensor, "rows size"], dense: Float[Tensor, "rows size"]) -> float:
    """Return the mean cosine of each vector with that of the dense model."""
    return float(F.cosine_similarity(vectors.double(), dense.double()).mean())


def neighbour_overlap(vectors: Float[Tensor, "rows size"], dense: Float[Tensor, "rows size"]) -> float:
    """Return the mean share of a text's 10 nearest other texts, by cosine, that are its nearest by the dense model too.

    Where there are fewer than 11 texts, all others are its nearest. Of many texts the first 20,000 are compared.
    """
    ours, theirs = (F.normalize(found[:COMPARED].float(), dim=-1) for found in (vectors, dense))
    count = min(NEIGHBOURS, len(ours) - 1)
    if count < 1:
        return 1.0
    shared = 0
    for start in range(0, len(ours), BLOCK):
        near, wanted = (_nearest(found, start, count) for found in (ours, theirs))
        shared += int((near[:, :, None] == wanted[:, None, :]).sum())
    return shared / (len(ours) * count)


def _nearest(unit: Float[Tensor, "rows size"], start: int, count: int) -> Tensor:
    """Return the numbers of the nearest other rows of a block of rows."""
    block = unit[start : start + BLOCK]
    alike = block @ unit.T
    alike[torch.arange(len(block)), start + torch.arange(len(block))] = -torch.inf
    return alike.topk(count, dim=-1).indices


def pair_cosines(vectors: Float[Tensor, "rows size"]) -> Float[Tensor, "pairs"]:
    """Return the cosine of each pair, of which rows 2i and 2i + 1 are the i-th."""
    return F.cosine_similarity(vectors[0::2].double(), vectors[1::2].double()).float()


OF_DENSE: dict[str, Callable[[Tensor, Tensor], float]] = {"cosine": mean_cosine, "overlap": neighbour_overlap}
OF_SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"spearman": spearman_corrcoef, "pearson": pearson_corrcoef}


class VectorJudge(Judge):
    """A judge of vectors: of what the dense model gives, where it was asked, and of pairs that have scores."""

    def __init__(self, spec: TaskSpec, targets: VectorTargets, device: torch.device | str) -> None:
        self.targets = targets
        # the cosine chooses the checkpoint, whatever is reported
        self.names = tuple(dict.fromkeys([*spec.metrics, "cosine"]))
        self._rows = RowColumns()

    def update(self, logits: Float[Tensor, "batch size"], batch: Batch) -> None:
        """Add a batch."""
        self._rows.add(batch["index"], logits.float(), batch["labels"])

    def compute(self) -> Verdict:
        """Return the metrics; a correlation of scores that are all the same is 0."""
        vectors, dense = self._rows.by_row()
        known = {name: OF_DENSE[name](vectors, dense) for name in self.names if name in OF_DENSE and dense.shape[1]}
        scores = self.targets.scores
        if scores is not None:
            alike = pair_cosines(vectors)
            pairs = {name: OF_SCORES[name](alike, scores) for name in self.names if name in OF_SCORES}
            known |= {name: float(torch.nan_to_num(value, nan=0.0)) for name, value in pairs.items()}
        return Verdict({name: known[name] for name in self.names if name in known}, len(vectors))
