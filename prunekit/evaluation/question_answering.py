"""Answers out of logits, over all windows of a question, and how good they are: SQuAD's exact match and F1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics.functional.text import squad

from prunekit.data.rows import Rows
from prunekit.data.spec import TaskSpec

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class BestAnswers:
    """The best answer of each window: the sum of its two logits, and the characters of the context that it spans.

    `none` is the same sum for [CLS], which stands for no answer.
    """

    score: Float[Tensor, "batch"]
    none: Float[Tensor, "batch"]
    begin: Int[Tensor, "batch"]
    end: Int[Tensor, "batch"]


def best_answers(
    logits: Float[Tensor, "batch tokens 2"], spans: Int[Tensor, "batch tokens 2"], max_tokens: int
) -> BestAnswers:
    """The best of all answers of at most `max_tokens` tokens that lie in the context.

    Every pair of tokens is looked at, so there is no number of candidates to set (n_best of Hugging Face's example).
    """
    context = spans[..., 0] >= 0
    first, last = (logits[..., side].masked_fill(~context, -torch.inf) for side in (0, 1))
    width = min(max_tokens, logits.shape[1])
    # column k of token s: the answer of k + 1 tokens that begins at s
    pairs = first[..., None] + F.pad(last, (0, width - 1), value=-torch.inf).unfold(-1, width, 1)
    score, place = pairs.flatten(1).max(-1)
    starts = place // width
    ends = starts + place % width
    row = torch.arange(len(logits), device=logits.device)
    return BestAnswers(score, logits[:, 0].sum(-1), spans[row, starts, 0], spans[row, ends, 1])


@dataclass(frozen=True)
class Answered:
    """What came of a split: metrics by name, and per question its text and whether that matches exactly.

    `null_threshold` is the one in use: the task's, or the best one here where the task leaves it open.
    """

    metrics: dict[str, float]
    texts: list[str]
    exact: Bool[Tensor, "questions"]
    null_threshold: float | None


class AnswerQuality:
    """Collects the answers of all windows; `compute` takes the best of each question and compares it."""

    def __init__(self, spec: TaskSpec, questions: Rows) -> None:
        self.spec = spec
        self.questions = questions
        self._found: list[tuple[Tensor, ...]] = []

    def update(self, logits: Float[Tensor, "batch tokens 2"], batch: Batch) -> None:
        """Adds the windows of a batch."""
        best = best_answers(logits.float(), batch["spans"], self.spec.max_answer_tokens)
        found = (batch["example"], best.score, best.none, best.begin, best.end)
        self._found.append(tuple(tensor.cpu() for tensor in found))

    def compute(self) -> Answered:
        """Each question's best answer and its quality; a question of which no window was seen counts as unanswered."""
        texts, over = self._texts()
        golds = [_golds(answer) for answer in self.questions.labels]
        exact, f1 = torch.tensor([_quality(text, gold) for text, gold in zip(texts, golds, strict=True)]).double().T
        answerable = torch.tensor([gold != ("",) for gold in golds])
        threshold = None
        if self.spec.unanswerable:
            threshold = self.spec.null_threshold
            if threshold is None:
                chosen = exact if self.spec.score.endswith("exact_match") else f1
                threshold = best_threshold(over, chosen, (~answerable).double())
            silent = over > threshold
            texts = ["" if none else text for text, none in zip(texts, silent.tolist(), strict=True)]
            # no answer is right where there is none, and wrong elsewhere
            exact, f1 = (torch.where(silent, (~answerable).double(), given) for given in (exact, f1))
        every = {
            "": torch.ones_like(answerable),
            "has_answer_": answerable,
            "no_answer_": ~answerable,
        }
        values = {}
        for which, rows in every.items():
            for name, given in (("exact_match", exact), ("f1", f1)):
                values[which + name] = float(given[rows].mean()) if rows.any() else 0.0
        return Answered({name: values[name] for name in self.spec.metrics}, texts, exact == 1, threshold)

    def _texts(self) -> tuple[list[str], Float[Tensor, "questions"]]:
        """The best answer over the windows of each question, and by how much no answer exceeds it."""
        count = len(self.questions)
        example, score, none, begin, end = (torch.cat(column) for column in zip(*self._found, strict=True))
        best = score.new_full((count,), -torch.inf).scatter_reduce(0, example, score, "amax")
        # of windows that hold no answer all say so: the one that says it least counts
        least = none.new_full((count,), torch.inf).scatter_reduce(0, example, none, "amin")
        window: dict[int, int] = {}
        for place, question in enumerate(example.tolist()):
            if float(score[place]) == float(best[question]):
                # windows overlap: of equals the earlier place in the text, whatever the order of batches
                other = window.setdefault(question, place)
                window[question] = min(place, other, key=lambda at: (int(begin[at]), int(end[at])))
        contexts = self.questions.pairs
        assert contexts is not None
        texts = [
            contexts[question][int(begin[window[question]]) : int(end[window[question]])] if question in window else ""
            for question in range(count)
        ]
        return texts, (least - best).double()


def best_threshold(
    over: Float[Tensor, "questions"], answered: Float[Tensor, "questions"], silent: Float[Tensor, "questions"]
) -> float:
    """The threshold on `over` above which no answer is given, with the best mean of the two qualities; of equals the
    lowest.

    Source: find_best_thresh of SQuAD 2.0's evaluation script. It lies midway between two questions, so that rounding
    moves none of them to the other side.
    """
    sorted_over, order = over.sort(stable=True)
    gain = F.pad((answered - silent)[order].cumsum(0), (1, 0))
    edges = torch.cat([sorted_over[:1] - 2, sorted_over, sorted_over[-1:] + 2])
    possible = edges[1:] > edges[:-1]  # questions of equal score are on one side
    place = int(torch.where(possible, gain, -torch.inf).argmax())
    return float((edges[place] + edges[place + 1]) / 2)


@cache
def _golds(answer: Any) -> tuple[str, ...]:
    """The right answers; ("",) where none is right, also where normalising leaves nothing, as in SQuAD's script."""
    return tuple(text for text in answer.texts if _quality("", [text])[0] == 0) or ("",)


def _quality(text: str, golds: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 of an answer against the best of the right ones, 0..1."""
    found = squad(
        [{"prediction_text": text, "id": "0"}],
        [{"answers": {"text": list(golds), "answer_start": [0] * len(golds)}, "id": "0"}],
    )
    return float(found["exact_match"]) / 100, float(found["f1"]) / 100
