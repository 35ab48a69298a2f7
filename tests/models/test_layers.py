"""Models with fewer layers: which are kept, and that what is left is an ordinary model."""

import pytest
import torch
from support.models import sentences, tiny_model
from transformers import AutoModelForSequenceClassification

from prunekit.models.layers import keep_layers, middle_layers
from prunekit.models.pretrained import is_pruned, save
from prunekit.tokens.encoder import install


@pytest.mark.parametrize(
    ("layers", "kept", "which"),
    [
        (12, 4, (1, 4, 7, 10)),  # sentence-transformers' example
        (12, 6, (1, 3, 5, 7, 9, 11)),
        (12, 1, (6,)),
        (6, 3, (1, 3, 5)),
        (6, 2, (1, 4)),
        (6, 4, (0, 2, 3, 5)),
        (6, 6, (0, 1, 2, 3, 4, 5)),
    ],
)
def test_the_middle_layers_of_equal_stretches_are_kept(layers, kept, which):
    assert middle_layers(layers, kept) == which


def test_it_computes_what_the_kept_layers_compute(family):
    """The layers that are removed do nothing: a model in which they are skipped gives the same logits."""
    model, batch = tiny_model(family), sentences([9, 5], pad=1)
    expected = tiny_model(family)
    encoder = expected.base_model.transformer if family == "distilbert" else expected.base_model.encoder
    blocks = encoder.layer
    for number in (0, 2):
        blocks[number].forward = lambda hidden, *args, **kwargs: hidden
    torch.testing.assert_close(keep_layers(model, [1, 3])(**batch).logits, expected(**batch).logits)
    assert model.config.num_hidden_layers == 2


def test_what_is_saved_is_an_ordinary_smaller_model(tmp_path, family):
    model = install(keep_layers(tiny_model(family), [1, 3]), None)
    save(model, None, tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert (plain.config.num_hidden_layers, is_pruned(tmp_path)) == (2, False)
    assert {name for name in plain.state_dict() if ".2." in name} == set()
    batch = sentences([9, 5], pad=1)
    torch.testing.assert_close(plain(**batch).logits, model(**batch).logits, atol=1e-5, rtol=0)
