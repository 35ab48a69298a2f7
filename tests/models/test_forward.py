"""Running a model to evaluate it."""

import pytest
import torch
from support.models import sentences, tiny_model

from prunekit.evaluation.evaluate import kept_tokens
from prunekit.models.forward import evaluating, forward_logits, on_device, run_encoder
from prunekit.tokens.encoder import install
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.rank_gates import RankGate
from prunekit.tokens.scorers import ReferenceReceived
from prunekit.tokens.state import Trace


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_evaluated_without_dropout_gradients_and_autocast_and_then_as_before(training):
    model = tiny_model().train(training)
    with torch.autocast("cpu", dtype=torch.bfloat16), evaluating(model):
        assert not model.training
        assert not model.classifier.training
        logits = model(**sentences([5, 3])).logits
    assert (logits.dtype, logits.requires_grad) == (torch.float32, False)
    assert model.training is training
    assert torch.is_grad_enabled()


def test_the_mode_is_restored_after_an_error():
    model = tiny_model().train()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        1 / 0  # noqa: B018
    assert model.training
    assert torch.is_grad_enabled()


def test_a_batch_goes_to_a_device_whole():
    batch = {"a": torch.zeros(2), "b": torch.ones(1)}
    found = on_device(batch, torch.device("meta"))
    assert [tensor.device.type for tensor in found.values()] == ["meta", "meta"]
    assert [tensor.device.type for tensor in batch.values()] == ["cpu", "cpu"]


# -- decisions that depend on padding ------------------------------------------------------------------------


def padding_matters(padded_to, head="SequenceClassification", classes=3):
    """A model that keeps the best half of the ranks of two layers, scored as in ToP's reference code."""
    policy = RankGate([1, 2], 4, init_coarse=20.0, compat=True)
    with torch.no_grad():
        policy.token_loga.copy_(torch.tensor([20.0, 20.0, -20.0, -20.0]).repeat(2, 1))
    pruner = TokenPruner(ReferenceReceived(padded_to), policy, [1, 2], hide_gone=False)
    return install(tiny_model(head=head, classes=classes), pruner, "mask").eval()


def test_evaluation_pads_to_the_width_that_decisions_depend_on():
    model, batch, wide = padding_matters(60), sentences([9, 30]), sentences([9, 30], width=60)
    as_it_comes = forward_logits(padding_matters(None), batch, "mask")
    trace = Trace()
    logits = forward_logits(model, batch, "mask", trace)
    torch.testing.assert_close(logits, model(**wide).logits, atol=0, rtol=0)
    assert (logits - as_it_comes).abs().max() > 0.01
    assert trace.tokens_out.T.tolist() == [[9, 6, 4, 4], [30, 16, 9, 9]]  # with [CLS], which has no rank
    run_encoder(model, batch, "mask", trace=(alone := Trace()))
    assert torch.equal(alone.tokens_out, trace.tokens_out)


def test_training_does_not_pad():
    model = padding_matters(60).train()
    forward_logits(model, sentences([9, 30]), "mask", trace := Trace())
    assert trace.layers[0].keep.shape == (2, 30)


def test_what_was_added_to_a_batch_is_in_no_result():
    batch = sentences([9, 30]) | {"token_type_ids": torch.zeros(2, 30, dtype=torch.long)}
    reader = padding_matters(60, head="QuestionAnswering", classes=2)
    with torch.no_grad():
        assert forward_logits(reader, batch, "mask").shape == (2, 30, 2)
        labels = torch.where(batch["attention_mask"] > 0, 1, -100)
        tagger = padding_matters(60, head="TokenClassification")
        assert forward_logits(tagger, batch | {"labels": labels}, "mask").shape == (39, 3)
    depth, scores = kept_tokens(reader, batch)
    assert depth.shape == (2, 30)
    assert scores.shape == (4, 2, 30)


def test_another_width_is_refused_where_the_model_is_called_itself():
    with pytest.raises(ValueError, match=r"\nAllowed: execution='mask' with texts padded to 60 tokens\."):
        padding_matters(60)(**sentences([9, 30]))
