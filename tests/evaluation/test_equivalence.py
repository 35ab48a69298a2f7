"""Executions agree up to rounding: near ties do not stop a run, and whatever is more than rounding does."""

import pytest
import torch
from support.models import sentences, tiny_model

from prunekit.evaluation.equivalence import ExecutionsDifferError, check_executions_agree
from prunekit.evaluation.evaluate import predict
from prunekit.tokens.encoder import encoder_of, install
from prunekit.tokens.policies import KeepRatio, Threshold
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import AttentionReceived, Scorer

BATCH = sentences([12, 7, 9, 5], width=14)


def model_with(policy, scorer=None, layers=(1, 2)):
    return install(tiny_model(), TokenPruner(scorer or AttentionReceived(), policy, layers))


def kept(model, execution):
    _, trace = predict(model, BATCH, execution)
    return [
        [sorted(place[keep > 0].tolist()) for place, keep in zip(entry.position, entry.keep, strict=True)]
        for entry in trace.layers
    ]


class Jittered(Scorer):
    """Attention received, rounded to halves so that many scores tie, plus noise that hangs on the layout.

    Packed rows are as wide as the longest sentence, padded ones as the batch; so width tells executions apart.
    """

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def forward(self, signals, state):
        padded = state.keep.shape[1] == BATCH["input_ids"].shape[1]
        sign = 1 - 2 * (state.position % 2)  # some up, some down
        return (2 * signals.received).round() / 2 + sign * self.noise * padded


def test_executions_that_agree_have_no_near_ties():
    agreed = check_executions_agree(model_with(KeepRatio({1: 0.6, 2: 0.4})), BATCH)
    assert agreed.worst <= 1e-5
    assert agreed.near_ties == 0


@pytest.mark.parametrize(
    "policy",
    [Threshold({1: 1.0, 2: 0.5}), KeepRatio({1: 0.5, 2: 0.3})],
    ids=["a score on its threshold", "equal scores"],
)
@pytest.mark.parametrize("second", ["drop", "pack"])
def test_a_decision_within_rounding_does_not_stop_the_run(policy, second):
    model = model_with(policy, Jittered(1e-6))
    assert kept(model, "mask") != kept(model, second)  # rounding did decide
    agreed = check_executions_agree(model, BATCH, "mask", second)
    assert agreed.near_ties > 0
    assert agreed.worst <= 1e-4  # with the same tokens the logits are the same


def test_scores_that_differ_by_more_than_rounding_stop_the_run():
    with pytest.raises(
        ExecutionsDifferError, match=r"scores of layer 1 differ by 0\.0\d+, which is more than rounding"
    ):
        check_executions_agree(model_with(Threshold({1: 1.0, 2: 1.0}), Jittered(1e-2)), BATCH)


class ByWidth(KeepRatio):
    """Counts padding: the classic mistake."""

    def _count(self, layer, lengths, protected):
        return super()._count(layer, torch.full_like(lengths, self.width), protected)

    def forward(self, layer, scores, state):
        self.width = scores.shape[1]
        return super().forward(layer, scores, state)


def test_a_rule_that_decides_otherwise_on_the_same_scores_stops_the_run():
    message = r"(?s)keep different tokens in 4 of 4 sentences; in sentence 0 layer 2 keeps 7 and \d tokens by the same"
    with pytest.raises(ExecutionsDifferError, match=message):
        check_executions_agree(model_with(ByWidth({2: 0.5}), layers=[2]), sentences([12, 12, 12, 12], width=14))


class Lost(torch.nn.Module):
    """A layer's feed-forward half that gives more under one layout only."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden):
        return self.inner(hidden) * (1.5 if hidden.shape[0] == 1 else 1.0)


def test_logits_that_differ_although_the_tokens_are_the_same_stop_the_run():
    model = model_with(KeepRatio({1: 0.5}), layers=[1])
    last = encoder_of(model).layer[3]
    last.output.dense = Lost(last.output.dense)
    with pytest.raises(ExecutionsDifferError, match=r"'mask' and 'pack' differ by \d.* in the logits"):
        check_executions_agree(model, BATCH)


def test_the_model_is_left_as_it_was():
    model = model_with(Threshold({1: 1.0, 2: 1.0}), Jittered(1e-6))
    pruner, scorer = encoder_of(model).pruner, encoder_of(model).pruner.scorer
    check_executions_agree(model, BATCH)
    assert encoder_of(model).pruner is pruner
    assert pruner.scorer is scorer


def test_a_label_may_hang_on_rounding_and_on_nothing_else():
    model = model_with(KeepRatio({}), layers=[])
    head = model.classifier
    with torch.no_grad():
        head.weight[1].copy_(head.weight[0])
        head.bias[:2] = 30.0  # two classes tie
    inner = head.forward

    def nudged(by):
        head.forward = lambda hidden: inner(hidden) + by * torch.tensor([0.0, 1.0, 0.0]) * nudged.on

    original = encoder_of(model).forward

    def forward(*args, **kwargs):
        nudged.on = float(kwargs.get("execution") == "pack")
        return original(*args, **kwargs)

    encoder_of(model).forward = forward
    nudged(1e-5)
    assert check_executions_agree(model, BATCH).worst <= 2e-5
    with torch.no_grad():
        head.bias[0] += 5e-4  # now the first leads by more than rounding
    nudged(9e-4)
    with pytest.raises(ExecutionsDifferError, match=r"in 4 of 4 labels"):
        check_executions_agree(model, BATCH)
