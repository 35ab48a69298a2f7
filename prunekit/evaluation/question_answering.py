"""Find answers from logits, over all windows of a question, and judge them by SQuAD's exact match and F1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics.functional.text import squad

from prunekit.data.encoding import Batch
from prunekit.data.spec import TaskSpec
from prunekit.data.windows import Questions, SpanTargets
from prunekit.evaluation.judging import Judge, Predictions, RowColumns, Verdict

CLASSES = ("wrong", "an answer", "no answer")  # of a window's prediction: wrong, or what is right for its question


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
    """Return the best of all answers of at most `max_tokens` tokens in the context.

    Every pair of tokens is considered, so there is no number of candidates to set (n_best of Hugging Face's example).
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
    """The answers of a split: metrics by name, and per question its text and whether that matches exactly.

    `null_threshold` is the one in use: the task's, or the best one here where the task leaves it open.
    """

    metrics: dict[str, float]
    texts: list[str]
    exact: Bool[Tensor, "questions"]
    null_threshold: float | None


class AnswerQuality:
    """The answers of all windows, collected batch by batch; `compute` compares the best of each question."""

    def __init__(self, spec: TaskSpec, questions: Questions) -> None:
        self.spec = spec
        self.questions = questions
        self._found: list[tuple[Tensor, ...]] = []

    def update(self, logits: Float[Tensor, "batch tokens 2"], batch: Batch) -> None:
        """Add the windows of a batch."""
        best = best_answers(logits.float(), batch["spans"], self.spec.max_answer_tokens)
        found = (batch["example"], best.score, best.none, best.begin, best.end)
        self._found.append(tuple(tensor.cpu() for tensor in found))

    def compute(self) -> Answered:
        """Return each question's best answer and its quality; a question without a window seen counts as unanswered."""
        texts, over = self._texts()
        golds = [_golds(answer) for answer in self.questions.answers]
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
        """Return the best answer over the windows of each question, and by how much no answer exceeds it."""
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
        contexts = self.questions.contexts
        texts = [
            contexts[question][int(begin[window[question]]) : int(end[window[question]])] if question in window else ""
            for question in range(count)
        ]
        return texts, (least - best).double()


def best_threshold(
    over: Float[Tensor, "questions"], answered: Float[Tensor, "questions"], silent: Float[Tensor, "questions"]
) -> float:
    """Return the threshold on `over` above which no answer is given that has the best mean of the two qualities.

    Of equals it is the lowest.     Source: find_best_thresh of SQuAD 2.0's evaluation script. It is midway between two
    questions, so that rounding moves none of them to the other side.
    """
    sorted_over, order = over.sort(stable=True)
    gain = F.pad((answered - silent)[order].cumsum(0), (1, 0))
    edges = torch.cat([sorted_over[:1] - 2, sorted_over, sorted_over[-1:] + 2])
    possible = edges[1:] > edges[:-1]  # questions of equal score are on one side
    place = int(torch.where(possible, gain, -torch.inf).argmax())
    return float((edges[place] + edges[place + 1]) / 2)


@cache
def _golds(answer: Any) -> tuple[str, ...]:
    """Return the right answers; ("",) where none is right or normalising leaves nothing, as in SQuAD's script."""
    return tuple(text for text in answer.texts if _quality("", [text])[0] == 0) or ("",)


def _quality(text: str, golds: Sequence[str]) -> tuple[float, float]:
    """Return exact match and F1 of an answer against the best of the right ones, 0..1."""
    found = squad(
        [{"prediction_text": text, "id": "0"}],
        [{"answers": {"text": list(golds), "answer_start": [0] * len(golds)}, "id": "0"}],
    )
    return float(found["exact_match"]) / 100, float(found["f1"]) / 100


class AnswerJudge(Judge):
    """A judge of the answers to questions, which are read in windows."""

    def __init__(self, spec: TaskSpec, targets: SpanTargets, device: torch.device | str) -> None:
        self.quality = AnswerQuality(spec, targets.questions)
        self.targets = targets
        self.leaves_threshold = spec.null_threshold is None
        self._rows = RowColumns()

    def update(self, logits: Float[Tensor, "batch tokens 2"], batch: Batch) -> None:
        """Add the windows of a batch."""
        self.quality.update(logits, batch)
        self._rows.add(batch["index"], batch["example"])

    def compute(self) -> Verdict:
        """Return the metrics, the answers, and for each window what its question got."""
        found = self.quality.compute()
        (windows,) = self._rows.by_row()
        is_settled = self.leaves_threshold and found.null_threshold is not None
        return Verdict(
            found.metrics,
            len(found.texts),
            window_predictions(self.targets.references, found.texts, found.exact, windows),
            {"null_threshold": found.null_threshold} if is_settled else {},
            dict(zip(self.targets.questions.ids, found.texts, strict=True)),
        )


def window_predictions(
    golds: Sequence[str], texts: Sequence[str], right: Bool[Tensor, "questions"], windows: Int[Tensor, "rows"]
) -> Predictions:
    """Return for each window what its question got ("" = no answer); `windows` are the numbers of their questions."""
    labels = torch.tensor([CLASSES.index("an answer" if gold else "no answer") for gold in golds])
    pairs = list(zip(golds, texts, strict=True))
    return Predictions(
        labels[windows], torch.where(right, labels, 0)[windows], CLASSES, [pairs[row] for row in windows.tolist()]
    )
