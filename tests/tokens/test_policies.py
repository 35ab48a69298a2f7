"""Policies: published schedules to the digit, ties, token counts, and thresholds that meet a budget."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.tokens.policies import (
    KeepRatio,
    LearnedThreshold,
    Threshold,
    geometric_ratios,
    linear_ratios,
    linear_thresholds,
    published_dense_layers,
    step_ratios,
)
from prunekit.tokens.state import TokenState


def state(lengths, width=None):
    width = width or max(lengths)
    here = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).float()
    protected = torch.zeros_like(here)
    protected[:, 0] = 1
    return TokenState(here, torch.arange(width).expand_as(here), protected, torch.tensor(lengths).float())


def published(layers, rate):
    return list(linear_ratios(layers, published_dense_layers(layers), rate).values())


def test_the_published_schedule_is_dense_first_and_then_linear():
    """ltp.md 10.6."""
    expected = [1, 1, 1, 0.9111, 0.8222, 0.7333, 0.6444, 0.5556, 0.4667, 0.3778, 0.2889, 0.2]
    assert published(12, 0.2) == pytest.approx(expected, abs=5e-5)
    assert published(6, 0.2) == pytest.approx([1, 1, 1, 0.7333, 0.4667, 0.2], abs=5e-5)
    assert published(24, 0.2) == pytest.approx([1] * 4 + [1 - 0.04 * n for n in range(1, 21)])


def test_a_negative_rate_reaches_the_floor_before_the_last_layer():
    """ltp.md 10.6."""
    expected = [1, 1, 1, 0.8667, 0.7333, 0.6, 0.4667, 0.3333, 0.2, 0.0667, 0.01, 0.01]
    assert published(12, -0.2) == pytest.approx(expected, abs=5e-5)


def test_a_geometric_schedule_falls_by_one_factor():
    assert list(geometric_ratios(4, 1, 0.125).values()) == pytest.approx([1, 0.5, 0.25, 0.125])
    assert list(geometric_ratios(3, 0, 0.125).values()) == pytest.approx([0.5, 0.25, 0.125])


def test_all_at_once_leaves_the_rate_from_the_first_layer_that_prunes():
    assert list(step_ratios(4, 1, 0.25).values()) == [1, 0.25, 0.25, 0.25]
    assert list(step_ratios(3, 0, -1.0).values()) == [0.01, 0.01, 0.01]
    assert list(step_ratios(2, 5, 0.25).values()) == [1, 1]


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_a_geometric_schedule_to_nothing_is_at_the_floor_from_the_first_layer_that_prunes(rate):
    assert list(geometric_ratios(4, 2, rate).values()) == [1, 1, 0.01, 0.01]


@pytest.mark.parametrize(
    ("rate", "length", "counts"),
    [
        (0.2, 26, [26, 26, 26, 24, 21, 19, 17, 14, 12, 10, 8, 5]),
        (0.2, 54, [54, 54, 54, 49, 44, 40, 35, 30, 25, 20, 16, 11]),
        (-0.2, 26, [26, 26, 26, 23, 19, 16, 12, 9, 5, 2, 1, 1]),  # the reference keeps 0 in the last two
    ],
)
def test_counts_are_the_share_of_the_whole_sentence_and_never_zero(rate, length, counts):
    """ltp.md 10.6; quirk 19: at least one token, [CLS]."""
    policy = KeepRatio(linear_ratios(12, 3, rate))
    tokens_in, tokens_out = policy.counts(torch.tensor([length]), 12)
    assert tokens_out[:, 0].tolist() == counts
    assert tokens_in[:, 0].tolist() == [length, *counts[:-1]]


def test_half_a_token_rounds_up():
    """Half-even rounding would keep 12 of 25; ltp.md 10.6."""
    for length, kept in ((25, 13), (27, 14)):
        assert KeepRatio({0: 0.5}).counts(torch.tensor([length]), 1)[1].item() == kept


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    schedule=st.sampled_from([linear_ratios, geometric_ratios]),
    rate=st.floats(-3, 1),
    dense=st.integers(0, 5),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_counts_from_lengths_equal_the_tokens_kept(schedule, rate, dense, lengths, seed):
    policy, here = KeepRatio(schedule(4, dense, rate)), state(lengths)
    generator = torch.Generator().manual_seed(seed)
    _, tokens_out = policy.counts(torch.tensor(lengths), 4)
    keep = here.keep
    for layer in range(4):
        now = TokenState(keep, here.position, here.protected, here.length)
        chosen = policy(layer, torch.rand(keep.shape, generator=generator), now)
        chosen = torch.where(here.protected > 0, 1.0, chosen) * keep
        assert (chosen <= keep).all()
        assert chosen.sum(-1).tolist() == tokens_out[layer].tolist()
        keep = chosen


def test_a_token_at_the_threshold_is_kept():
    """ltp.md 10.2, in the reference's unit: ties are kept."""
    scores = torch.tensor([[0.375, 0.25, 0.2, 0.125, 0.0]])
    assert Threshold({0: 0.2})(0, scores, state([5])).tolist() == [[1, 1, 1, 0, 0]]


def test_a_higher_threshold_never_adds_a_token():
    scores = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    kept = [Threshold({0: float(t)})(0, scores, state([20, 20, 20])) for t in torch.linspace(0, 1, 9)]
    assert all((later <= earlier).all() for earlier, later in pairwise(kept))


# -- meeting a budget by thresholds ----------------------------------------------------------------------


