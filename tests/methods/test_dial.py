"""One model for several budgets: trained for all of them, and chosen by name when it runs."""

import pytest
import torch
from support.models import method_under_test, sentences

import prunekit
from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.evaluation.evaluate import executed_reduction
from prunekit.methods.static import sandwich
from prunekit.models.pretrained import save
from prunekit.runs.kinds import method_options
from prunekit.runtime.engine import PackedEngine
from prunekit.tokens.policies import KeepRatioTable
from prunekit.tokens.state import Trace

LENGTHS = tuple(range(10, 60))


def dial(name="topk", **options):
    return method_under_test(name, lengths=LENGTHS, budget=2.0, also=[1.25, 2.2], **options)


def counts(model, **chosen):
    trace = Trace()
    model(**sentences([20, 9]), trace=trace, **chosen)
    return trace.tokens_out.T.int().tolist()


@pytest.mark.parametrize("name", ["topk", "random", "first"])
def test_each_budget_is_met(name):
    found = dial(name)
    assert found.pruner.policy.budgets == ("2x", "1.25x", "2.2x")
    for budget, reduction in (("2x", 2.0), ("1.25x", 1.25), ("2.2x", 2.2)):
        policy = found.pruner.at(budget).policy
        kept = policy.counts(found.context.lengths["validation"], 4)
        assert found.context.reduction(*kept) == pytest.approx(reduction, rel=0.005)


def test_budgets_are_typed_as_the_first_one_is():
    cfg, _ = compose(["method=topk", "budget=2x", "method.also=[0.8,2.2x]"])
    assert method_options(cfg)["also"] == [1.25, 2.2]
    assert method_options(compose(["method=topk"])[0])["also"] is None


def test_the_budget_of_the_run_is_the_default_and_the_same_as_without_others():
    found, alone = dial(), method_under_test("topk", lengths=LENGTHS, budget=2.0)
    assert found.pruner.policy.ratios == alone.pruner.policy.ratios
    assert counts(found.model.eval()) == counts(found.model, budget="2x") == counts(alone.model.eval())
    assert counts(found.model, budget="1.25x") != counts(found.model)


def test_a_step_trains_the_smallest_the_largest_and_one_between():
    names = ["3x", "1.5x", "4x", "2x"]
    assert {sandwich(names, step) for step in range(20)} == {("1.5x", "2x", "4x"), ("1.5x", "3x", "4x")}
    assert sandwich(names, 7) == sandwich(names, 7)
    assert sandwich(["3x", "2x"], 0) == ("2x", "3x")
    assert sandwich((), 0) == (None,)


def test_its_loss_is_the_mean_over_these():
    found = dial().eval()
    batch = sentences([20, 13]) | {"labels": torch.tensor([0, 2]), "index": torch.arange(2)}
    alone = [found.task_terms(found(batch, "drop", budget=name), batch)["task"] for name in ("1.25x", "2x", "2.2x")]
    assert found.terms(batch)["task"] == torch.stack(alone).mean()


def test_a_saved_model_and_its_engine_have_the_table(tmp_path):
    found = dial()
    save(found.model, None, tmp_path)
    model, engine = prunekit.load(tmp_path), prunekit.load(tmp_path, engine="packed", cls_last=False)
    assert engine.budgets == ("2x", "1.25x", "2.2x")
    batch = sentences([20, 9])
    for budget in (None, "1.25x", "2x", "2.2x"):
        result = engine(batch, budget=budget)
        torch.testing.assert_close(model(**batch, budget=budget).logits, result.logits, atol=1e-4, rtol=0)
        assert [[len(row) for row in layer] for layer in zip(*result.kept, strict=True)] == counts(model, budget=budget)


def test_an_engine_that_predicts_counts_predicts_those_of_the_budget():
    engine = PackedEngine(dial().model.eval())
    rows = engine._rows(sentences([20, 9]))
    for budget in (None, "1.25x"):
        kept = engine(sentences([20, 9]), budget=budget).kept
        assert engine._counts(rows, budget) == {layer: tuple(map(len, kept[layer])) for layer in (1, 2, 3)} | {
            3: engine._counts(rows, budget)[3]  # computed for [CLS] alone
        }


def test_another_budget_is_refused_with_the_list(tmp_path):
    found = dial().model.eval()
    for call in (lambda: found(**sentences([5]), budget="4x"), lambda: PackedEngine(found)([[5, 6]], budget="4x")):
        with pytest.raises(
            ValueError, match=r"budget='4x', but .* budgets 2x, 1\.25x, 2\.2x\.\nAllowed: 2x, 1.*\nGive"
        ):
            call()
    alone = method_under_test("topk").model.eval()
    with pytest.raises(ValueError, match=r"budget='2x', but this model serves only the one of its training"):
        alone(**sentences([5]), budget="2x")


def test_budgets_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"method\.also=\[2\.0\] names further budgets, but there is no first one"):
        method_under_test("topk", budget=None, rate=0.5, also=[2.0])
    with pytest.raises(
        ConfigError, match=r"budget=50x cannot be met by this method, as method\.also=50x asks; the feasible"
    ):
        method_under_test("topk", lengths=LENGTHS, budget=2.0, also=[50.0])


def test_a_table_without_its_default_is_no_table():
    with pytest.raises(KeyError):
        KeepRatioTable({"2x": {1: 0.5}}, "3x")


def test_each_budget_costs_what_it_says():
    found = dial()
    batch = sentences(LENGTHS) | {"labels": torch.zeros(50).long(), "index": torch.arange(50)}
    assert executed_reduction(found.model.eval(), [batch], found.context.shape, "pack") == pytest.approx(2, rel=0.01)
