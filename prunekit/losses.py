"""Terms of the training losses: pure functions of logits, labels, scores and a teacher's outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

PADDING = -100  # in targets, as in Hugging Face
TEMPERATURE = 2.0  # of distillation, as in ToP


@runtime_checkable
class Named(Protocol):
    """A kind of task (see prunekit.data.kinds), of which a loss needs only the name."""

    @property
    def name(self) -> str:
        """Name of the kind in a task's file."""


def choices(
    logits: Float[Tensor, "batch options"] | Float[Tensor, "batch tokens 2"],
) -> Float[Tensor, "decisions options"]:
    """Return logits with one row per decision.

    One decision per text (among classes), one per labelled word or word of a translation, or two per text (first and
    last token of an answer, among its tokens).
    """
    return logits if logits.dim() == 2 else logits.movedim(-1, 1).flatten(0, 1)


def decisions_per_row(labels: Shaped[Tensor, "batch *more"]) -> Int[Tensor, "batch"]:
    """Return how many decisions the model makes for each row: labels, two ends of an answer, or words.

    A value is one, and so are the logits of a teacher.
    """
    if labels.is_floating_point():
        return torch.ones(len(labels), dtype=torch.int64, device=labels.device)
    return (labels.reshape(len(labels), -1) != PADDING).sum(-1)


def class_loss(
    logits: Float[Tensor, "decisions outputs"] | Float[Tensor, "batch tokens outputs"],
    labels: Int[Tensor, "batch *more"],
    smoothing: float = 0.0,
    weights: Sequence[float] | None = None,
) -> Float[Tensor, ""]:
    """Return the cross-entropy of classes, or of the first and last token of an answer.

    A share `smoothing` of each label is spread evenly over all classes (Szegedy et al., arXiv:1512.00567). `weights`
    are factors, one per class; the mean is over their sum, so that only their ratios count.
    """
    factors = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=logits.device)
    return F.cross_entropy(choices(logits).float(), labels.flatten(), factors, label_smoothing=smoothing)


def balanced_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """Return a factor per class that makes all classes weigh the same: rows / (classes * rows of the class).

    A class without rows, whose factor is never used, gets 1. Source: King and Zeng, 2001, as in scikit-learn.
    """
    return tuple(sum(counts) / (len(counts) * count) if count else 1.0 for count in counts)


def word_loss(logits: Float[Tensor, "words classes"], labels: Int[Tensor, "batch tokens"]) -> Float[Tensor, ""]:
    """Return the mean cross-entropy per labelled word; tokens whose label is -100 have no row in the logits."""
    return F.cross_entropy(logits.float(), labels[labels != PADDING])


def value_loss(logits: Float[Tensor, "batch 1"], labels: Shaped[Tensor, "batch"]) -> Float[Tensor, ""]:
    """Return the mean squared error of one output."""
    return F.mse_loss(logits.float().squeeze(-1), labels.float())


def label_loss(logits: Float[Tensor, "batch labels"], labels: Shaped[Tensor, "batch labels"]) -> Float[Tensor, ""]:
    """Return the binary cross-entropy of each label with its logit, averaged over texts and labels."""
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float())


