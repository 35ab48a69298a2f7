"""Pruners of every kind of decision, and what a batch gives under each."""

from __future__ import annotations

import torch

from prunekit.tokens.policies import KeepRatio, MeanMinusStd, Threshold
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.rank_gates import RankGate
from prunekit.tokens.scorers import (
    AccumulatedReceived,
    AttentionReceived,
    EarlierFirst,
    RandomOrder,
    ReceivedAfterDropout,
)
from prunekit.tokens.state import Trace
from prunekit.tokens.task_attention import TaskImportance
from support.models import sentences

LENGTHS = [20, 13, 7, 1, 20, 3]


def gates():
    policy = RankGate([1, 2], 5, init_coarse=4.0, min_tokens=1)
    with torch.no_grad():
        policy.token_loga.copy_(torch.tensor([[3.0, 3, 3, -3, -3], [3, 3, -3, -3, -3]]))
    return policy


def task_importance():
    torch.manual_seed(1)
    return TaskImportance(32, 8, range(4), 1.0)


RATIOS = {0: 0.9, 1: 0.7, 2: 0.5, 3: 0.25}


THRESHOLDS = {0: 0.3, 1: 0.6, 2: 0.8, 3: 0.9}


DECISIONS = {
    "ratio": lambda: TokenPruner(AttentionReceived(), KeepRatio(RATIOS), range(4)),
    "accumulated": lambda: TokenPruner(AccumulatedReceived(), KeepRatio(RATIOS), range(4)),
    "random": lambda: TokenPruner(RandomOrder(3), KeepRatio(RATIOS), range(4)),
    "first": lambda: TokenPruner(EarlierFirst(), KeepRatio(RATIOS), range(4)),
    "threshold": lambda: TokenPruner(AttentionReceived(), Threshold(THRESHOLDS), range(4)),
    "threshold, nothing protected": lambda: TokenPruner(
        AttentionReceived(), Threshold(THRESHOLDS), range(4), protect_first=False
    ),
    "gates": lambda: TokenPruner(AttentionReceived(), gates(), [1, 2]),
    "task attention": lambda: TokenPruner(
        task_importance(), MeanMinusStd({1: 0.2, 2: 0.2}), range(3), protect_last=True
    ),
    "after dropout": lambda: TokenPruner(ReceivedAfterDropout(), Threshold(THRESHOLDS), range(4)),
    "nothing": lambda: None,
}


def masked(model, batch, **kwargs):
    """Logits and kept places of the mask path."""
    trace = Trace()
    with torch.no_grad():
        logits = model(**batch, execution="mask", trace=trace, **kwargs).logits
    kept = [[p[k > 0].tolist() for p, k in zip(step.position, step.keep, strict=True)] for step in trace.layers]
    return logits, kept, trace


def batch_of(model, lengths=LENGTHS):
    return sentences(lengths, pad=model.config.pad_token_id or 0)
