"""LAT: what a step trains, how drawn lengths repeat, and that the search meets the budget and survives a kill."""

import json
from dataclasses import replace

import pytest
import torch
from support.models import method_under_test, sentences

from prunekit.config.errors import ConfigError
from prunekit.evaluation.evaluate import evaluate
from prunekit.losses import distillation_loss, task_loss

ROWS = [24, 17, 9, 30, 12, 21, 28, 15] * 4
VALIDATION = [sentences(ROWS[:8], seed=n) | {"labels": torch.arange(8) % 3, "index": torch.arange(8)} for n in range(4)]
BATCH = sentences([12, 7, 9, 5]) | {"labels": torch.tensor([0, 1, 2, 0]), "index": torch.arange(4)}


def lat(**given):
    return method_under_test("lat", **{"lengths": ROWS, "validation": VALIDATION, "iterations": 2} | given)


def reached(found):
    context = found.context
    return evaluate(found.model, VALIDATION, context.spec, context.shape, context.targets[0], "mask").reduction


def test_a_step_trains_the_whole_model_on_the_task_and_smaller_ones_on_its_outputs():
    found = lat(random_models=1).eval()
    whole = found(BATCH, "dense")
    small = []
    for schedule in found.smaller_schedules(0):
        found.policy.ratios = dict(enumerate(schedule))
        small.append(distillation_loss(found(BATCH, "mask"), whole, 1.0))
    terms = found.terms(BATCH)
    torch.testing.assert_close(terms["task"], task_loss(whole, BATCH["labels"], found.context.spec.kind) / 3)
    torch.testing.assert_close(terms["inplace"], sum(small) / 3, atol=1e-5, rtol=1e-4)


def test_smaller_models_do_not_teach_the_whole_one():
    """What they are to follow is detached: with nothing dropped there is nothing to learn."""
    found = lat(budget=1.0, length_drop=1e-9).eval()
    found.terms(BATCH)["inplace"].backward()
    assert max(float(p.grad.abs().max()) for _, p in found.weights() if p.grad is not None) < 1e-5


def test_lengths_are_drawn_by_seed_and_step_alone():
    assert lat(seed=3).smaller_schedules(17) == lat(seed=3).smaller_schedules(17)
    assert lat(seed=3).smaller_schedules(17) != lat(seed=3).smaller_schedules(18)
    assert lat(seed=3).smaller_schedules(17) != lat(seed=4).smaller_schedules(17)


def test_the_schedule_of_evaluations_is_not_touched_by_a_step():
    found = lat()
    before = dict(found.policy.ratios)
    found.terms(BATCH)
    assert found.policy.ratios == before


def test_a_drop_of_02_per_layer_of_12_ends_at_7_percent_in_fewer_layers_too():
    """0.8 ** 12 = 0.0687; the tiny model has 4 layers, each of which drops 0.488."""
    assert lat(budget=1.5).smallest == pytest.approx((0.512, 0.2621, 0.1342, 0.0687), abs=1e-4)


def test_a_budget_below_the_published_smallest_model_trains_smaller_ones():
    found = lat(budget=3.0)
    assert found.reduction(found.smallest) == pytest.approx(3.75, rel=0.02)


@pytest.mark.parametrize("budget", [1.3, 2.0, 3.0])
def test_before_the_search_the_ratio_is_constant_and_meets_the_budget(budget):
    found = lat(budget=budget)
    shares = list(found.policy.ratios.values())
    assert [shares[n + 1] / shares[n] for n in range(3)] == pytest.approx([shares[0]] * 3)
    assert reached(found) == pytest.approx(budget, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1.3, 2.0, 3.0])
def test_the_search_takes_the_best_schedule_within_the_budget(tmp_path, budget, capsys):
    found = lat(budget=budget)
    numbers = found.finalise(tmp_path)
    assert reached(found) == pytest.approx(budget, rel=0.02)
    assert list(found.policy.ratios.values()) == numbers["chosen"]["shares"]
    within = [row["score"] for row in numbers["measured"] if abs(budget / row["flops_vs_unpadded"] - 1) <= 0.02]
    assert numbers["chosen"]["score"] == max(within)
    assert "schedules" in capsys.readouterr().out
    json.dumps(numbers)


@pytest.mark.slow
def test_what_the_search_says_a_schedule_saves_is_what_is_executed(tmp_path):
    found = lat(budget=2.0)
    numbers = found.finalise(tmp_path)
    assert reached(found) == pytest.approx(numbers["chosen"]["flops_vs_unpadded"])


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    whole = lat(budget=2.0).finalise(tmp_path / "whole")
    calls = []

    def counted(limit):
        def score(self, schedule):
            calls.append(schedule)
            if len(calls) > limit:
                raise KeyboardInterrupt
            return original(self, schedule)

        return score

    original = type(lat()).__mro__[1].score
    monkeypatch.setattr(type(lat()).__mro__[1], "score", counted(10))
    with pytest.raises(KeyboardInterrupt):
        lat(budget=2.0).finalise(tmp_path / "killed")
    calls.clear()
    monkeypatch.setattr(type(lat()).__mro__[1], "score", counted(1000))
    assert lat(budget=2.0).finalise(tmp_path / "killed") == whole
    assert len(calls) == len({tuple(row["shares"]) for row in whole["measured"]}) - 10  # none twice


@pytest.mark.slow
def test_scores_of_other_weights_are_not_taken(tmp_path):
    found = lat(budget=2.0)
    found.finalise(tmp_path)
    with torch.no_grad():
        found.model.classifier.weight.neg_()
    found.finalise(tmp_path)
    assert len(list(tmp_path.glob("search-*.jsonl"))) == 2


def test_without_iterations_there_is_no_search(tmp_path):
    found = lat(budget=2.0, iterations=0)
    before = dict(found.policy.ratios)
    assert found.finalise(tmp_path) == {}
    assert found.policy.ratios == before


def test_a_schedule_of_ones_own_is_taken_as_it_is(tmp_path):
    found = lat(budget=None, shares=[0.9, 0.5, 0.5, 0.25])
    assert found.policy.ratios == {0: 0.9, 1: 0.5, 2: 0.5, 3: 0.25}
    assert found.finalise(tmp_path) == {}
    assert found.asked is None


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.5, 0.6, 0.4, 0.3]])
def test_a_schedule_that_rises_or_has_another_length_is_refused(shares):
    with pytest.raises(ConfigError, match=r"method\.shares=\[0\.5, 0\.\d.*\] is no schedule for 4 layers"):
        lat(budget=None, shares=shares)


def test_a_given_drop_bounds_what_is_feasible():
    found = lat()
    options = replace(found.options, length_drop=0.3)
    assert options.feasible(found.context) == (1.0, found.reduction((0.7, 0.49, 0.343, 0.2401)))
