"""Methods with one knob: budgets are met on it, and the same tokens are removed in training as in evaluation."""

from dataclasses import replace

import pytest
import torch
from support.models import method_under_test, sentences

from prunekit.config.errors import ConfigError
from prunekit.evaluation.distillation_targets import RowLogits, TeacherOutputs
from prunekit.evaluation.evaluate import evaluate
from prunekit.tokens.policies import KeepRatio

KEEP_RATIO = ["topk", "random", "first"]
# a token of one sentence must not be worth a share of the FLOPs that the tolerance notices
LENGTHS = tuple(range(10, 60))


def reached(found):
    counts = found.pruner.policy.counts(found.context.lengths["validation"], found.context.shape.layers)
    return found.context.reduction(*counts)


@pytest.mark.parametrize("name", KEEP_RATIO)
@pytest.mark.parametrize("schedule", ["linear", "geometric", "once"])
@pytest.mark.parametrize("budget", [1.0, 1.3, 2.0, 2.3])
def test_the_rate_is_found_from_lengths_alone(name, schedule, budget):
    found = method_under_test(name, lengths=LENGTHS, budget=budget, schedule=schedule)
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


def test_a_geometric_schedule_keeps_more_tokens_in_the_last_layer():
    """It takes more from the first layers that prune."""
    last = {s: method_under_test("topk", lengths=LENGTHS, budget=2.0, schedule=s) for s in ("linear", "geometric")}
    assert last["geometric"].pruner.policy.ratios[3] > last["linear"].pruner.policy.ratios[3]
    assert last["geometric"].pruner.policy.ratios[1] < last["linear"].pruner.policy.ratios[1]


def test_all_at_once_is_decided_at_one_layer():
    found = method_under_test("topk", budget=None, rate=0.3, schedule="once", dense_layers=2)
    assert found.pruner.policy.ratios == {2: 0.3}
    assert found.pruner.policy.counts(torch.tensor([10]), 4)[1].T.tolist() == [[10, 10, 3, 3]]


@pytest.mark.parametrize("schedule", ["linear", "geometric", "once"])
def test_what_is_feasible_is_reached(schedule):
    asked = method_under_test("topk", lengths=LENGTHS, schedule=schedule)
    low, high = asked.options.feasible(asked.context)
    assert low == 1.0
    found = method_under_test("topk", lengths=LENGTHS, budget=high, schedule=schedule)
    assert reached(found) == pytest.approx(high)


def test_layers_that_are_all_dense_make_every_reduction_infeasible():
    found = method_under_test("topk", budget=1.0)
    assert replace(found.options, dense_layers=9).feasible(found.context) == (1.0, 1.0)


def test_a_scorer_that_looks_back_is_asked_at_every_layer():
    found = method_under_test("topk", accumulate=True, dense_layers=2)
    assert sorted(found.pruner.layers) == [0, 1, 2, 3]
    assert [found.pruner.policy.ratios[layer] for layer in (0, 1)] == [1.0, 1.0]
    assert reached(found) == pytest.approx(reached(method_under_test("topk", dense_layers=2)))


@pytest.mark.parametrize("name", KEEP_RATIO)
def test_training_removes_what_evaluation_removes(name):
    found = method_under_test(name).eval()
    batch = sentences([12, 7, 9, 5]) | {"labels": torch.tensor([0, 1, 2, 0]), "index": torch.arange(4)}
    from prunekit.losses import task_loss

    expected = task_loss(found(batch, "mask"), batch["labels"], found.context.spec.kind)
    assert set(found.terms(batch)) == {"task"}
    torch.testing.assert_close(found.terms(batch)["task"], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["topk", "ltp", "lat", "tsdtp"])
def test_every_method_learns_from_labels_the_teacher_or_both(name):
    batch = sentences([12, 7, 9, 5]) | {"labels": torch.tensor([0, 1, 2, 0]), "index": torch.arange(4)}
    offsets = torch.tensor([0, 12, 19, 28, 33])
    teacher = TeacherOutputs(RowLogits(torch.eye(4, 3)), torch.zeros(33, dtype=torch.int16), offsets)
    found, terms = method_under_test(name, hard_fraction=1.0) if name == "ltp" else method_under_test(name), {}
    for loss in ("ce", "kd", "kd+ce"):
        found.context = replace(found.context, loss=loss, teacher=teacher)
        terms[loss] = set(found.terms(batch)) & {"kd", "task"}
    assert terms == {"ce": {"task"}, "kd": {"kd"}, "kd+ce": {"kd", "task"}}


def test_the_three_differ_in_who_stays_and_not_in_how_many():
    ratios = [method_under_test(name).pruner.policy.ratios for name in KEEP_RATIO]
    assert ratios[0] == ratios[1] == ratios[2]
    scorers = {type(method_under_test(name).pruner.scorer).__name__ for name in KEEP_RATIO}
    assert scorers == {"AttentionReceived", "RandomOrder", "EarlierFirst"}
    assert isinstance(method_under_test("random").pruner.policy, KeepRatio)


