"""Policies: schedules to the digit, ties, counts, and when nothing comes back."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.tokens.policies import KeepRatio, Threshold, linear_ratios, published_dense_layers
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


def test_half_a_token_stays():
    """Half-even rounding would keep 12 of 25; ltp.md 10.6."""
    for length, kept in ((25, 13), (27, 14)):
        assert KeepRatio({0: 0.5}).counts(torch.tensor([length]), 1)[1].item() == kept


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    rate=st.floats(-3, 1),
    dense=st.integers(0, 5),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_counts_from_lengths_are_what_is_kept(rate, dense, lengths, seed):
    policy, here = KeepRatio(linear_ratios(4, dense, rate)), state(lengths)
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


def test_a_token_at_the_threshold_stays():
    """ltp.md 10.2, in the reference's unit: ties are kept."""
    scores = torch.tensor([[0.375, 0.25, 0.2, 0.125, 0.0]])
    assert Threshold({0: 0.2})(0, scores, state([5])).tolist() == [[1, 1, 1, 0, 0]]


def test_a_higher_threshold_never_adds_a_token():
    scores = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    kept = [Threshold({0: float(t)})(0, scores, state([20, 20, 20])) for t in torch.linspace(0, 1, 9)]
    assert all((later <= earlier).all() for earlier, later in pairwise(kept))
