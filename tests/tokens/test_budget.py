"""Meeting a budget by bisection, and refusing a budget that cannot be met."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.tokens.budget import InfeasibleBudgetError, bisect, check_feasible, check_reachable

steady = settings(deadline=None, derandomize=True)


def counted(measure):
    """The measure, and a list of the knobs that it was called with."""
    asked = []

    def measured(knob):
        asked.append(knob)
        return measure(knob)

    return measured, asked


def test_a_smooth_measure_is_met_within_tolerance():
    found = bisect(lambda knob: 1 + knob**2, 3.0, low=0.0, high=4.0, tolerance=1e-6)
    assert found.met
    assert found.knob == pytest.approx(2**0.5, abs=1e-5)
    assert (found.low, found.high) == (1.0, 17.0)


def test_a_measure_that_falls_is_met_too():
    found = bisect(lambda keep_ratio: 1 / keep_ratio, 4.0, low=0.1, high=1.0, tolerance=1e-6)
    assert found.met
    assert found.knob == pytest.approx(0.25, abs=1e-6)
    assert (found.low, found.high) == (1.0, 10.0)


def test_it_stops_as_soon_as_the_budget_is_met():
    measure, asked = counted(lambda knob: 1 + knob)
    found = bisect(measure, 3.03, low=0.0, high=4.0, tolerance=0.02)
    assert (found.knob, found.reached, found.met) == (2.0, 3.0, True)  # 1 % off
    assert asked == [0.0, 4.0, 2.0]


def test_dear_measurements_are_interpolated_and_none_is_repeated():
    # 1.5^knob is a line in the logarithm: the first guess between the known ends is the answer
    measure, asked = counted(lambda knob: 1.5**knob)
    found = bisect(measure, 1.5**3, low=0.0, high=4.0, tolerance=1e-6, known={0.0: 1.0, 4.0: 1.5**4})
    assert asked == pytest.approx([3.0])
    assert (found.knob, found.met) == (pytest.approx(3.0), True)


def test_a_known_knob_that_meets_the_budget_is_taken_without_measuring():
    measure, asked = counted(lambda knob: 1 + knob)
    found = bisect(measure, 3.03, low=0.0, high=4.0, tolerance=0.02, known={0.0: 1.0, 2.0: 3.0, 4.0: 5.0})
    assert (found.knob, found.met, asked) == (2.0, True, [])


def test_known_knobs_narrow_the_search():
    measure, asked = counted(lambda knob: 1 + knob)
    bisect(measure, 3.5, low=0.0, high=4.0, tolerance=1e-3, known={0.0: 1.0, 2.0: 3.0, 4.0: 5.0})
    assert asked
    assert all(2 < knob < 4 for knob in asked)


@pytest.mark.parametrize(
    ("target", "known", "tried", "left"),
    [
        (3.0, None, [0.0, 4.0, 2.0], 2.0),  # the last one tried is the best
        (2.3, None, [0.0, 4.0, 2.0, 1.0, 1.5, 1.25], 1.25),
        (1.0, None, [0.0, 4.0], 0.0),  # the first one is, and nothing more is tried
        (1.0, {0.0: 1.0, 4.0: 5.0}, [], 0.0),  # nothing is measured, and it is set all the same
    ],
)
def test_the_best_knob_is_left_set(target, known, tried, left):
    place = {"knob": 9.0}
    measure, asked = counted(lambda knob: 1 + place["knob"])
    found = bisect(
        measure, target, low=0.0, high=4.0, known=known, set_knob=lambda knob: place.update(knob=knob), tolerance=0.03
    )
    assert (asked, found.knob, place["knob"]) == (tried, left, left)


def test_a_knob_that_overshoots_last_is_not_left_set():
    place = {"knob": 9.0}
    wobble = {0.0: 1.0, 8.0: 9.0, 4.0: 3.1, 2.0: 3.4, 1.0: 2.0, 3.0: 5.0}
    measure, asked = counted(lambda knob: wobble[place["knob"]])
    bisect(measure, 3.0, low=0.0, high=8.0, iterations=3, set_knob=lambda knob: place.update(knob=knob))
    assert (asked[-1], place["knob"]) == (1.0, 4.0)


def test_interpolation_does_not_get_stuck_at_a_cliff():
    measure, asked = counted(lambda knob: 1.0 if knob < 0.9 else 100 * (knob - 0.89))
    found = bisect(measure, 4.0, low=0.0, high=1.0, tolerance=0.01, known={0.0: 1.0, 1.0: 11.0})
    assert found.met
    assert len(asked) < 14


def test_the_nearer_of_two_steps_around_the_target_wins():
    def steps(knob):
        return 2.0 if knob < 0.7 else 3.5

    found = bisect(steps, 3.0, low=0.0, high=1.0)
    assert (found.reached, found.met) == (3.5, False)  # 3/3.5 is 14 % off, 3/2 is 50 %
    assert steps(found.knob) == 3.5
    assert bisect(steps, 2.1, low=0.0, high=1.0).reached == 2.0


def test_nearness_is_a_fraction_of_flops_spent():
    # asked 4x = .25 of the FLOPs; 3x spends a third more, 6x a third less: 3x is 33 % off, 6x 33 %, 5.9x less
    assert bisect(lambda knob: 3.0 if knob < 0.5 else 5.9, 4.0, low=0.0, high=1.0).reached == 5.9
    assert bisect(lambda knob: 3.0 if knob < 0.5 else 6.1, 4.0, low=0.0, high=1.0).reached == 3.0


def test_a_target_on_a_plateau_is_found():
    found = bisect(lambda knob: float(int(knob)), 3.0, low=1.0, high=9.0, tolerance=0.0)
    assert (found.reached, found.met) == (3.0, True)


@pytest.mark.parametrize(("target", "knob", "reached"), [(9.0, 4.0, 5.0), (0.5, 0.0, 1.0)])
def test_a_target_out_of_reach_gives_the_nearest_end_and_reports_it_unmet(target, knob, reached):
    measure, asked = counted(lambda knob: 1 + knob)
    found = bisect(measure, target, low=0.0, high=4.0)
    assert (found.knob, found.reached, found.met) == (knob, reached, False)
    assert (found.low, found.high) == (1.0, 5.0)
    assert asked == [0.0, 4.0]  # nothing more to learn


def test_an_end_within_tolerance_is_met():
    assert bisect(lambda knob: 1 + knob, 5.05, low=0.0, high=4.0).met


def test_a_knob_without_effect_is_not_met():
    found = bisect(lambda knob: 1.0, 3.0, low=0.0, high=1.0)
    assert (found.reached, found.met, found.low, found.high) == (1.0, False, 1.0, 1.0)


def test_the_best_knob_is_returned_even_if_the_measure_is_not_quite_monotone():
    wobble = {0.0: 1.0, 8.0: 9.0, 4.0: 3.1, 2.0: 3.4, 1.0: 2.0, 3.0: 5.0}
    found = bisect(lambda knob: wobble[knob], 3.0, low=0.0, high=8.0, iterations=3)
    assert (found.knob, found.reached) == (4.0, 3.1)


@steady
@given(
    st.lists(st.floats(1.0, 12.0), min_size=2, max_size=30),
    st.floats(1.0, 12.0),
    st.booleans(),
)
def test_no_step_of_a_monotone_staircase_is_nearer_than_the_result(steps, target, falls):
    steps = sorted(steps, reverse=falls)

    def staircase(knob):
        return steps[min(int(knob), len(steps) - 1)]

    found = bisect(staircase, target, low=0.0, high=float(len(steps)), tolerance=0.0, iterations=60)
    nearest = min(abs(target / step - 1) for step in steps)
    assert abs(target / found.reached - 1) == pytest.approx(nearest)
    assert staircase(found.knob) == found.reached
    assert (found.low, found.high) == (min(steps), max(steps))


def test_a_budget_out_of_range_is_refused_with_the_range():
    expected = "budget=9x cannot be met by top on minilm and bbc_news; the feasible range is 1.00x to 4.38x."
    with pytest.raises(InfeasibleBudgetError, match=re.escape(expected)):
        check_feasible(9.0, 1.0, 4.3871, "top on minilm and bbc_news")


def test_every_budget_in_the_reported_range_is_accepted():
    low, high = 1.1, 4.3871
    with pytest.raises(InfeasibleBudgetError) as refused:
        check_feasible(4.39, low, high, "top")
    lowest, highest = (float(number) for number in re.findall(r"(\d+\.\d+)x", str(refused.value))[-2:])
    assert (lowest, highest) == (1.10, 4.38)
    check_feasible(lowest, low, high, "top")
    check_feasible(highest, low, high, "top")


def test_a_budget_below_the_range_is_refused_too():
    with pytest.raises(
        InfeasibleBudgetError,
        match=re.escape("budget=1.05x cannot be met by ltp; the feasible range is 1.20x to 3.00x"),
    ):
        check_feasible(1.05, 1.2, 3.0, "ltp")


# -- whole steps ---------------------------------------------------------------------------------------

SIX_LAYERS = [1.0, 1.2, 1.5, 2.0, 3.0, 6.0]


@pytest.mark.parametrize(("asked", "tolerance"), [(2.0, 0.0), (2.03, 0.02), (1.97, 0.02), (2.5, 0.25)])
def test_a_step_within_tolerance_is_taken(asked, tolerance):
    check_reachable(asked, SIX_LAYERS, tolerance, "method=layers")


def test_a_budget_between_two_steps_is_refused_and_both_are_named():
    with pytest.raises(InfeasibleBudgetError) as caught:
        check_reachable(2.4, SIX_LAYERS, 0.02, "method=layers on minilm and sst2")
    assert str(caught.value).splitlines() == [
        "budget=2.4x cannot be met within budget_tolerance=0.02 by method=layers on minilm and sst2, "
        "which goes in whole steps.",
        "Allowed: the nearest steps are 2x and 3x; or a tolerance of 0.2 and more.",
        "Give budget=2x, or budget_tolerance=0.2.",
    ]
