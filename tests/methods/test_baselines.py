"""What one would try first: fewer layers, and shorter texts."""

import pytest
import torch
from support.models import method_under_test, sentences, tiny_model

import prunekit
from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.evaluation.evaluate import executed_reduction, kept_tokens
from prunekit.models.pretrained import is_pruned, save
from prunekit.runs.kinds import kind_of
from prunekit.tokens.encoder import encoder_of
from prunekit.tokens.state import Trace

LENGTHS = (24, 17, 9, 30, 12, 21, 28, 15)


def batch_of(lengths, **more):
    rows = len(lengths)
    return sentences(lengths) | {"labels": torch.zeros(rows).long(), "index": torch.arange(rows)} | more


def reached(found):
    """What a model computes less of the texts that its budget was met on."""
    return executed_reduction(found.model, [batch_of(LENGTHS)], found.context.shape, "pack")


# -- layers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("budget", "kept"), [(1.0, (0, 1, 2, 3)), (1.33, (0, 2, 3)), (2.0, (1, 3)), (4.0, (2,))])
def test_the_number_of_layers_follows_from_the_budget(budget, kept):
    found = method_under_test("layers", lengths=LENGTHS, budget=budget)
    assert found.options.kept == kept
    assert len(encoder_of(found.model).blocks) == len(kept)
    assert reached(found) == pytest.approx(4 / len(kept))
    assert reached(found) in map(pytest.approx, found.options.steps(found.context))


def test_layers_are_named():
    found = method_under_test("layers", budget=None, kept=[0, 3])
    assert (found.options.kept, found.asked) == ((0, 3), None)
    with pytest.raises(ConfigError, match=r"method\.kept=\[1, 1\] does not rise.*\nAllowed: numbers from 0 to 3"):
        method_under_test("layers", budget=None, kept=[1, 1])


def test_all_of_its_parameters_are_trained_on_whole_texts():
    found, trace = method_under_test("layers"), Trace()
    assert set(found.terms(batch_of((5, 3)))) == {"task"}
    found(batch_of((5, 3)), "mask", trace)
    assert trace.tokens_in.tolist() == [[5, 3], [5, 3]]


@pytest.mark.parametrize("name", ["layers", "truncate"])
def test_a_decoder_is_not_left_without_what_it_was_trained_for(name):
    cfg, _ = compose([f"method={name}", "task=multi30k_en_fr", "backbone=marian_en_fr"])
    with pytest.raises(ConfigError, match=r"and task=multi30k_en_fr is of kind translation\.\nAllowed: tasks of kind"):
        kind_of(cfg)


# -- shorter texts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1.0, 1.2, 2.0, 3.5])
def test_the_length_follows_from_the_budget(budget):
    found = method_under_test("truncate", lengths=LENGTHS, budget=budget)
    steps = found.options.steps(found.context)
    assert min(abs(budget / step - 1) for step in steps) == pytest.approx(abs(budget / reached(found) - 1), abs=1e-6)
    assert min(steps) <= budget <= max(steps)


def test_a_length_is_named():
    found, trace = method_under_test("truncate", budget=None, tokens=6), Trace()
    found(batch_of((12, 7, 4)), "mask", trace)
    assert trace.tokens_in.tolist() == [[6, 6, 4]] * 4


def test_it_is_the_stock_model_on_cut_texts(family):
    model, stock = tiny_model(family), tiny_model(family)
    found = method_under_test("truncate", budget=None, tokens=6, model=model).eval()
    batch = batch_of((12, 7, 4))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    columns = torch.tensor([[0, 1, 2, 3, 4, 11], [0, 1, 2, 3, 4, 6], [0, 1, 2, 3, 4, 5]])
    wanted = stock(input_ids=ids.gather(1, columns), attention_mask=mask.gather(1, columns)).logits
    for execution in ("mask", "drop", "pack"):
        torch.testing.assert_close(found(batch, execution), wanted, atol=1e-5, rtol=0)


def test_it_does_not_train_unless_it_is_told_to():
    assert not method_under_test("truncate").trains
    assert method_under_test("truncate", train=True).trains


def test_each_token_has_the_number_of_layers_that_it_passed():
    found = method_under_test("truncate", budget=None, tokens=4)
    depth, scores = kept_tokens(found.model.eval(), batch_of((6, 3)))
    assert depth.tolist() == [[4, 4, 4, 0, 0, 4], [4, 4, 4, 0, 0, 0]]
    assert (scores > 0).sum(0).tolist() == depth.tolist()


def test_texts_that_were_not_cut_are_refused():
    found = method_under_test("truncate", budget=None, tokens=6)
    with pytest.raises(ValueError, match=r"given 7 tokens, but reads texts cut at 6\.\nAllowed: .*\nGive tokenizer\("):
        found.model(**sentences([7, 5]))
    assert found.model(**sentences([6, 5])).logits.shape == (2, 3)


def test_a_loaded_model_and_its_engine_cut_where_it_was_tested(tmp_path, family):
    found = method_under_test("truncate", budget=None, tokens=6, model=tiny_model(family)).eval()
    save(found.model, None, tmp_path, max_length=64)
    loaded, engine = prunekit.load(tmp_path), prunekit.load(tmp_path, engine="packed")
    batch = sentences([12, 4])
    from prunekit.models.forward import forward_logits

    torch.testing.assert_close(forward_logits(loaded, batch, "pack"), found(batch, "mask"), atol=1e-5, rtol=0)
    assert (engine.max_length, engine.most_tokens, is_pruned(tmp_path)) == (6, 6, False)
    with pytest.raises(ValueError, match=r"text 0 has 12 tokens; this model takes 1 to 6"):
        engine(batch)


def test_a_task_that_asks_about_each_token_is_refused():
    with pytest.raises(ConfigError, match=r"task=squad1 asks about each of their tokens\.\nAllowed: tasks with one"):
        method_under_test("truncate", task="squad1")
