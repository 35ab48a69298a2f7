"""LTP's training: terms, groups, when thresholds are fixed, and what the reference's profile brings back."""

import pytest
import torch
from support.models import method_under_test, sentences

from prunekit.cost import Shape, encoder_macs, straight_through_counts
from prunekit.evaluation.evaluate import evaluate
from prunekit.losses import cost_gap, mask_regulariser
from prunekit.tokens.state import Trace

ROWS = [24, 17, 9, 30, 12, 21, 28, 15]
VALIDATION = [sentences(ROWS, seed=n) | {"labels": torch.arange(8) % 3, "index": torch.arange(8)} for n in range(4)]
BATCH = VALIDATION[0]


def ltp(**given):
    given = {"lr_threshold": None, "hard_fraction": 0.25, **given}
    found = method_under_test("ltp", lengths=ROWS * 4, validation=VALIDATION, **given)
    return found


def measured(found):
    context = found.context
    return evaluate(found.model, VALIDATION, context.spec, context.shape, context.targets[0], "mask").reduction


# -- the terms, by hand ----------------------------------------------------------------------------------


def test_the_regulariser_by_hand():
    """ltp.md 10.2: three tokens and one padding, threshold .2, temperature .05."""
    threshold = torch.tensor(0.2, requires_grad=True)
    keep = torch.sigmoid((torch.tensor([0.375, 0.25, 0.125, 0.0]) - threshold) / 0.05)[None, None]
    alive = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    live = mask_regulariser(keep, alive)
    padded = mask_regulariser(keep, alive, torch.sigmoid(-threshold / 0.05)[None], padded_length=4)
    assert live.item() == pytest.approx(0.6280572906)
    assert padded.item() == pytest.approx(0.4755395204)
    assert torch.autograd.grad(live, threshold, retain_graph=True)[0].item() == pytest.approx(-2.4947427279, rel=1e-5)
    assert torch.autograd.grad(padded, threshold)[0].item() == pytest.approx(-1.9593705770, rel=1e-5)


def test_the_reference_sums_layers_and_prunekit_averages_them():
    """The conversion of ltp.md, quirk 4: lambda = lambda of the reference * (L - 1) * n / S."""
    keep, alive = torch.full((3, 2, 8), 0.5), torch.ones(2, 8)
    assert mask_regulariser(keep, alive).item() == 0.5
    assert mask_regulariser(keep, alive, torch.zeros(3), padded_length=32).item() == pytest.approx(0.5 * 3 * 8 / 32)


def test_cut_masks_count_as_tokens_and_pass_the_soft_gradient():
    keep = torch.tensor([[[1.0, 0.9, 0.6, 0.2]], [[1.0, 0.4, 0.7, 0.9]]], requires_grad=True)
    tokens_in, tokens_out = straight_through_counts(keep, torch.tensor([4]), [1, 2], 4)
    assert tokens_in[:, 0].tolist() == [4, 4, 3, 2]
    assert tokens_out[:, 0].tolist() == [4, 3, 2, 2]  # token 3 stays gone although layer 2 would keep it
    tokens_out[3].sum().backward()
    assert keep.grad[0, 0].tolist() == [1, 0, 1, 1]  # of a layer: whether the other one keeps the token
    assert keep.grad[1, 0].tolist() == [1, 1, 1, 0]


def test_the_distance_from_a_budget_is_relative():
    assert cost_gap(torch.tensor(0.6), 0.5).item() == pytest.approx(0.04)
    assert cost_gap(torch.tensor(0.5), 0.5).item() == 0


def test_flops_of_the_small_example():
    """ltp.md 10.8: 1616 of 2592 FLOPs, 3 tokens into two layers of width 4."""
    shape = Shape(layers=2, hidden=4, ffn=16, heads=1)
    keep = torch.tensor([[[1.0, 0.8, 0.1]], [[0.9, 0.3, 0.9]]])
    counts = straight_through_counts(keep, torch.tensor([3]), [0, 1], 2)
    assert 2 * encoder_macs(shape, *counts).item() == 1616


# -- stage 1 ---------------------------------------------------------------------------------------------


def test_with_a_budget_the_soft_stage_aims_at_flops():
    found = ltp()
    assert set(found.terms(BATCH)) == {"task", "budget"}
    assert 0 < found.logged["budget/expected"] < 1


