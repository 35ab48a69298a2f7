"""Terms of training losses: pure functions of logits, labels, scores and a teacher's outputs."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

PADDING = -100  # in targets, as Hugging Face has it


def choices(
    logits: Float[Tensor, "batch options"] | Float[Tensor, "batch tokens 2"],
) -> Float[Tensor, "decisions options"]:
    """Logits with a row per decision: one per text among classes, one per word of a translation, or two per text among
    tokens, first and last.
    """
    return logits if logits.dim() == 2 else logits.movedim(-1, 1).flatten(0, 1)


def task_loss(
    logits: Float[Tensor, "decisions outputs"] | Float[Tensor, "batch tokens outputs"],
    labels: Shaped[Tensor, "batch *more"],
    kind: Literal["classification", "regression", "span", "translation"],
) -> Float[Tensor, ""]:
    """Cross-entropy of classes, of the first and last token of an answer, or of words; or squared error of one output.

    Targets of a translation are smoothed by 0.1.
    """
    if kind == "translation":
        return translation_loss(logits, labels)
    if kind == "regression":
        return F.mse_loss(logits.float().squeeze(-1), labels.float())
    return F.cross_entropy(choices(logits).float(), labels.flatten())


def translation_loss(
    logits: Float[Tensor, "words vocabulary"] | Float[Tensor, "batch width vocabulary"],
    targets: Int[Tensor, "batch width"],
    smoothing: float = 0.1,
) -> Float[Tensor, ""]:
    """Cross-entropy of teacher forcing, mean over the words; -100 is padding, of which `logits` have rows or not.

    A share `smoothing` of each target is spread over the vocabulary.  Source: Szegedy et al., arXiv:1512.00567.
    """
    words = targets[targets != PADDING]
    rows = logits[targets != PADDING] if logits.dim() == 3 else logits
    return F.cross_entropy(rows.float(), words, label_smoothing=smoothing)


def distillation_loss(
    student: Float[Tensor, "decisions classes"] | Float[Tensor, "batch tokens 2"],
    teacher: Float[Tensor, "decisions classes"] | Float[Tensor, "batch tokens 2"],
    temperature: float,
) -> Float[Tensor, ""]:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over the batch and, of answers, first and last.

    Source: Hinton et al., arXiv:1503.02531; ToP uses T = 2 and no other task loss.
    """
    wanted = F.log_softmax(choices(teacher).float() / temperature, dim=-1)
    found = F.log_softmax(choices(student).float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(found, wanted, reduction="batchmean", log_target=True)


def arp2_loss(
    scores: Float[Tensor, "batch items"],
    relevance: Float[Tensor, "batch items"],
    valid: Shaped[Tensor, "batch items"] | None = None,
) -> Float[Tensor, "batch"]:
    """ARP-Loss2 of the LambdaLoss framework: sum over pairs with y_a > y_b of (y_a - y_b) * log2(1 + exp(s_b - s_a)).

    Source: Wang et al., CIKM 2018, "The LambdaLoss Framework for Ranking Metric Optimization". Pairs with an item
    that is not `valid` do not count.
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
    """Teaches a student's scores the teacher's order of its `topk` most important tokens; mean over the batch.

    `received` is the canonical score of one student layer, `teacher_rank` is 0 for the teacher's best token and -1
    for [CLS] and padding. Divided by K^2, K = min(topk, longest sentence without [CLS]), as ToP does.
    The loss sees received / sentence length, so scores of a sentence sum to 1. `compat` divides by the padded length
    instead, and lets padding take part as items of score and relevance 0, which pushes the real scores of short
    sentences up; by default such pairs do not count.  Source: ToP, Moonlit ToP/trainer/trainer.py:633-862.
    """
    ranked = teacher_rank >= 0
    count = ranked.sum(-1, keepdim=True)
    width = min(topk, int(count.max()))
    unit = received.float() / (received.shape[1] if compat else count + 1)
    # the teacher's K best of each sentence; sentences with fewer fill up with padding
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
    """LTP's L1 term: how much of the tokens the soft masks keep.

    By default the mean over real tokens and over the layers that decide, so 1 = everything is kept. With `padding`,
    the mask that a padded position has at each layer, it is the reference's number: the mean over `padded_length`
    positions of each sentence, summed over layers.  Source: LTP, arXiv:2107.00910; ltp.md 1.5.
    """
    kept = (keep * alive).sum((1, 2))
    if padding is None:
        return (kept / alive.sum()).mean()
    rows = len(alive)
    return ((kept + (rows * padded_length - alive.sum()) * padding) / (rows * padded_length)).sum()


def cost_gap(share: Float[Tensor, ""], wanted: float) -> Float[Tensor, ""]:
    """Squared relative distance of the share of FLOPs that is left from the one that is wanted."""
    return (share / wanted - 1) ** 2


def lagrangian(
    sparsity: Float[Tensor, ""], target: float, lambda1: Float[Tensor, ""], lambda2: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """lambda1 * (s - t) + lambda2 * (s - t)^2; the multipliers are trained by ascent."""
    distance = sparsity - target
    return lambda1 * distance + lambda2 * distance**2


def linear_warmup(step: int, warmup_steps: int, target: float) -> float:
    """The constraint's target at a step: rises linearly from 0 to `target`."""
    return target * (1.0 if warmup_steps <= 0 else min(1.0, step / warmup_steps))


def rank_weight(step: int, warmup_steps: int, alpha: float, floor: float = 0.01) -> float:
    """Weight of rank distillation at a step: falls linearly from `alpha` to `floor` * alpha while the target rises."""
    passed = 1.0 if warmup_steps <= 0 else min(1.0, step / warmup_steps)
    return alpha * max(floor, 1 - passed)


def candidate_share(
    keep: Float[Tensor, "batch tokens"], candidates: Shaped[Tensor, "batch tokens"]
) -> Float[Tensor, "batch"]:
    """Mean keep of each sentence's candidates, the tokens that may go; 1 where there are none."""
    may_go = candidates.to(keep.dtype)
    count = may_go.sum(-1)
    return torch.where(count > 0, (keep * may_go).sum(-1) / count.clamp(min=1), 1.0)


def consistency(share: Float[Tensor, "batch"]) -> Float[Tensor, ""]:
    """Mean distance of each sentence's share from the batch's: the form of TS-DTP's auxiliary loss.

    Its code applies it to sums of attention, which are the same for every sentence; on what is kept it can vary, and
    asks for the same share of every sentence.
    """
    return (share - share.mean()).abs().mean()
