"""Running a model to evaluate it."""

import pytest
import torch
from support.models import sentences, tiny_model

from prunekit.models.forward import evaluating, on_device


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