def falling(policy, scores):
    """A FLOPs reduction: all tokens by those kept at layer 0."""
    return lambda: float(scores.numel() / policy(0, scores, state([scores.shape[1]])).sum().clamp(min=1))


def test_meet_finds_a_scale_of_any_size():
    for factor in (0.01, 1.0, 300.0):
        scores = torch.linspace(0, 2, 400)[None] * factor
        policy = Threshold({0: 1.0})
        found = policy.meet(falling(policy, scores), 4.0, most=400.0, tolerance=0.005)
        assert found.met
        assert float(policy.scale) == pytest.approx(1.5 * factor, rel=0.01)  # a quarter of the scores is above 1.5 of 2


def test_a_budget_that_no_scale_meets_gets_the_nearest():
    scores = torch.tensor([[0.5, 1.0, 1.0, 1.0]])
    policy = Threshold({0: 1.0})
    found = policy.meet(falling(policy, scores), 1.5, most=4.0, tolerance=0.005)
    assert (found.met, found.reached) == (False, pytest.approx(4 / 3))


def test_dropping_everything_takes_a_scale_that_no_score_reaches():
    scores = torch.tensor([[0.5, 1.0, 1.0, 1.0]])
    policy = Threshold({0: 1.0})
    policy.meet(falling(policy, scores), 4.0, most=4.0, tolerance=0.005)
    assert policy(0, scores, state([4])).sum() == 0


# -- learned thresholds: ltp.md section 10 ---------------------------------------------------------------

EXAMPLE = torch.tensor([[0.375, 0.25, 0.125, 0.0]])  # in the reference's unit, the last one padding


def learned(threshold, temperature=0.05, **given):
    return LearnedThreshold({1: threshold}, temperature, **given)


def test_soft_masks_and_their_slopes_are_the_published_ones():
    """ltp.md 10.2."""
    policy = learned(0.2)
    soft = policy.soft(1, EXAMPLE, state([3], 4))
    assert soft[0].tolist() == pytest.approx([0.970688, 0.731059, 0.182426, 0.017986], abs=1e-6)
    slopes = [torch.autograd.grad(value, policy.values, retain_graph=True)[0].item() for value in soft[0]]
    assert slopes == pytest.approx([-0.569060, -3.932239, -2.982929, -0.353254], abs=1e-5)
    assert policy(1, EXAMPLE, state([3], 4)).tolist() == [[1, 1, 0, 0]]


def test_soft_keep_is_symmetric_about_the_threshold():
    """ltp.md 10.5."""
    policy = learned(0.3)
    above, below = policy.soft(1, torch.tensor([[0.37, 0.23]]), state([2]))[0].tolist()
    assert above + below == pytest.approx(1)


def test_thresholds_start_on_a_line_from_zero():
    """ltp.md 1.3: l/L, not the (l + 1)/L of the reference's README."""
    found = linear_thresholds(12, 0.01)
    expected = [0.000833, 0.001667, 0.0025, 0.003333, 0.004167, 0.005, 0.005833, 0.006667, 0.0075, 0.008333, 0.009167]
    assert list(found) == list(range(1, 12))
    assert list(found.values()) == pytest.approx(expected, abs=1e-6)


def test_under_uniform_attention_the_line_keeps_all_up_to_layer_9_and_nothing_after():
    """ltp.md 10.9: every score is 1, thresholds are 1.28 * l / 12."""
    policy = LearnedThreshold(linear_thresholds(12, 1.28), temperature=0.128)
    ones = torch.ones(1, 5)
    assert [int(policy(layer, ones, state([5])).sum()) for layer in range(1, 12)] == [5] * 9 + [0] * 2
    soft = [policy.soft(layer, ones, state([5]))[0, 0].item() for layer in range(1, 12)]
    expected = [0.9991, 0.9979, 0.9951, 0.9888, 0.9746, 0.9433, 0.8786, 0.7587, 0.5775, 0.3727, 0.2052]
    assert soft == pytest.approx(expected, abs=5e-5)


def test_a_threshold_below_zero_counts_as_the_floor():
    policy = learned(-0.4, floor=0.1)
    assert policy(1, EXAMPLE, state([3], 4)).tolist() == [[1, 1, 1, 0]]
    policy.scale.fill_(3.0)
    assert policy.threshold(1).item() == pytest.approx(0.3)


def test_the_hard_decision_has_no_gradient():
    """ltp.md 10.10."""
    assert not learned(0.2)(1, EXAMPLE, state([3], 4)).requires_grad


def test_shares_beside_a_protected_segment_are_of_the_rest():
    """Of 10 tokens 4 are protected: half of the other 6 stay with them; without `beside`, half of 10."""
    protected = (torch.arange(10) < 4).float()[None]
    state = TokenState(torch.ones(1, 10), torch.arange(10)[None], protected, torch.tensor([10.0]))
    scores = torch.arange(10.0)[None]
    whole, beside = KeepRatio({0: 0.5}), KeepRatio({0: 0.5}, beside=True)
    assert whole(0, scores, state)[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0, 1]
    assert beside(0, scores, state)[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 1, 1, 1]
    for policy, kept in ((whole, 5), (beside, 7)):
        tokens_in, tokens_out = policy.counts(torch.tensor([10]), 2, protected=torch.tensor([4]))
        assert (tokens_in[:, 0].tolist(), tokens_out[:, 0].tolist()) == ([10, kept], [kept, kept])
    assert beside.arguments() == {"ratios": {0: 0.5}, "beside": True}
    assert whole.arguments() == {"ratios": {0: 0.5}}
    whole.protect_segment()
    assert whole(0, scores, state).sum() == 7