def translation_loss(
    logits: Float[Tensor, "words vocabulary"] | Float[Tensor, "batch width vocabulary"],
    targets: Int[Tensor, "batch width"],
    smoothing: float = 0.1,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy per word under teacher forcing; targets of -100 are padding and do not count.

    `logits` have a row per target, or only per word. A share `smoothing` of each target is spread over the vocabulary.
    Source: Szegedy et al., arXiv:1512.00567.
    """
    words = targets[targets != PADDING]
    rows = logits[targets != PADDING] if logits.dim() == 3 else logits
    return F.cross_entropy(rows.float(), words, label_smoothing=smoothing)


def distillation_loss(
    student: Float[Tensor, "decisions classes"] | Float[Tensor, "batch tokens 2"],
    teacher: Float[Tensor, "decisions classes"] | Float[Tensor, "batch tokens 2"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Return T^2 * KL(softmax(teacher / T) || softmax(student / T)), averaged over decisions.

    Source: Hinton et al., arXiv:1503.02531; ToP uses T = 2 and no other task loss.
    """
    target = F.log_softmax(choices(teacher).float() / temperature, dim=-1)
    prediction = F.log_softmax(choices(student).float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(prediction, target, reduction="batchmean", log_target=True)


def label_distance(
    student: Float[Tensor, "batch labels"], teacher: Float[Tensor, "batch labels"], temperature: float
) -> Float[Tensor, ""]:
    """Return T^2 * KL(p || q), averaged over texts and labels, with p = sigmoid(teacher / T), q = sigmoid(student / T).

    Each label is a choice of two for itself: KL(p || q) = p log(p / q) + (1 - p) log((1 - p) / (1 - q)), which is
    `distillation_loss` of the logits z and 0.
    """
    one, other = teacher.float() / temperature, student.float() / temperature
    here = one.sigmoid() * (F.logsigmoid(one) - F.logsigmoid(other))
    absent = (-one).sigmoid() * (F.logsigmoid(-one) - F.logsigmoid(-other))
    return temperature**2 * (here + absent).mean()


def value_distance(
    student: Float[Tensor, "batch 1"], teacher: Float[Tensor, "batch 1"], temperature: float
) -> Float[Tensor, ""]:
    """Return the mean squared difference of values, which no temperature softens."""
    return F.mse_loss(student.float(), teacher.float())


def vector_distance(
    student: Float[Tensor, "batch size"], teacher: Float[Tensor, "batch size"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Return 1 - cos(student, teacher) + |student - teacher|^2 / |teacher|^2, averaged over texts.

    Of vectors of length 1 the second term is twice the first, whatever their size; of others it tells apart lengths.
    """
    one, other = student.float(), teacher.float()
    squared = (one - other).square().sum(-1) / other.square().sum(-1).clamp(min=1e-12)
    return (1 - F.cosine_similarity(one, other) + squared).mean()


@dataclass(frozen=True)
class KindLosses:
    """Losses of a kind of task: on labels, and the distance from a teacher's logits at a temperature.

    `distils` means that a teacher's logits carry more information than labels: of a value they do not, nor where they
    are the labels.
    """

    task: Callable[..., Float[Tensor, ""]]
    imitation: Callable[[Tensor, Tensor, float], Float[Tensor, ""]] = distillation_loss
    distils: bool = True

    def without_labels(self) -> KindLosses:
        """Return the losses of the same outputs where a teacher's logits are the labels."""

        def task(logits: Tensor, answers: Tensor) -> Float[Tensor, ""]:
            return self.imitation(logits, answers, TEMPERATURE)

        return KindLosses(task, self.imitation, distils=False)


# by the name of the kind
LOSSES: dict[str, KindLosses] = {
    "classification": KindLosses(class_loss),
    "regression": KindLosses(value_loss, value_distance, distils=False),
    "multilabel": KindLosses(label_loss, label_distance),
    "span": KindLosses(class_loss),
    "translation": KindLosses(translation_loss),
    "tokens": KindLosses(word_loss),
}
LOSSES |= {
    f"distilled_{name}": LOSSES[name].without_labels() for name in ("classification", "regression", "multilabel")
}
LOSSES |= dict.fromkeys(
    ("embedding", "distilled_embedding"), KindLosses(vector_distance, vector_distance, distils=False)
)


def task_loss(
    logits: Float[Tensor, "decisions outputs"] | Float[Tensor, "batch tokens outputs"],
    labels: Shaped[Tensor, "batch *more"],
    kind: Named,
    smoothing: float = 0.0,
    weights: Sequence[float] | None = None,
) -> Float[Tensor, ""]:
    """Return the loss on labels of a kind of task; targets of a translation are smoothed by 0.1.

    `smoothing` and `weights` are those of `class_loss`, and given for classes alone.
    """
    loss = LOSSES[kind.name].task
    return loss(logits, labels, smoothing, weights) if smoothing or weights is not None else loss(logits, labels)


def imitation_loss(
    student: Float[Tensor, "decisions outputs"] | Float[Tensor, "batch tokens outputs"],
    teacher: Float[Tensor, "decisions outputs"] | Float[Tensor, "batch tokens outputs"],
    kind: Named,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Return the distance of a student's logits from a teacher's, as a kind of task measures it."""
    return LOSSES[kind.name].imitation(student, teacher, temperature)


def distils(kind: Named) -> bool:
    """Return whether a teacher's logits carry more information than the labels of a kind of task."""
    return LOSSES[kind.name].distils


def arp2_loss(
    scores: Float[Tensor, "batch items"],
    relevance: Float[Tensor, "batch items"],
    valid: Shaped[Tensor, "batch items"] | None = None,
) -> Float[Tensor, "batch"]:
    """Return ARP-Loss2: the sum over pairs with y_a > y_b of (y_a - y_b) * log2(1 + exp(s_b - s_a)).

    Pairs with an item that is not `valid` do not count.
    Source: Wang et al., CIKM 2018, "The LambdaLoss Framework for Ranking Metric Optimization".
    """
    gain = (relevance[:, :, None] - relevance[:, None, :]).clamp(min=0)
    if valid is not None:
        gain = gain * (valid[:, :, None] & valid[:, None, :])
    margin = scores[:, :, None] - scores[:, None, :]
    return (gain * F.softplus(-margin) / math.log(2)).sum((1, 2))


def rank_distillation_loss(
    received: Float[Tensor, "batch tokens"],
    teacher_rank: Int[Tensor, "batch tokens"],
    topk: int,
    *,
    compat: bool = False,
) -> Float[Tensor, ""]:
    """Return the ranking loss of a student's scores against the teacher's `topk` best tokens, mean over the batch.

    `received` is the canonical score of one student layer, `teacher_rank` is 0 for the teacher's best token and -1
    for [CLS] and padding. The loss is divided by K^2, K = min(topk, longest sentence without [CLS]), as in ToP.
    It is computed from received / sentence length, so that the scores of a sentence sum to 1. `compat` divides by the
    padded length instead, and includes padding as items of score and relevance 0, which pushes the real scores of
    short sentences up; by default such pairs do not count.  Source: ToP, Moonlit ToP/trainer/trainer.py:633-862.
    """
    ranked = teacher_rank >= 0
    count = ranked.sum(-1, keepdim=True)
    width = min(topk, int(count.max()))
    unit = received.float() / (received.shape[1] if compat else count + 1)
    # the teacher's K best of each sentence; shorter sentences are filled up with padding
    place = torch.where(ranked, teacher_rank, torch.iinfo(torch.int64).max).argsort(dim=-1, stable=True)[:, :width]
    valid = ranked.gather(1, place)
    relevance = torch.where(valid, count - teacher_rank.gather(1, place), 0).float()
    scores = torch.where(valid, unit.gather(1, place), 0.0)
    losses = arp2_loss(scores, relevance, None if compat else valid)
    return losses.mean() / max(1, width) ** 2


def mask_regulariser(
    keep: Float[Tensor, "decisions batch tokens"],
    alive: Float[Tensor, "batch tokens"],
    padding: Float[Tensor, "decisions"] | None = None,
    padded_length: int = 128,
) -> Float[Tensor, ""]:
    """Return LTP's L1 term: the share of the tokens that the soft masks keep.

    By default this is the mean over real tokens and decision layers, so 1 = everything is kept. With `padding`, the
    mask of a padding position at each layer, it is the reference code's value: the mean over `padded_length` positions
    of each sentence, summed over layers.  Source: LTP, arXiv:2107.00910; ltp.md 1.5.
    """
    kept = (keep * alive).sum((1, 2))
    if padding is None:
        return (kept / alive.sum()).mean()
    rows = len(alive)
    return ((kept + (rows * padded_length - alive.sum()) * padding) / (rows * padded_length)).sum()


def cost_gap(share: Float[Tensor, ""], target: float) -> Float[Tensor, ""]:
    """Return the squared relative distance of the remaining share of FLOPs from its target."""
    return (share / target - 1) ** 2


def lagrangian(
    sparsity: Float[Tensor, ""], target: float, lambda1: Float[Tensor, ""], lambda2: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Return lambda1 * (s - t) + lambda2 * (s - t)^2; the multipliers are trained by gradient ascent."""
    distance = sparsity - target
    return lambda1 * distance + lambda2 * distance**2


def linear_warmup(step: int, warmup_steps: int, target: float) -> float:
    """Return the constraint's target at a step, which rises linearly from 0 to `target`."""
    return target * (1.0 if warmup_steps <= 0 else min(1.0, step / warmup_steps))


def rank_weight(step: int, warmup_steps: int, alpha: float, floor: float = 0.01) -> float:
    """Return the weight of rank distillation at a step; it falls linearly to `floor` * `alpha` as the target rises."""
    passed = 1.0 if warmup_steps <= 0 else min(1.0, step / warmup_steps)
    return alpha * max(floor, 1 - passed)


def candidate_share(
    keep: Float[Tensor, "batch tokens"], candidates: Shaped[Tensor, "batch tokens"]
) -> Float[Tensor, "batch"]:
    """Return the mean keep of each sentence's candidates, the tokens that may be pruned; 1 where there are none."""
    weight = candidates.to(keep.dtype)
    count = weight.sum(-1)
    return torch.where(count > 0, (keep * weight).sum(-1) / count.clamp(min=1), 1.0)


def consistency(share: Float[Tensor, "batch"]) -> Float[Tensor, ""]:
    """Return the mean absolute distance of each sentence's share from the batch mean, as in TS-DTP's auxiliary loss.

    The authors' code applies it to sums of attention, which are equal for all sentences. Applied to the share kept, it
    varies, and asks every sentence for the same share.
    """
    return (share - share.mean()).abs().mean()