def test_the_seed_of_the_run_draws_the_random_order():
    from prunekit.config.composition import compose

    assert compose(["method=random", "seed=11"])[0]["method"]["seed"] == 11
    assert method_under_test("random", seed=5).pruner.scorer.seed == 5


# -- thresholds: the model has to run ------------------------------------------------------------------

VALIDATION = [
    sentences([24, 17, 9, 30, 12, 21, 28, 15], seed=n) | {"labels": torch.zeros(8).long(), "index": torch.arange(8)}
    for n in range(4)
]
ROWS = [24, 17, 9, 30, 12, 21, 28, 15] * 4


def threshold(**given):
    return method_under_test("threshold", lengths=ROWS, validation=VALIDATION, **given)


def measured(found, execution="mask"):
    context = found.context
    return evaluate(found.model, VALIDATION, context.spec, context.shape, context.targets[0], execution).reduction


@pytest.mark.parametrize("budget", [1.2, 1.6, 2.2])
def test_thresholds_are_scaled_to_meet_the_budget(budget):
    found = threshold(budget=budget)
    found.calibrate()
    assert measured(found) == pytest.approx(budget, rel=0.02)


def test_before_each_evaluation_the_scale_follows_the_weights(capsys):
    found = threshold(budget=1.8)
    found.begin_step(found.global_step)
    before = float(found.policy.scale)
    with torch.no_grad():
        for name, parameter in found.weights():
            if "query" in name:
                parameter.mul_(0.3)  # flatter attention, so that fewer tokens fall below a threshold
    assert abs(measured(found) / 1.8 - 1) > 0.02
    found.on_validation_epoch_start()
    assert measured(found) == pytest.approx(1.8, rel=0.02)
    assert float(found.policy.scale) != before
    assert "passes over validation" in capsys.readouterr().out


def test_a_scale_that_still_meets_the_budget_is_left_alone():
    found = threshold(budget=1.8)
    found.calibrate()
    before = found.policy.scale.clone()
    found.calibrate()
    assert torch.equal(found.policy.scale, before)


def test_only_the_first_step_of_a_fit_calibrates():
    found = threshold(budget=1.8, step=7)
    found.begin_step(found.global_step)
    assert float(found.policy.scale) == 1.0


def test_calibrating_leaves_the_model_in_the_mode_it_was_in():
    found = threshold(budget=1.8).train()
    found.calibrate()
    assert found.model.training


def test_the_published_unit_is_converted():
    """0.01 of a score divided by 128 is 1.28 times uniform attention; layer l of 4 has l/4 of it (ltp.md 1.3)."""
    found = threshold(budget=None, final_threshold=0.01)
    assert found.policy.thresholds == pytest.approx({1: 0.32, 2: 0.64, 3: 0.96})
    found.calibrate()
    assert float(found.policy.scale) == 1.0  # nothing was asked for


def test_the_scale_reaches_the_checkpoint():
    found = threshold(budget=1.8)
    found.calibrate()
    other = threshold(budget=1.8)
    other.load_state_dict(found.state_dict())
    assert torch.equal(other.policy.scale, found.policy.scale)


def test_what_thresholds_can_reach_ends_with_cls_alone_behind_layer_1():
    found = threshold()
    low, high = found.options.feasible(found.context)
    found.policy.scale.fill_(torch.inf)
    assert (low, measured(found)) == (1.0, pytest.approx(high))


def test_thresholds_are_logged():
    found = threshold(budget=1.8)
    found.on_validation_epoch_start()
    found.validation_step(VALIDATION[0], 0)
    found.on_validation_epoch_end()
    logged = [found.logged[f"threshold/layer_{layer:02d}"] for layer in (1, 2, 3)]
    assert logged == pytest.approx([float(found.policy.scale) * n / 4 for n in (1, 2, 3)])


@pytest.mark.parametrize("budget", [1.4, 2.0])
def test_thresholds_set_to_a_profile_keep_an_even_share_at_each_layer_and_meet_the_budget(budget):
    found = threshold(budget=budget, profile="geometric")
    found.calibrate()
    context = found.context
    kept = evaluate(found.model, VALIDATION, context.spec, context.shape, context.targets[0], "mask").tokens_per_layer
    assert measured(found) == pytest.approx(budget, rel=0.02)
    ratios = [kept[layer] / kept[layer - 1] for layer in (1, 2, 3)]
    assert max(ratios) - min(ratios) < 0.15
    other = threshold(budget=budget, profile="geometric")
    other.load_state_dict(found.state_dict())
    assert measured(other) == measured(found)


def test_a_profile_takes_a_budget_and_nothing_else():
    with pytest.raises(ConfigError, match=r"method\.profile=geometric goes by the budget, not by method\.final_thres"):
        threshold(budget=None, final_threshold=0.01, profile="geometric")
