"""ToP's training: which terms, which groups, when the gates are fixed, what counts as reached."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support.models import sentences, tiny_model

from prunekit.config.composition import compose
from prunekit.cost import Shape
from prunekit.data.spec import TaskSpec
from prunekit.evaluation.distillation_targets import RowLogits, TeacherOutputs
from prunekit.methods.context import MethodContext, Training
from prunekit.methods.top import ToP
from prunekit.runs.kinds import method_options
from prunekit.tokens.encoder import install

LENGTHS = torch.tensor([12, 7, 9, 5])


def module(*, kind="classification", epochs=4, budget=2.0, step=0, **options):
    cfg, _ = compose(["task=synthetic", "backbone=tiny"])
    chosen = ToP.Options.from_config(method_options(cfg) | {"bins": 4, "rank_layers": [1]} | options)
    regression = {"kind": "regression", "metrics": ["pearson"], "score": "pearson", "labels": None}
    spec = TaskSpec.from_config(cfg["task"] | (regression if kind == "regression" else {}))
    classes = 1 if kind == "regression" else 3
    model = tiny_model(classes=classes)
    shape = Shape.from_config(model.config)
    offsets = torch.nn.functional.pad(LENGTHS.cumsum(0), (1, 0))
    ranks = torch.cat([torch.arange(-1, length - 1) for length in LENGTHS.tolist()]).to(torch.int16)
    teacher = TeacherOutputs(RowLogits(torch.zeros(4, classes)), ranks, offsets)
    context = MethodContext(
        spec,
        shape,
        Training(epochs=epochs, steps_per_epoch=10, lr=1e-3),
        {"train": LENGTHS, "validation": LENGTHS, "test": LENGTHS},
        budget,
        0.02,
        teacher,
    )
    install(model, chosen.build_pruner(shape))

    class AtStep(ToP):
        global_step = step

    found = AtStep(model, context, chosen)
    found.log_dict = lambda *args, **kwargs: None
    found._trainer = SimpleNamespace(optimizers=[])
    return found


def batch(kind="classification"):
    labels = torch.tensor([0, 1, 2, 0]) if kind == "classification" else torch.tensor([0.5, 1.0, 2.0, 3.0])
    return sentences(LENGTHS.tolist()) | {"labels": labels, "index": torch.arange(4)}


def test_the_soft_stage_has_distillation_ranks_and_the_lagrangian():
    assert set(module().terms(batch())) == {"kd", "task", "rank", "lagrangian"}


def test_the_hard_stage_has_no_constraint():
    assert set(module(step=35, hard_fraction=0.25).terms(batch())) == {"kd", "task", "rank"}


def test_teacher_and_labels_are_each_left_out_when_asked():
    assert set(module(task_loss="ce").terms(batch())) == {"task", "rank", "lagrangian"}
    assert set(module(task_loss="kd", rank_alpha=0.0).terms(batch())) == {"kd", "lagrangian"}


def test_regression_learns_from_labels_and_not_from_the_teacher():
    """top.md quirk 16: STS-B has a squared error and no distillation."""
    assert set(module(kind="regression").terms(batch("regression"))) == {"task", "rank", "lagrangian"}


def test_the_target_rises_over_the_warm_up():
    shown = {}
    for step in (0, 10, 20, 30):
        found = module(step=step, warmup_epochs=2.0, budget=2.0, hard_fraction=0.0)
        found.log_dict = lambda values, step=step: shown.update({step: values["budget/target"]})
        found.terms(batch())
    assert shown == {0: 0.0, 10: 0.25, 20: 0.5, 30: 0.5}


def test_the_reference_trains_two_steps_before_it_prunes():
    shown = []
    for compat in (False, True):
        found = module(step=12, warmup_epochs=2.0, hard_fraction=0.0, compat=compat)
        found.log_dict = lambda values: shown.append(values["budget/target"])
        found.terms(batch())
    assert shown == pytest.approx([0.30, 0.25])


def test_multipliers_rise_against_the_constraint_and_gates_fall():
    """With s below t the multiplier turns negative, so that the loss pushes the sparsity up."""
    found = module(step=15, warmup_epochs=1.0, reg_lr=0.02, hard_fraction=0.0)
    optimizer = found.configure_optimizers()["optimizer"]
    names = {group["name"]: group for group in optimizer.param_groups}
    assert names["gates"]["lr"] == names["multipliers"]["lr"] == 0.02
    assert (names["multipliers"]["maximize"], names["gates"]["maximize"]) == (True, False)
    assert names["gates"]["weight_decay"] == names["multipliers"]["weight_decay"] == 0.0
    sum(found.terms(batch()).values()).backward()
    optimizer.step()
    assert found.lambda1.item() == pytest.approx(-0.02, abs=1e-4)
    assert found.lambda2.item() == pytest.approx(0.02, abs=1e-4)


def test_gates_are_no_weights():
    found = module()
    weights = {id(parameter) for _, parameter in found.weights()}
    assert id(found.policy.token_loga) not in weights
    assert id(found.lambda1) not in weights
    embeddings = found.model.base_model.embeddings
    assert not any(id(parameter) in weights for parameter in embeddings.parameters())


@pytest.mark.parametrize(("epochs", "rate"), [(3, 2 * 4.60517 / 10), (10_000, 0.02)])
def test_in_short_runs_gates_move_fast_enough_to_close(epochs, rate):
    groups = module(epochs=epochs, hard_fraction=1 / epochs, reg_lr=None).parameter_groups()
    assert groups[0]["lr"] == pytest.approx(rate, rel=1e-3)


def test_the_gates_are_fixed_within_the_budget_where_the_hard_stage_begins():
    found = module(step=30, hard_fraction=0.25, budget=1.6, bins=50)
    assert not found.policy.shift.any()
    found.on_train_batch_start(batch(), 0)
    assert found.policy.shift.any()
    tokens_in, tokens_out = found.policy.counts(LENGTHS, 4)
    from prunekit.cost import dense_macs, encoder_macs

    shape = found.context.shape
    reached = float(dense_macs(shape, LENGTHS).sum() / encoder_macs(shape, tokens_in, tokens_out).sum())
    assert reached == pytest.approx(1.6, rel=0.05)  # four short sentences: one token is 3 % of the FLOPs


def test_gates_are_left_alone_at_every_other_step():
    for step in (29, 31):
        found = module(step=step, hard_fraction=0.25)
        found.on_train_batch_start(batch(), 0)
        assert not found.policy.shift.any()


def test_a_budget_is_reached_within_the_tolerance_on_either_side():
    found = module(budget=3.0, step=30)
    reached = [reduction for reduction in (2.90, 2.95, 3.0, 3.06, 3.10) if found.meets_budget(reduction)]
    assert reached == [2.95, 3.0, 3.06]


def test_a_checkpoint_counts_only_once_the_gates_are_fixed():
    """One from the soft stage would be tested with gates that its weights have never been trained under."""
    assert not module(budget=3.0, step=10, hard_fraction=0.5).meets_budget(3.0)
    assert not module(budget=3.0, step=20, hard_fraction=0.5).meets_budget(3.0)
    assert module(budget=3.0, step=21, hard_fraction=0.5).meets_budget(3.0)
    assert module(budget=3.0, step=10, hard_fraction=0.0).meets_budget(3.0)


def test_the_papers_own_knob_counts_every_bin_alike():
    """top.md quirk 18: eligible from the target less 0.01 on, at that evaluation."""
    found = module(budget=None, target_sparsity=0.3, sparsity_of="nominal", hard_fraction=0.0)
    assert found.asked == pytest.approx(1 / 0.7)
    assert not found.meets_budget(10.0)  # nothing is closed, whatever was measured
    with torch.no_grad():
        found.policy.pruner_loga.fill_(4.0)
        found.policy.token_loga[:, 1:].fill_(-4.0)
    assert found.nominal_sparsity() > 0.3
    assert found.meets_budget(1.0)


def test_the_measured_constraint_sees_that_empty_bins_save_nothing():
    """Sentences of 3 ranked tokens address 3 of 40 bins at most."""
    short = torch.tensor([4, 4])
    nominal, measured = (module(bins=40, sparsity_of=name) for name in ("nominal", "measured"))
    for found in (nominal, measured):
        with torch.no_grad():
            found.policy.pruner_loga.fill_(4.60517)
            found.policy.token_loga.fill_(4.60517)
            found.policy.token_loga[:, 1:13].fill_(-4.60517)  # ranks 0, 1, 2 fall in bins 0, 13, 26
    assert nominal.expected_sparsity(short).item() > 0.1
    assert measured.expected_sparsity(short).item() < 0.01


@pytest.mark.parametrize(
    ("lengths", "bins"),
    [([8] * 2 + [30] * 18, 7), ([8] * 1 + [30] * 19, 29), ([128] * 20, 50), ([2] * 20, 1)],
)
def test_bins_left_to_the_texts_are_those_that_nine_of_ten_reach(lengths, bins):
    context = replace(module().context, lengths={"validation": torch.tensor(lengths)})  # [CLS] has no rank
    assert replace(module().options, bins=None).completed(context).bins == bins
    assert replace(module().options, bins=20).completed(context).bins == 20


def test_feasible_ends_with_cls_alone_behind_the_first_location():
    cfg, _ = compose(["task=synthetic", "backbone=tiny"])
    low, high = ToP.Options.from_config(method_options(cfg)).feasible(module().context)
    assert low == 1.0
    shape = module().context.shape
    from prunekit.cost import dense_macs, encoder_macs

    whole, alone = LENGTHS.float(), torch.ones(4)
    tokens_in = torch.stack([whole, whole, alone, alone])
    tokens_out = torch.stack([whole, alone, alone, alone])
    left = encoder_macs(shape, tokens_in, tokens_out).sum()
    assert high == pytest.approx(float(dense_macs(shape, LENGTHS).sum() / left))


def test_prune_locations_are_decisions_of_the_layer_before():
    found = module(prune_location=[1, 3])
    assert sorted(found.pruner.layers) == [0, 2]
    assert sorted(module(prune_location=None).pruner.layers) == [1, 2]


def test_compat_scores_as_the_reference_and_keeps_ghost_keys():
    found = module(compat=True)
    assert type(found.pruner.scorer).__name__ == "ReferenceReceived"
    assert not found.pruner.hide_gone
    assert found.policy.compat
