"""Length schedules: drawing, mutating, crossing over and bending them, and the Pareto set."""

from itertools import pairwise
from random import Random

import pytest

from prunekit.tokens.schedules import (
    Point,
    bend,
    bend_to,
    constant_ratio,
    cross_over,
    drop_lengths,
    evolve,
    mutate,
    pareto,
)

FALLING = (0.9, 0.6, 0.5, 0.2)


def reduction(schedule):
    """A stand-in for the FLOPs reduction: 1 / the mean share kept."""
    return len(schedule) / max(sum(schedule), 0.1)


def falls(schedule):
    return all(one >= other for one, other in zip((1.0, *schedule), (*schedule, 0.0), strict=True))


def test_a_constant_ratio_applies_to_what_the_previous_layer_kept():
    assert constant_ratio(3, 0.5) == (0.5, 0.25, 0.125)


def test_length_drop_removes_at_most_its_share_at_each_layer():
    for seed in range(50):
        shares = (1.0, *drop_lengths(12, 0.2, Random(seed)))
        assert all(0.8 * one <= other <= one for one, other in pairwise(shares))
    assert drop_lengths(12, 0.2, Random(1)) != drop_lengths(12, 0.2, Random(2))


def test_a_mutation_stays_between_its_neighbours_and_at_or_above_the_last_share():
    drawn = [mutate(FALLING, Random(seed)) for seed in range(50)]
    assert all(falls(schedule) for schedule in drawn)
    assert all(schedule[-1] >= 0.2 for schedule in drawn)
    unchanged = [sum(a == b for a, b in zip(schedule, FALLING, strict=True)) for schedule in drawn]
    assert 1.5 < sum(unchanged) / 50 < 2.5  # each share with probability 1/2


def test_a_crossover_is_the_mean_of_two_schedules():
    assert cross_over((1.0, 0.5), (0.6, 0.1)) == pytest.approx((0.8, 0.3))


def test_bending_changes_how_much_is_pruned_and_keeps_the_form():
    assert bend((1.0, 0.5, 0.25), 2.0) == (1.0, 0.25, 0.0625)
    assert bend((0.5, 0.25), 0.0) == (1.0, 1.0)


@pytest.mark.parametrize("asked", [1.0, 1.5, 3.0, 20.0])
def test_a_schedule_is_bent_to_the_reduction_asked_for(asked):
    found = bend_to(FALLING, reduction, asked)
    assert reduction(found) == pytest.approx(asked, rel=2e-3)
    assert falls(found)


def test_the_pareto_set_holds_the_points_that_no_other_dominates():
    points = [
        Point((float(n),), r, s)
        for n, (r, s) in enumerate([(1.0, 0.9), (2.0, 0.9), (3.0, 0.5), (2.5, 0.4), (3.0, 0.5)])
    ]
    assert [point.schedule for point in pareto(points)] == [(1.0,), (2.0,)]


def test_the_search_is_a_function_of_its_seed_and_improves():
    def measure(schedule):
        return Point(schedule, reduction(schedule), -abs(schedule[0] - 0.77))  # the first layer should keep 0.77

    def search(seed):
        start = [(1.0,) * 4, constant_ratio(4, 0.5)]
        sizes = {"iterations": 10, "mutations": 6, "crossovers": 6}
        return list(evolve(start, measure, **sizes, random=Random(seed)))

    found = search(1)
    assert len(found) == 2 + 10 * 12
    assert found == search(1) != search(2)
    assert all(falls(point.schedule) for point in found)
    assert max(point.score for point in found) > -0.01  # -0.23 at the start


def test_a_schedule_is_measured_once_and_every_second_child_meets_the_budget():
    measured = []

    def measure(schedule):
        measured.append(schedule)
        return Point(schedule, reduction(schedule), 0.0)

    sizes = {"iterations": 3, "mutations": 4, "crossovers": 4, "random": Random(0)}
    found = list(
        evolve([FALLING, FALLING], measure, **sizes, adjust=lambda schedule: bend_to(schedule, reduction, 3.0))
    )
    assert len(measured) == len(set(measured))
    children = found[2:]
    assert [round(point.reduction, 1) for point in children[1::2]] == [3.0] * 12
