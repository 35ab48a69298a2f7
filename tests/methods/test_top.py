"""ToP's training: which terms, which groups, when the gates are fixed, what counts as reached.

`module` builds open gates, as published, and `tied` those that start as top-k.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support.models import sentences, tiny_model

from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.cost import Shape, dense_macs, encoder_macs
from prunekit.data.spec import TaskSpec
from prunekit.evaluation.distillation_targets import RowLogits, TeacherOutputs
from prunekit.methods.context import MethodContext, Training
from prunekit.methods.top import ToP
from prunekit.methods.topk import TopK
from prunekit.runs.kinds import method_options
from prunekit.tokens.encoder import install
from prunekit.tokens.state import Trace

LENGTHS = torch.tensor([12, 7, 9, 5])


def module(*, kind="classification", epochs=4, budget=2.0, step=0, **options):
    cfg, _ = compose(["task=synthetic", "backbone=tiny"])
    chosen = ToP.Options.from_config(method_options(cfg) | {"init": "open", "bins": 4, "rank_layers": [1]} | options)
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
    found._trainer = SimpleNamespace(optimizers=[], _results=SimpleNamespace(reset=lambda: None))
    return found


def tied(**options):
    """Gates that start as top-k, completed for the budget as in a run."""
    given = {"init": "topk", "hard_fraction": 0.5} | options
    context = module(budget=given.get("budget", 2.0)).context
    start = ToP.Options.from_config(
        method_options(compose(["task=synthetic", "backbone=tiny"])[0])
        | {"rank_layers": [1]}
        | {key: value for key, value in given.items() if key not in ("budget", "step", "epochs", "kind")}
    ).completed(context)
    return module(**given | {"init_shares": start.init_shares})


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
        found.log_dict = lambda values, step=step: shown.update({step: values.get("budget/target")})
        found.terms(batch())
    assert shown == {0: 0.0, 10: 0.25, 20: 0.5, 30: 0.5}


def test_the_reference_trains_two_steps_before_it_prunes():
    """top.md 2.3: dense with the teacher's logits alone, then the schedule starts again, and the target at 0."""
    recipe = {"compat": True, "hard_fraction": 0.0, "task_loss": "kd", "warmup_epochs": 1.0}
    for step, terms in ((0, {"kd"}), (1, {"kd"}), (2, {"kd", "rank", "lagrangian"})):
        found = module(step=step, **recipe)
        found.train()
        assert set(found.terms(batch())) == terms
    rates = [module(**recipe).weights_rate(step) for step in (0, 1, 2, 3, 21)]  # of 40 steps
    assert rates == pytest.approx([1, 39 / 40, 1, 37 / 38, 19 / 38])
    shown = {}
    for step in (2, 7, 12):
        found = module(step=step, budget=2.0, **recipe).train()
        found.log_dict = lambda values, step=step: shown.update({step: values.get("budget/target")})
        found.terms(batch())
    assert shown == {2: 0.0, 7: 0.25, 12: 0.5}


def test_the_dense_steps_of_the_reference_are_those_of_the_plain_model():
    found = module(step=1, compat=True, hard_fraction=0.0, task_loss="kd")
    with torch.no_grad():
        found.policy.token_loga.fill_(-4.0)
        found.policy.pruner_loga.fill_(4.0)
    expected = found.task_terms(found(batch(), "dense"), batch())["kd"]
    assert found.terms(batch())["kd"] == expected


@pytest.mark.parametrize(("step", "cleared"), [(0, False), (1, False), (2, True), (3, False)])
def test_the_optimiser_of_the_reference_starts_again_where_it_begins_to_prune(step, cleared):
    found = module(step=step, compat=True, hard_fraction=0.0)
    optimizer = SimpleNamespace(state={"a weight": "its momenta"})
    found._trainer.optimizers = [optimizer]
    found.begin_step(found.global_step)
    assert (not optimizer.state) == cleared
    assert not found.policy.shift.any()


def test_embeddings_count_in_the_norm_that_the_reference_clips():
    """top.md 2.3: weights of norm 3 and embeddings of norm 4 are clipped at 1 together: 3 / 5 is left."""
    for compat, left in ((False, 1.0), (True, 0.6)):
        found = module(compat=compat)
        weight = dict(found.weights())["classifier.weight"]
        weight.grad = torch.full_like(weight, 3 / weight.numel() ** 0.5)
        embedding = found.model.base_model.embeddings.word_embeddings.weight
        assert embedding.requires_grad == compat
        assert not any(parameter is embedding for _, parameter in found.weights())
        if compat:
            embedding.grad = torch.full_like(embedding, 4 / embedding.numel() ** 0.5)
        found.configure_gradient_clipping()
        assert weight.grad.norm().item() == pytest.approx(left, rel=1e-4)
        assert embedding.grad is None  # no optimiser would clear it


