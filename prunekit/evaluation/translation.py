"""Judge translations: words by teacher forcing, and whole texts by sacreBLEU's BLEU and chrF, with its signature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import MeanMetric

from prunekit.data.encoding import Batch
from prunekit.data.kinds.translation import WORD_ACCURACY
from prunekit.data.spec import TaskSpec
from prunekit.data.translations import TranslationTargets
from prunekit.evaluation.judging import Judge, Verdict
from prunekit.losses import PADDING

BUCKETS = (0, 10, 15, 20, 30, 50, 100_000)  # source tokens, the end of the sentence included


class WordJudge(Judge):
    """A judge of the words that teacher forcing predicts; what the model writes by itself is another matter."""

    def __init__(self, spec: TaskSpec, targets: TranslationTargets, device: torch.device | str) -> None:
        self.words = MeanMetric().to(device)
        self.judged = 0

    def update(self, logits: Float[Tensor, "words vocabulary"], batch: Batch) -> None:
        """Add a batch."""
        wanted = batch["labels"][batch["labels"] != PADDING]
        self.words.update((logits.argmax(-1) == wanted).float())
        self.judged += len(batch["labels"])

    def compute(self) -> Verdict:
        """Return the share of words that are right."""
        return Verdict({WORD_ACCURACY: float(self.words.compute())}, self.judged)


@dataclass(frozen=True)
class Bucket:
    """BLEU of the sentences whose source has at least `low` and fewer than `high` tokens."""

    low: int
    high: int
    rows: int
    bleu: float


@dataclass(frozen=True)
class TranslationQuality:
    """Corpus BLEU (0 to 100) and what it was computed by, chrF, length of hypotheses / references, and BLEU by length.

    A source that lost too many tokens gives short translations before it gives wrong ones: look at `length_ratio`.
    """

    bleu: float
    signature: str
    chrf: float
    length_ratio: float
    buckets: tuple[Bucket, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers, for JSON."""
        return asdict(self)


def translation_quality(
    hypotheses: Sequence[str],
    references: Sequence[str],
    source_tokens: Sequence[int],
    edges: Sequence[int] = BUCKETS,
) -> TranslationQuality:
    """Score detokenised translations against one reference each.

    Raises:
        ValueError: there is none, or not as many of one as of the other.
        ModuleNotFoundError: sacreBLEU is not installed; says how.
    """
    if not len(hypotheses) == len(references) == len(source_tokens) > 0:
        raise ValueError(
            f"{len(hypotheses)} translations, {len(references)} references and {len(source_tokens)} source lengths; "
            f"give one of each per sentence, and at least one."
        )
    try:
        # an optional extra
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "BLEU is computed by sacreBLEU, which is not installed; pip install 'prunekit[translation]'."
        ) from error
    metric = BLEU()
    whole = metric.corpus_score(list(hypotheses), [list(references)])
    buckets = []
    for low, high in pairwise(edges):
        rows = [row for row, length in enumerate(source_tokens) if low <= length < high]
        if rows:
            some = BLEU().corpus_score([hypotheses[row] for row in rows], [[references[row] for row in rows]])
            buckets.append(Bucket(low, high, len(rows), float(some.score)))
    return TranslationQuality(
        bleu=float(whole.score),
        signature=str(metric.get_signature()),
        chrf=float(CHRF().corpus_score(list(hypotheses), [list(references)]).score),
        length_ratio=whole.sys_len / max(1, whole.ref_len),
        buckets=tuple(buckets),
    )
