"""Hard-concrete gates and rank bins: the numbers of top.md T1 to T6 and T22, and properties of all gates."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.tokens.gates import (
    LOGA_BOUND,
    HardConcrete,
    deterministic_coarse,
    deterministic_fine,
    gates_at,
    keep_from_gates,
    open_probability,
    rank_bins,
    sample_gates,
)

# log odds, P(gate > 0), P(gate = 0), P(gate = 1), mean
TABLE = [
    (-4.60517, 0.047130, 0.952871, 0.002017, 0.013116),
    (-3.0, 0.197594, 0.802407, 0.009964, 0.060418),
    (-2.0, 0.400975, 0.599025, 0.026632, 0.142675),
    (-1.598597, 0.5, 0.5, 0.039270, 0.194306),
    (-1.0, 0.645335, 0.354664, 0.069228, 0.292945),
    (0.0, 0.831822, 0.168177, 0.168177, 0.5),
    (1.0, 0.930771, 0.069228, 0.354664, 0.707055),
    (2.0, 0.973367, 0.026632, 0.599025, 0.857325),
    (3.0, 0.990034, 0.009964, 0.802407, 0.939582),
    (4.60517, 0.997982, 0.002017, 0.952871, 0.986884),
]

odds = st.floats(-4.5, 4.5, width=32)
steady = settings(deadline=None, derandomize=True)


def draws_over_the_unit_interval(log_alpha, count=1_000_000):
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return gates_at(uniform, torch.full_like(uniform, log_alpha))


@pytest.mark.parametrize(("log_alpha", "is_open", "is_zero", "is_one", "mean"), TABLE)
def test_hard_concrete_has_the_published_distribution(log_alpha, is_open, is_zero, is_one, mean):
    exact = torch.tensor(log_alpha, dtype=torch.float64)
    draws = draws_over_the_unit_interval(log_alpha)
    assert float(open_probability(exact)) == pytest.approx(is_open, abs=2e-6)
    assert float((draws == 0).double().mean()) == pytest.approx(is_zero, abs=2e-6)
    assert float((draws == 1).double().mean()) == pytest.approx(is_one, abs=2e-6)
    assert float(draws.mean()) == pytest.approx(mean, abs=2e-6)


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 3.0])
def test_random_draws_follow_the_published_distribution(log_alpha):
    generator = torch.Generator().manual_seed(0)
    draws = sample_gates(torch.full((1_000_000,), log_alpha), generator=generator)
    mean = {row[0]: row[4] for row in TABLE}[log_alpha]
    assert float(draws.mean()) == pytest.approx(mean, abs=2e-3)
    assert float(draws.min()) >= 0.0
    assert float(draws.max()) <= 1.0


def test_a_generator_makes_draws_repeatable():
    alpha = torch.zeros(3, 4)
    first, second = (sample_gates(alpha, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)


def test_open_probability_is_a_sigmoid_shifted_by_1_598597():
    alpha = torch.linspace(-4.5, 4.5, 19, dtype=torch.float64)
    torch.testing.assert_close(open_probability(alpha), torch.sigmoid(alpha + 1.598597), atol=1e-6, rtol=0)


def test_another_stretch_moves_the_open_probability():
    wide = HardConcrete(beta=1.0, gamma=-1.0, zeta=1.5)
    # sigmoid(ln(1.5)) = 1.5 / 2.5
    assert float(open_probability(torch.tensor(0.0), wide)) == pytest.approx(0.6, abs=1e-6)
    half = gates_at(torch.tensor([0.5]), torch.tensor([0.0]), wide)
    assert half.tolist() == [0.25]  # 0.5 * 2.5 - 1


@steady
@given(odds)
def test_means_of_opposite_log_odds_add_up_to_one(alpha):
    total = draws_over_the_unit_interval(alpha, 2000).mean() + draws_over_the_unit_interval(-alpha, 2000).mean()
    assert float(total) == pytest.approx(1.0, abs=1e-9)


# -- deterministic gates -----------------------------------------------------------------------------------


def test_the_expected_number_of_smallest_gates_closes():
    assert deterministic_fine(torch.tensor([[2.0, 1, 0, -1, -2, -3]])).tolist() == [[1, 1, 1, 1, 0, 0]]
    assert deterministic_fine(torch.tensor([[3.0, -3, 3, -3]])).tolist() == [[1, 0, 1, 0]]


def test_gates_are_not_a_prefix_when_log_odds_are_not_sorted():
    assert deterministic_fine(torch.tensor([[-3.0, 2, -2, 1, 0, -1]])).tolist() == [[0, 1, 0, 1, 1, 1]]


@pytest.mark.parametrize(("bins", "zeros"), [(20, 3), (25, 4), (30, 5), (50, 8), (100, 17), (150, 25), (256, 43)])
def test_among_equal_gates_the_lower_bins_stay_open(bins, zeros):
    assert deterministic_fine(torch.zeros(1, bins)).tolist() == [[1.0] * (bins - zeros) + [0.0] * zeros]


@pytest.mark.parametrize(("bins", "kept"), [(20, 1), (25, 1), (30, 1), (50, 2), (100, 5), (150, 7), (256, 12)])
def test_within_the_clamp_a_location_never_closes_all_bins(bins, kept):
    assert float(deterministic_fine(torch.full((1, bins), -LOGA_BOUND)).sum()) == kept


@pytest.mark.parametrize(("bins", "kept"), [(20, 20), (50, 50), (150, 150), (256, 255)])
def test_at_the_upper_clamp_all_bins_are_open_up_to_150(bins, kept):
    assert float(deterministic_fine(torch.full((1, bins), LOGA_BOUND)).sum()) == kept


def test_half_a_zero_rounds_to_even():
    even_odds = -2 / 3 * math.log(11)  # P = 1/2
    alpha = torch.tensor([[even_odds, 60.0, 60.0], [even_odds, even_odds, even_odds]], dtype=torch.float64)
    # half a zero -> none, one and a half -> two; without eps, because it leaves a millionth in the gates at 60
    assert deterministic_fine(alpha, HardConcrete(eps=0.0)).tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_layer_prunes_where_its_switch_is_more_likely_open():
    assert deterministic_coarse(torch.tensor([-1.61, -1.59, 4.6, -4.6])).tolist() == [0, 1, 1, 0]
    even_odds = torch.tensor([2 / 3 * math.log(0.1 / 1.1)], dtype=torch.float64)
    assert open_probability(even_odds).tolist() == [0.5]
    assert deterministic_coarse(even_odds).tolist() == [1]


@steady
@given(st.lists(odds, min_size=1, max_size=60))
def test_closed_gates_are_the_expected_number_and_never_above_an_open_one(alpha):
    row = torch.tensor([alpha])
    gates = deterministic_fine(row)[0]
    expected = len(alpha) - float(open_probability(row).double().sum())
    assert abs(float((gates == 0).sum()) - expected) <= 0.5 + 1e-4
    closed, opened = row[0][gates == 0], row[0][gates == 1]
    if len(closed) and len(opened):
        assert float(closed.max()) <= float(opened.min())


@steady
@given(st.lists(odds, min_size=1, max_size=40), st.floats(0, 10))
def test_raising_all_log_odds_opens_and_never_closes(alpha, by):
    row = torch.tensor([alpha])
    assert bool((deterministic_fine(row + by) >= deterministic_fine(row)).all())


# -- bins --------------------------------------------------------------------------------------------------


def bins_of(count, bins, **options):
    return rank_bins(torch.arange(count)[None, :], torch.tensor([count]), bins, **options)[0].tolist()


def test_ranks_fall_in_bins_by_the_integer_rule():
    assert bins_of(8, 4) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert bins_of(10, 20) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert bins_of(3, 2) == [0, 0, 1]


def test_compat_puts_exact_multiples_one_bin_lower_below_32_tokens():
    assert bins_of(10, 20, compat=True) == [0, 1, 3, 5, 7, 9, 11, 13, 15, 17]
    assert bins_of(5, 20, compat=True) == [0, 3, 7, 11, 15]
    assert bins_of(8, 4, compat=True) == [0, 0, 0, 1, 1, 2, 2, 3]
    assert bins_of(60, 20, compat=True) == bins_of(60, 20)


@pytest.mark.parametrize("bins", [20, 25, 30, 50])
def test_compat_differs_from_the_integer_rule_up_to_30_tokens_only(bins):
    differing = [count for count in range(1, 513) if bins_of(count, bins) != bins_of(count, bins, compat=True)]
    assert max(differing) <= 30


def test_ranks_beyond_the_alive_tokens_share_an_extra_bin():
    assert rank_bins(torch.tensor([[0, 1, 2, 3]]), torch.tensor([2]), 5).tolist() == [[0, 2, 5, 5]]
    assert rank_bins(torch.tensor([[0, 1]]), torch.tensor([0]), 5).tolist() == [[5, 5]]


@steady
@given(st.integers(1, 300), st.integers(1, 300))
def test_bins_rise_with_rank_and_hold_almost_equal_numbers(count, bins):
    found = torch.tensor(bins_of(count, bins))
    assert int(found[0]) == 0
    assert bool((found.diff() >= 0).all())
    assert int(found[-1]) == (count - 1) * bins // count
    held = torch.bincount(found, minlength=bins)
    assert int(held.max() - held.min()) <= 1


# -- keep --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fine", "coarse", "alive", "keep"),
    [(0.3, 0.01, 1, 0.3), (0.3, 0.0, 1, 1.0), (0.3, 0.9, 0, 0.0), (0.0, 0.9, 0.2, 0.0), (1.0, 1.0, 0.2, 1.0)],
)
def test_a_switch_above_zero_lets_the_bin_decide(fine, coarse, alive, keep):
    found = keep_from_gates(torch.tensor([[fine]]), torch.tensor(coarse), torch.tensor([[float(alive)]]))
    assert float(found) == pytest.approx(keep, abs=1e-6)


def test_a_switch_passes_its_gradient_straight_through():
    coarse = torch.tensor(0.4, requires_grad=True)
    fine = torch.tensor([[0.3, 0.9, 0.0]], requires_grad=True)
    keep_from_gates(fine, coarse, torch.tensor([[1.0, 1.0, 0.0]])).sum().backward()
    assert float(coarse.grad) == pytest.approx(-(0.7 + 0.1))  # forward 1, backward -(1 - m) of the alive tokens
    assert fine.grad.tolist() == [[1, 1, 0]]


@steady
@given(st.lists(odds, min_size=1, max_size=20), odds, st.integers(0, 10_000))
def test_task_gradients_of_gates_vanish_exactly_where_a_draw_is_clipped(alpha, coarse_alpha, seed):
    """top.md T22, at the level of the gates."""
    fine_alpha = torch.tensor(alpha, requires_grad=True)
    switch_alpha = torch.tensor(coarse_alpha, requires_grad=True)
    generator = torch.Generator().manual_seed(seed)
    fine = sample_gates(fine_alpha, generator=generator)
    switch = sample_gates(switch_alpha, generator=generator)
    keep_from_gates(fine[None], switch, torch.ones(1, len(alpha))).sum().backward()
    fine, switch = fine.detach(), float(switch.detach())
    if switch == 0:
        assert float(fine_alpha.grad.abs().sum()) == 0
        assert float(switch_alpha.grad) == 0
    else:
        assert torch.equal(fine_alpha.grad != 0, (fine > 0) & (fine < 1))
    if 0 < switch < 1 and bool((fine < 1).any()):
        assert float(switch_alpha.grad) < 0  # opening the switch prunes


def test_the_bound_of_log_odds_is_ln_100():
    assert pytest.approx(4.605170, abs=1e-6) == LOGA_BOUND