def test_compat_is_evaluated_as_wide_as_the_task_allows():
    assert module(compat=True).pruner.scorer.padded_to == 64  # task.max_length of synthetic
    assert module().pruner.scorer.padded_to is None


@pytest.mark.parametrize(("written", "beta"), [(0.6667, 2 / 3), (0.5, 0.5)])
def test_beta_is_two_thirds(written, beta):
    found = module(beta=written)
    assert found.policy.distribution.beta == beta


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
    found.begin_step(found.global_step)
    assert found.policy.shift.any()
    tokens_in, tokens_out = found.policy.counts(LENGTHS, 4)
    shape = found.context.shape
    reached = float(dense_macs(shape, LENGTHS).sum() / encoder_macs(shape, tokens_in, tokens_out).sum())
    assert reached == pytest.approx(1.6, rel=0.05)  # four short sentences: one token is 3 % of the FLOPs


def test_gates_are_left_alone_at_every_other_step():
    for step in (29, 31):
        found = module(step=step, hard_fraction=0.25)
        found.begin_step(found.global_step)
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
    assert found.gates.nominal_sparsity() > 0.3
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
    assert nominal.gates.expected_sparsity(short, 1).item() > 0.1
    assert measured.gates.expected_sparsity(short, 1).item() < 0.01


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
    low, high = ToP.Options.from_config(method_options(cfg) | {"init": "open"}).feasible(module().context)
    assert low == 1.0
    shape = module().context.shape
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
    assert (found.pruner.hide_gone, found.pruner.finishes_layer) == (False, True)
    assert found.policy.compat


# -- gates that start as top-k ---------------------------------------------------------------------------


def test_before_it_learns_it_is_topk():
    """Same tokens and logits as method=topk with the same profile."""
    found = tied(budget=1.8)
    cfg, _ = compose(["task=synthetic", "backbone=tiny", "method=topk", "method.schedule=geometric"])
    ratio = TopK.Options.from_config(method_options(cfg)).completed(found.context)
    other = install(tiny_model(), ratio.build_pruner(found.context.shape))
    seen = []
    for model in (found.model.eval(), other):
        trace = Trace()
        with torch.no_grad():
            logits = model(**sentences(LENGTHS.tolist()), execution="mask", trace=trace).logits
        seen.append((logits, [entry.keep for entry in trace.layers]))
    torch.testing.assert_close(seen[0][0], seen[1][0], atol=0, rtol=0)
    assert all(torch.equal(one, two) for one, two in zip(seen[0][1], seen[1][1], strict=True))


@pytest.mark.slow
def test_a_profile_of_ones_own_is_bent_to_the_budget():
    shares = list(tied(budget=1.8, init_shares=[0.9, 0.3, 0.2]).policy.profile().values())
    assert 0 < shares[2] < shares[1] < shares[0] < 1
    assert reduction_of(tied(budget=1.8, init_shares=[0.9, 0.3, 0.2])) == pytest.approx(1.8, rel=0.05)


def reduction_of(found):
    tokens_in, tokens_out = found.policy.counts(LENGTHS, 4)
    shape = found.context.shape
    return float(dense_macs(shape, LENGTHS).sum() / encoder_macs(shape, tokens_in, tokens_out).sum())


def test_the_gates_learn_from_the_task_alone_and_the_weights_from_ranks_too():
    """20 of 40 steps are hard: the first 10 and the last 10."""
    for step, terms in (
        (9, {"kd", "task", "rank"}),
        (10, {"kd", "task"}),
        (29, {"kd", "task"}),
        (30, {"kd", "task", "rank"}),
    ):
        assert set(tied(step=step).terms(batch())) == terms


def test_the_schedule_of_the_weights_stands_still_while_the_gates_learn():
    found = tied(hard_fraction=0.5)  # of 40 steps
    rates = [round(found.weights_rate(step), 3) for step in (0, 9, 10, 20, 29, 30, 31, 39)]
    assert rates == [1.0, 0.55, 0.5, 0.5, 0.5, 0.5, 0.45, 0.05]


@pytest.mark.slow
def test_the_weights_are_left_alone_while_the_gates_learn():
    for step, learns in ((9, True), (10, False), (29, False), (30, True)):
        found = tied(step=step)
        sum(found.terms(batch()).values()).backward()
        found.on_before_optimizer_step(found.configure_optimizers()["optimizer"])
        assert any(weight.grad is not None for _, weight in found.weights()) == learns
        assert (found.policy.loga.grad is not None) != learns


