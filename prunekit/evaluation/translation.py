"""How good translations are: BLEU and chrF by sacreBLEU, with its signature, and what over-pruning shows first in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

BUCKETS = (0, 10, 15, 20, 30, 50, 100_000)  # source tokens, the end of the sentence included


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

    A source that lost too much gives short translations before it gives wrong ones: look at `length_ratio`.
    """

    bleu: float
    signature: str
    chrf: float
    length_ratio: float
    buckets: tuple[Bucket, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)


def translation_quality(
    hypotheses: Sequence[str],
    references: Sequence[str],
    source_tokens: Sequence[int],
    edges: Sequence[int] = BUCKETS,
) -> TranslationQuality:
    """Scores detokenised translations against one reference each.

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
