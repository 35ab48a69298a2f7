"""Methods with one knob: budgets are met on it, and the same tokens are removed in training as in evaluation."""

import pytest
import torch
from conftest import method_under_test, sentences

from prunekit.tokens.policies import KeepRatio

KEEP_RATIO = ["topk", "random", "first"]
# a token of one sentence must not be worth a share of the FLOPs that the tolerance notices
LENGTHS = tuple(range(10, 60))


def reached(found):
    counts = found.pruner.policy.counts(found.setting.lengths["validation"], found.setting.shape.layers)
    return found.setting.reduction(*counts)


@pytest.mark.parametrize("name", KEEP_RATIO)
@pytest.mark.parametrize("budget", [1.0, 1.3, 2.0, 2.3])
def test_the_rate_is_found_from_lengths_alone(name, budget):
    found = method_under_test(name, lengths=LENGTHS, budget=budget)
    assert reached(found) == pytest.approx(budget, rel=0.005)


@pytest.mark.parametrize("name", KEEP_RATIO)
def test_a_budget_of_one_keeps_everything(name):
    found = method_under_test(name, budget=1.0)
    assert set(found.pruner.policy.ratios.values()) == {1.0}


def test_the_methods_own_knob_is_taken_as_it_is():
    found = method_under_test("topk", budget=None, rate=0.25, dense_layers=0)
    assert found.pruner.policy.ratios == {0: 0.8125, 1: 0.625, 2: 0.4375, 3: 0.25}
    assert found.asked is None


def test_the_published_schedule_leaves_the_first_layers_whole():
    found = method_under_test("topk", budget=None, rate=0.2, dense_layers=None)
    assert found.pruner.policy.ratios == {3: pytest.approx(0.2)}
    assert sorted(found.pruner.layers) == [3]


def test_what_is_feasible_is_reached():
    low, high = type(method_under_test("topk")).feasible(
        method_under_test("topk", lengths=LENGTHS).setting, dense_layers=1, rate=None
    )
    assert low == 1.0
    assert reached(method_under_test("topk", lengths=LENGTHS, budget=high)) == pytest.approx(high)


def test_layers_that_are_all_dense_make_every_reduction_infeasible():
    found = method_under_test("topk", budget=1.0)
    assert type(found).feasible(found.setting, dense_layers=9, rate=None) == (1.0, 1.0)


def test_a_scorer_that_looks_back_is_asked_at_every_layer():
    found = method_under_test("topk", accumulate=True, dense_layers=2)
    assert sorted(found.pruner.layers) == [0, 1, 2, 3]
    assert [found.pruner.policy.ratios[layer] for layer in (0, 1)] == [1.0, 1.0]
    assert reached(found) == pytest.approx(reached(method_under_test("topk", dense_layers=2)))


@pytest.mark.parametrize("name", KEEP_RATIO)
def test_training_removes_what_evaluation_removes(name):
    found = method_under_test(name).eval()
    batch = sentences([12, 7, 9, 5]) | {"labels": torch.tensor([0, 1, 2, 0]), "index": torch.arange(4)}
    from prunekit.objectives import task_loss

    expected = task_loss(found(batch, "mask"), batch["labels"], "classification")
    assert set(found.terms(batch)) == {"task"}
    torch.testing.assert_close(found.terms(batch)["task"], expected, atol=1e-5, rtol=0)


def test_the_three_differ_in_who_stays_and_not_in_how_many():
    ratios = [method_under_test(name).pruner.policy.ratios for name in KEEP_RATIO]
    assert ratios[0] == ratios[1] == ratios[2]
    scorers = {type(method_under_test(name).pruner.scorer).__name__ for name in KEEP_RATIO}
    assert scorers == {"AttentionReceived", "RandomOrder", "EarlierFirst"}
    assert isinstance(method_under_test("random").pruner.policy, KeepRatio)


def test_the_seed_of_the_run_draws_the_random_order():
    from prunekit.config import compose

    assert compose(["method=random", "seed=11"])[0]["method"]["seed"] == 11
    assert method_under_test("random", seed=5).pruner.scorer.seed == 5