@pytest.mark.slow
def test_every_evaluation_may_become_the_best():
    """The budget holds throughout, unlike that of open gates, which meet it where the hard stage begins."""
    assert all(tied(step=step).meets_budget(2.0) for step in (1, 15, 40))


@pytest.mark.slow
def test_by_default_the_profile_stays():
    found = tied(hard_fraction=None)
    assert found.parameter_groups() == []
    assert not found.policy.loga.requires_grad
    assert [tied(hard_fraction=None, step=step).hard for step in (0, 20, 39)] == [True] * 3


def test_there_are_no_multipliers():
    found = tied()
    assert [group["name"] for group in found.parameter_groups()] == ["gates"]
    assert not hasattr(found, "lambda1")


def test_the_gates_gradient_leaves_the_cost_as_it_is():
    found = tied(step=10)
    found.policy.loga.grad = torch.tensor([1.0, 2.0, 3.0])
    cost = torch.autograd.grad(found.gates.expected_sparsity(LENGTHS, 1), found.policy.loga)[0]
    found.on_before_optimizer_step(found.configure_optimizers()["optimizer"])
    assert found.policy.loga.grad.norm() > 0.1
    assert float(found.policy.loga.grad @ cost) == pytest.approx(0.0, abs=1e-6)


def test_the_budget_holds_after_every_step(monkeypatch):
    found = tied(budget=1.8, step=10)
    with torch.no_grad():
        found.policy.loga.copy_(torch.full((3,), 3.0))
    monkeypatch.setattr("lightning.pytorch.LightningModule.optimizer_step", lambda *args, **kwargs: None)
    found.optimizer_step()
    assert reduction_of(found) == pytest.approx(1.8, rel=0.05)  # four short sentences: one token is 3 % of the FLOPs


@pytest.mark.parametrize(("learned", "before", "taken"), [(0.8, 0.7, "learned"), (0.7, 0.7, "before")])
def test_of_the_learned_profile_and_the_first_one_the_better_is_taken(monkeypatch, learned, before, taken):
    found = tied(step=30)
    first = found.policy.loga.detach().clone()
    with torch.no_grad():
        found.policy.loga.add_(torch.tensor([0.5, -0.5, 0.0]))
    scores = iter([learned, before])  # in the order in which they are measured
    monkeypatch.setattr(ToP, "_validation_score", lambda self: next(scores))
    found.begin_step(found.global_step)
    assert torch.equal(found.policy.loga, first) == (taken == "before")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "topk", "compat": True}, r"method\.compat=true does not go with .*init=topk"),
        ({"init": "topk", "sparsity_of": "nominal"}, r"method\.sparsity_of=nominal .*\nAllowed: method\.init=open"),
        ({"init": "topk", "monotone": True}, r"method\.monotone=true"),
        ({"init": "topk", "min_tokens": 2}, r"method\.min_tokens=2"),
        ({"init": "topk", "hard_fraction": 0.0}, r"method\.hard_fraction=0\.0"),
        ({"init": "topk", "init_shares": (0.5,)}, r"method\.init_shares has 1 shares, and 3 locations"),
        ({"init": "open", "init_shares": (0.5, 0.2)}, r"method\.init_shares=.*\nAllowed: method\.init=topk"),
        ({"init": None, "compat": True, "init_shares": (0.5, 0.2)}, r"method\.init_shares=.*init=open"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        replace(module().options, **options).completed(module().context)


def test_feasible_of_a_profile_ends_with_cls_alone():
    found = module()
    start = replace(found.options, init="topk")
    assert start.feasible(found.context) == pytest.approx(found.options.feasible(found.context))


@pytest.mark.parametrize(
    ("options", "kind"),
    [({}, "PrefixGate")]
    + [({name: value}, "RankGate") for name, value in (("compat", True), ("hard_fraction", 0.0), ("monotone", True))]
    + [({name: value}, "RankGate") for name, value in (("min_tokens", 1), ("sparsity_of", "nominal"))],
)
def test_what_only_open_gates_have_asks_for_open_gates(options, kind):
    found = module()
    chosen = replace(found.options, init=None, **options).completed(found.context)
    assert type(chosen.build_pruner(found.context.shape).policy).__name__ == kind


def test_what_the_profile_spends_is_logged_beside_the_budget():
    found, shown = tied(budget=2.0, step=0), {}
    found.log_dict = shown.update
    found.terms(batch())
    assert shown["budget/target"] == 0.5
    assert float(shown["budget/expected"]) == pytest.approx(0.5, abs=0.1)  # without rounding to whole tokens
