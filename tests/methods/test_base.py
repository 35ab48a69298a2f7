"""What the optimiser of every method trains, and how fast."""

import lightning.pytorch as L
import pytest
import torch
from support.families import FAMILIES
from support.models import method_under_test, sentences, tiny_model

from prunekit.config.composition import compose
from prunekit.cost import Shape
from prunekit.data.spec import TaskSpec
from prunekit.methods.context import MethodContext, Training
from prunekit.methods.dense import Dense
from prunekit.tokens.encoder import install

LENGTHS = torch.tensor([5, 3])


def dense(family="bert", **training):
    spec = TaskSpec.from_config(compose(["task=synthetic"])[0]["task"])
    model = tiny_model(family)
    shape = Shape.from_config(model.config)
    lengths = dict.fromkeys(("train", "validation", "test"), LENGTHS)
    install(model, None)
    context = MethodContext(spec, shape, Training(epochs=1, steps_per_epoch=10, lr=1e-4, **training), lengths)
    return Dense(model, context, Dense.Options())


def rates(module):
    """Peak learning rate of each trained parameter, by name."""
    names = {id(parameter): name for name, parameter in module.model.named_parameters()}
    groups = module.configure_optimizers()["optimizer"].param_groups
    return {names[id(parameter)]: group["initial_lr"] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_pooler_and_classifier_have_the_head_s_rate_and_the_layers_their_own(family):
    found = rates(dense(family, head_lr=1e-3))
    fast = {name for name, rate in found.items() if rate == 1e-3}
    assert set(found.values()) == {1e-4, 1e-3}
    assert fast == {name for name in found if "classifier" in name or "pooler" in name}


def test_without_a_rate_of_its_own_the_head_has_that_of_the_layers():
    assert set(rates(dense()).values()) == {1e-4}


def test_each_trainable_weight_is_in_exactly_one_group():
    module = dense(head_lr=1e-3)
    groups = module.configure_optimizers()["optimizer"].param_groups
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in module.model.parameters() if p.requires_grad)


def test_biases_and_norms_do_not_decay():
    groups = dense(head_lr=1e-3, weight_decay=0.1).configure_optimizers()["optimizer"].param_groups
    assert {group["weight_decay"] for group in groups if group["params"][0].dim() > 1} == {0.1}
    assert {group["weight_decay"] for group in groups if group["params"][0].dim() == 1} == {0.0}


# -- stages --------------------------------------------------------------------------------------------


# the default of ToP learns in the middle: test_top.py
OPEN = {"top": {"init": "open"}}


@pytest.mark.parametrize("name", ["top", "ltp"])
def test_each_stage_has_a_schedule_of_its_own(name):
    """The rate rises and falls in the soft stage, and again in the hard one."""
    found = method_under_test(name, epochs=4, hard_fraction=0.5, **OPEN.get(name, {}))
    rates = [found.weights_rate(step) for step in (0, 10, 20, 30, 40)]
    assert rates == pytest.approx([1.0, 0.5, 1.0, 0.5, 0.0])


def test_a_method_that_learns_no_decision_is_in_its_hard_stage_from_the_first_step():
    found = method_under_test("topk", epochs=4)
    assert (found.soft_steps, found.hard) == (0, True)
    assert [found.weights_rate(step) for step in (0, 20, 40)] == pytest.approx([1.0, 0.5, 0.0])


@pytest.mark.parametrize("name", ["top", "ltp"])
def test_the_hard_stage_begins_with_an_optimiser_that_knows_nothing_of_the_soft_one(name):
    found = method_under_test(name, epochs=4, step=20, hard_fraction=0.5, **OPEN.get(name, {}))
    fixed = []
    found.freeze_decisions = lambda: fixed.append(True)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    found._trainer.optimizers = [optimizer]
    assert optimizer.state
    found.begin_step(found.global_step)
    assert fixed == [True]
    assert not optimizer.state


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [("linear", [0.5, 1.0, 0.5, 0.0]), ("cosine", [0.5, 1.0, 0.5, 0.0]), ("constant", [0.5, 1.0, 1.0, 1.0])],
)
def test_after_the_warm_up_the_rate_follows_its_schedule(schedule, factors):
    training = Training(epochs=1, steps_per_epoch=9, lr=1e-3, warmup_fraction=1 / 9, schedule=schedule)
    assert [training.rate(step) for step in (0, 1, 5, 9)] == pytest.approx(factors)


def test_half_a_cosine_falls_late():
    """A quarter of the way down its time, 0.5 + 0.5 cos(pi / 4) is left."""
    assert Training(epochs=1, steps_per_epoch=8, lr=1e-3, schedule="cosine").rate(2) == pytest.approx(0.853553)


# -- several batches per step --------------------------------------------------------------------------


class Batches:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def test_a_step_begins_with_the_first_of_its_batches():
    found, begun = method_under_test("topk"), []
    found._trainer.accumulate_grad_batches = 2
    found.begin_step = begun.append
    for number in range(4):
        found.on_train_batch_start({}, number)
    assert len(begun) == 2


@pytest.mark.filterwarnings("ignore:.*in eval mode")  # dropout would draw once more for two batches
def test_the_gradients_of_two_batches_are_those_of_both_at_once():
    torch.manual_seed(0)
    rows = sentences((6, 6, 6, 6)) | {"labels": torch.tensor([0, 1, 2, 0]), "index": torch.arange(4)}
    halves = [{name: column[part] for name, column in rows.items()} for part in (slice(2), slice(2, 4))]
    weights = []
    for batches in ([rows], halves):
        found = method_under_test("topk", train=True)
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=1,
            accumulate_grad_batches=len(batches),
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(found, Batches(batches), Batches(batches))
        assert trainer.global_step == 1
        weights.append(found.model.classifier.weight.detach())
    torch.testing.assert_close(*weights, atol=1e-6, rtol=0)
