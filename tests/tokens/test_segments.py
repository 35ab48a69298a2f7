"""The first of two texts is kept whole, whatever the method decides, in every execution."""

import copy

import pytest
import torch
from support.families import FAMILIES
from support.models import sentences, tiny_model

from prunekit.tokens.encoder import encoder_of, install
from prunekit.tokens.policies import KeepRatio, Threshold
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import AttentionReceived
from prunekit.tokens.segments import first_segment
from prunekit.tokens.state import Trace

CLS, SEP, PAD = 2, 3, 0


@pytest.mark.parametrize(
    ("ids", "protected"),
    [
        ([CLS, 7, 8, SEP, 9, 9, SEP, PAD], [1, 1, 1, 1, 0, 0, 0, 0]),
        ([CLS, 7, SEP, SEP, 9, 9, SEP, PAD], [1, 1, 1, 1, 0, 0, 0, 0]),  # RoBERTa has two between texts
        ([CLS, 7, 8, SEP, PAD, PAD, PAD, PAD], [1, 1, 1, 1, 0, 0, 0, 0]),  # one text alone
        ([CLS, SEP, 9, SEP, PAD, PAD, PAD, PAD], [1, 1, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_the_first_segment_ends_with_what_separates_the_texts(ids, protected):
    assert first_segment(torch.tensor([ids]), SEP).long()[0].tolist() == protected


def pairs():
    """Three pairs whose first texts, with [CLS] and the separator, have 4, 10 and 6 tokens of 12, 20 and 9."""
    batch = sentences([12, 20, 9])
    for row, place in enumerate((3, 9, 5)):
        batch["input_ids"][row, place] = SEP
    return batch


@pytest.mark.parametrize("family", FAMILIES)
def test_executions_agree_and_keep_the_first_text(family):
    pruner = TokenPruner(AttentionReceived(), KeepRatio({1: 0.3}), [1])
    model = install(tiny_model(family, classes=1), pruner, "mask", separator=SEP)
    traces = {name: Trace() for name in ("mask", "drop", "pack")}
    with torch.no_grad():
        logits = {name: model(**pairs(), execution=name, trace=trace).logits for name, trace in traces.items()}
    assert torch.allclose(logits["mask"], logits["drop"], atol=1e-4)
    assert torch.allclose(logits["mask"], logits["pack"], atol=1e-4)
    for trace in traces.values():
        assert trace.layers[1].tokens_out.tolist() == [4, 10, 6]  # 0.3 of the whole would be 4, 6 and 3


def test_without_a_separator_nothing_but_cls_is_protected_and_installing_again_forgets_it():
    pruner = TokenPruner(AttentionReceived(), Threshold({0: 100.0}), [0])
    model = install(tiny_model(classes=1), pruner, "mask", separator=SEP)

    def kept(of):
        with torch.no_grad():
            of(**pairs(), trace=(trace := Trace()))
        return trace.layers[0].tokens_out.tolist()

    copied = copy.deepcopy(model)
    assert kept(model) == [4, 10, 6]
    install(model, pruner, "mask")
    assert kept(model) == [1, 1, 1]
    assert encoder_of(model).separator is None
    assert kept(copied) == [4, 10, 6]


def test_a_call_that_shows_no_token_ids_is_refused():
    model = install(tiny_model(), TokenPruner(AttentionReceived(), Threshold({0: 1.0}), [0]), separator=SEP)
    hidden = model.get_input_embeddings()(pairs()["input_ids"])
    with pytest.raises(ValueError, match="protects the first of two texts, but was called without token ids"):
        model(inputs_embeds=hidden, attention_mask=pairs()["attention_mask"])
    with torch.no_grad():
        model(inputs_embeds=hidden, protected=first_segment(pairs()["input_ids"], SEP))
        model(inputs_embeds=hidden, execution="dense")