def test_with_the_papers_knob_it_has_the_regulariser():
    found = ltp(budget=None, reg_lambda=0.1)
    terms = found.terms(BATCH)
    assert set(terms) == {"task", "regulariser"}
    assert 0 < terms["regulariser"].item() < 0.1  # of its kept share, at most 1


def test_one_threshold_for_every_layer_but_the_first_gets_a_gradient():
    """ltp.md 10.10."""
    found = ltp(temperature=1e-2)
    assert found.learned.values.shape == (3,)
    sum(found.terms(BATCH).values()).backward()
    assert (found.learned.values.grad != 0).all()


def test_too_dear_a_model_raises_thresholds_and_too_cheap_a_one_lowers_them():
    slopes = {}
    for budget in (1.02, 2.2):
        found = ltp(budget=budget, temperature=1e-2, final_threshold=0.014)
        found.terms(BATCH)["budget"].backward()
        slopes[budget] = found.learned.values.grad.sum().item()
    assert slopes[1.02] > 0 > slopes[2.2]


def test_scores_learn_too():
    """Quirk 18: the terms reach queries and keys through the scores."""
    found = ltp(budget=None, reg_lambda=1.0)
    found.terms(BATCH)["regulariser"].backward()
    query = found.model.base_model.encoder.layer[1].attention.self.query.weight
    assert query.grad.abs().sum() > 0


# -- stage 2 ---------------------------------------------------------------------------------------------


def test_the_hard_stage_trains_the_weights_alone():
    found = ltp(step=35)
    terms = found.terms(BATCH)
    assert set(terms) == {"task"}
    terms["task"].backward()
    assert found.learned.values.grad is None


def test_thresholds_meet_the_budget_where_the_hard_stage_begins():
    found = ltp(step=30, budget=1.7)
    found.begin_step(found.global_step)
    assert measured(found) == pytest.approx(1.7, rel=0.02)


def test_the_hard_stage_starts_with_a_fresh_optimiser():
    found = ltp(step=30)
    optimizer = found.configure_optimizers()["optimizer"]
    sum(found.terms(BATCH).values()).backward()
    optimizer.step()
    found._trainer.optimizers = [optimizer]
    assert optimizer.state
    found.begin_step(found.global_step)
    assert not optimizer.state


@pytest.mark.parametrize("step", [0, 29, 31])
def test_at_every_other_step_thresholds_are_left_alone(step):
    found = ltp(step=step)
    found.begin_step(found.global_step)
    assert float(found.policy.scale) == 1.0


def test_evaluations_of_the_soft_stage_show_the_thresholds_as_they_are():
    for step, scaled in ((20, False), (35, True)):
        found = ltp(step=step, budget=1.7)
        found.on_validation_epoch_start()
        assert (float(found.policy.scale) != 1.0) == scaled


def test_only_the_hard_stage_has_a_best_checkpoint():
    assert not ltp(step=20, budget=2.0).meets_budget(2.0)
    assert ltp(step=35, budget=2.0).meets_budget(2.0)
    assert not ltp(step=35, budget=2.0).meets_budget(2.1)
    assert ltp(step=20, budget=2.0, hard_fraction=0.0).meets_budget(2.0)
    assert not ltp(step=20, budget=None, reg_lambda=0.1).meets_budget(1.1)


# -- rates and clipping ----------------------------------------------------------------------------------


def test_thresholds_have_a_group_of_their_own_in_the_papers_unit():
    """2e-5 of a score divided by 128 is 2.56e-3 of ours (ltp.md, relative units)."""
    found = ltp(lr_threshold=2e-5)
    (group,) = [g for g in found.configure_optimizers()["optimizer"].param_groups if g["name"] == "thresholds"]
    assert (group["lr"], group["weight_decay"]) == (pytest.approx(2.56e-3), 0.0)
    assert group["params"][0] is found.learned.values
    assert not any(parameter is found.learned.values for _, parameter in found.weights())


@pytest.mark.parametrize(("epochs", "rate"), [(3, 2 * 0.01 / 20), (1000, 2e-5)])
def test_in_short_runs_thresholds_move_fast_enough(epochs, rate):
    found = ltp(epochs=epochs, hard_fraction=1 / epochs)
    assert found.parameter_groups()[0]["lr"] == pytest.approx(rate * 128, rel=1e-3)


def test_each_stage_has_a_schedule_of_its_own():
    """40 steps, the last 10 hard, at half the rate."""
    found = ltp(hard_lr=5e-4)
    rates = [found.weights_rate(step) for step in range(40)]
    assert rates[0] == 1.0
    assert rates[29] == pytest.approx(1 / 30)
    assert rates[30] == 0.5
    assert rates[39] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("profile", "norms"),
    [
        ("house", (0.5, 0.01)),  # 1/2 and .01 are below the limits of 1 and 1/2
        ("reference", (0.36385, 0.007277)),  # a threshold of theirs has .01 * 128 = 1.28: sqrt(.5^2 + 1.28^2) = 1.37419
    ],
)
def test_thresholds_do_not_rescale_the_weights_unless_as_in_the_reference(profile, norms):
    found = ltp(profile=profile, threshold_clip=0.5)
    weight = dict(found.weights())["classifier.weight"]
    weight.grad = torch.full_like(weight, 0.5 / weight.numel() ** 0.5)
    found.learned.values.grad = torch.tensor([0.0, 0.01, 0.0])
    found.configure_gradient_clipping()
    assert (weight.grad.norm().item(), found.learned.values.grad.norm().item()) == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize(("profile", "left"), [("house", [1.0] * 8), ("reference", ROWS)])
def test_a_soft_mask_of_0_drops_a_token_but_not_in_the_reference(profile, left):
    """Thresholds far above every score: sigmoid(-1e5) is 0 in float32, and of house [CLS] alone is left."""
    found, trace = ltp(profile=profile, final_threshold=10.0, temperature=1e-4), Trace()
    found(BATCH, "soft", trace)
    assert trace.tokens_out[-1].tolist() == left


# -- the reference's profile -----------------------------------------------------------------------------


def test_the_reference_scores_after_dropout_and_protects_nothing():
    found = ltp(profile="reference")
    assert type(found.pruner.scorer).__name__ == "ReceivedAfterDropout"
    assert not found.pruner.protect_first
    assert not found.pruner.hide_gone
    house = ltp().pruner
    assert (type(house.scorer).__name__, house.protect_first, house.hide_gone) == ("AttentionReceived", True, True)


def test_the_reference_counts_padding_in_its_regulariser():
    norms = {
        given: ltp(budget=None, reg_lambda=1.0, temperature=1e-2, **dict([given])).terms(BATCH)["regulariser"].item()
        for given in (("reg_norm", "live"), ("reg_norm", "reference"), ("profile", "reference"))
    }
    # sum over 3 layers of 1/2 and less for ~108 paddings of 128
    assert norms["reg_norm", "live"] < 1 < norms["reg_norm", "reference"]
    assert norms["profile", "reference"] > 1


def test_executions_agree_when_whole_sentences_die():
    """ltp.md 1.6: without protection nothing may be left; no execution may stumble over it."""
    found = ltp(profile="reference").eval()
    found.policy.scale.fill_(torch.inf)
    logits = [found(BATCH, execution) for execution in ("mask", "drop", "pack")]
    assert logits[0].isfinite().all()
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], atol=1e-4, rtol=0)


def test_executions_agree_when_some_sentences_die():
    found = ltp(profile="reference").eval()
    found.policy.scale.fill_(1.6)
    from prunekit.tokens.state import Trace

    traces = [Trace() for _ in range(3)]
    logits = [found(BATCH, how, trace) for how, trace in zip(("mask", "drop", "pack"), traces, strict=True)]
    for other, trace in zip(logits[1:], traces[1:], strict=True):
        assert torch.equal(trace.tokens_out, traces[0].tokens_out)
        torch.testing.assert_close(other, logits[0], atol=1e-4, rtol=0)


def test_mask_drop_and_pack_agree(family):
    from support.models import tiny_model

    from prunekit.tokens.encoder import install
    from prunekit.tokens.policies import LearnedThreshold
    from prunekit.tokens.pruner import TokenPruner
    from prunekit.tokens.scorers import AttentionReceived

    policy = LearnedThreshold({1: 0.7, 2: 0.9, 3: 1.0}, 0.1, 0.001)
    model = install(tiny_model(family), TokenPruner(AttentionReceived(), policy, [1, 2, 3]))
    batch = sentences([20, 13, 7, 1], pad=model.config.pad_token_id or 0)
    with torch.no_grad():
        logits = [model(**batch, execution=execution).logits for execution in ("mask", "drop", "pack")]
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], atol=1e-4, rtol=0)
