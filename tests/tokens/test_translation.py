"""Pruned encoders of translation models: every execution gives the same decoder logits."""

import copy

import pytest
import torch
from support.models import sentences
from support.translators import LENGTHS, SOURCE, TARGETS, translator

from prunekit.tokens.encoder import encoder_of, install
from prunekit.tokens.policies import KeepRatio, LearnedThreshold, MeanMinusStd, Threshold
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.rank_gates import RankGate
from prunekit.tokens.scorers import AccumulatedReceived, AttentionReceived
from prunekit.tokens.state import Trace
from prunekit.tokens.task_attention import TaskImportance
from prunekit.tokens.translation import encode, forward, generate


@pytest.fixture(params=["marian", "t5"])
def family(request):
    return request.param


PRUNERS = {
    "topk": lambda: TokenPruner(AttentionReceived(), KeepRatio({0: 0.8, 1: 0.5, 2: 0.3}), range(3)),
    "threshold": lambda: TokenPruner(AttentionReceived(), Threshold({1: 0.9, 2: 1.0}), [1, 2]),
    "ltp": lambda: TokenPruner(AttentionReceived(), LearnedThreshold({1: 0.9, 2: 1.0}, 0.05), [1, 2]),
    "top": lambda: TokenPruner(AttentionReceived(), RankGate([1, 2], 4, init_fine=0.0, init_coarse=4.0), [1, 2]),
    "dtp": lambda: TokenPruner(AccumulatedReceived(), MeanMinusStd({1: 0.3, 2: 0.3}), range(3), soft_form="bias"),
    "tsdtp": lambda: TokenPruner(
        TaskImportance(32, 5, range(3), 0.5), MeanMinusStd({1: 0.3, 2: 0.3}), range(3), soft_form="bias"
    ),
}


@torch.no_grad()
def logits(model, execution, source=SOURCE, **how):
    trace = Trace()
    found = forward(
        model, **source, targets=TARGETS[: len(source["input_ids"])], execution=execution, trace=trace, **how
    )
    return found, trace


def kept(trace):
    return [
        [sorted(place[keep > 0].tolist()) for place, keep in zip(entry.position, entry.keep, strict=True)]
        for entry in trace.layers
    ]


def test_unpruned_it_is_the_stock_model(family):
    model = translator(family)
    with torch.no_grad():
        stock = model(**SOURCE, labels=TARGETS).logits
    install(model, None)
    for execution in ("dense", "mask", "drop", "pack"):
        torch.testing.assert_close(logits(model, execution)[0], stock, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PRUNERS)
def test_mask_drop_and_pack_give_the_same_decoder_logits(family, name):
    model = install(translator(family), PRUNERS[name](), prefix=2)
    masked, trace = logits(model, "mask")
    assert trace.tokens_out[-1].sum() < 0.8 * sum(LENGTHS)
    for execution in ("drop", "pack"):
        found, other = logits(model, execution)
        assert kept(other) == kept(trace)
        torch.testing.assert_close(found, masked, atol=1e-5, rtol=0)


@pytest.mark.parametrize("execution", ["mask", "drop", "pack"])
def test_the_end_of_the_sentence_and_the_prefix_are_kept(family, execution):
    model = install(translator(family), TokenPruner(AttentionReceived(), KeepRatio({0: 0.0}), [0]), prefix=2)
    _, trace = logits(model, execution)
    assert kept(trace)[-1] == [[0, 1, length - 1] for length in LENGTHS]


def test_padding_and_batch_mates_change_nothing(family):
    model = install(translator(family), PRUNERS["tsdtp"]())
    together, _ = logits(model, "pack")
    wide, _ = logits(model, "drop", sentences(LENGTHS, width=27))
    torch.testing.assert_close(wide, together, atol=1e-5, rtol=0)
    for row, length in enumerate(LENGTHS):
        alone = {name: tensor[row : row + 1, :length] for name, tensor in SOURCE.items()}
        with torch.no_grad():
            found = forward(model, **alone, targets=TARGETS[row : row + 1], execution="pack")
        torch.testing.assert_close(found, together[row : row + 1], atol=1e-5, rtol=0)


def test_relative_positions_of_t5_are_those_of_the_unpruned_text():
    """Computed for the kept tokens as if they were adjacent, they would change the logits."""
    model = install(translator("t5"), PRUNERS["topk"]())
    masked, _ = logits(model, "mask")
    dropped, _ = logits(model, "drop")
    assert (dropped - masked).abs().max() < 1e-5
    encoder = encoder_of(model)
    side_by_side = lambda layers, position: encoder_family.relative(  # noqa: E731
        layers, torch.arange(position.shape[1]).expand_as(position)
    )
    encoder_family = encoder.family
    encoder.family = copy.copy(encoder_family)
    object.__setattr__(encoder.family, "relative", side_by_side)
    assert (logits(model, "drop")[0] - masked).abs().max() > 0.01


def test_only_kept_tokens_reach_the_decoder(family):
    """The hidden states of dropped tokens make no difference."""
    model = install(translator(family), PRUNERS["topk"]())
    with torch.no_grad():
        left = encode(model, **SOURCE, execution="drop")
        whole = encode(model, **SOURCE, execution="mask")
    assert left.hidden.shape[1] < whole.hidden.shape[1] == 20
    assert left.keep.sum(-1).tolist() == whole.keep.sum(-1).tolist() == [4, 3, 6, 1]


def test_soft_gates_reach_the_cross_attention(family):
    """In the limit they are the hard decision there too, and the decoder's loss trains k and the task's parameters."""
    model = install(translator(family), PRUNERS["tsdtp"]())
    pruner = encoder_of(model).pruner
    pruner.policy.temperature = 1e-6
    hard, soft = logits(model, "mask")[0], logits(model, "soft")[0]
    torch.testing.assert_close(soft, hard, atol=1e-4, rtol=0)  # T5 does not scale attention logits
    pruner.policy.temperature = 0.5
    forward(model, **SOURCE, targets=TARGETS, execution="soft").square().mean().backward()
    for name, parameter in pruner.named_parameters():
        assert parameter.grad.abs().max() > 1e-8, name


def test_gates_of_the_last_layer_get_a_gradient_through_the_cross_attention(family):
    """A decision with no encoder layer after it is still trained."""
    model = install(
        translator(family),
        TokenPruner(AttentionReceived(), MeanMinusStd({2: 0.3}), [2], soft_form="bias"),
    )
    forward(model, **SOURCE, targets=TARGETS, execution="soft").square().mean().backward()
    assert encoder_of(model).pruner.policy.k.grad.abs().max() > 1e-8


def test_beam_search_gives_the_same_translations_in_every_execution(family):
    model = install(translator(family), PRUNERS["dtp"]())
    found = {
        how: generate(model, **SOURCE, beams=4, max_new_tokens=8, execution=how) for how in ("mask", "drop", "pack")
    }
    assert torch.equal(found["mask"], found["drop"])
    assert torch.equal(found["mask"], found["pack"])


def test_unpruned_translations_are_the_stock_models(family):
    model = translator(family)
    stock = model.generate(**SOURCE, num_beams=4, max_new_tokens=8, do_sample=False)
    assert torch.equal(generate(install(model, None), **SOURCE, beams=4, max_new_tokens=8), stock)


def test_the_decoder_keeps_its_attention_implementation(family):
    model = translator(family)
    before = model.config._attn_implementation
    install(model, PRUNERS["topk"]())
    assert model.config._attn_implementation == before
    install(model, PRUNERS["dtp"]())  # a second call exchanges the pruner
    assert logits(model, "pack")[1].tokens_out[-1].sum() < sum(LENGTHS)


def test_the_weights_keep_their_names(family):
    model = translator(family)
    names = set(model.state_dict())
    install(model, PRUNERS["topk"]())
    assert set(model.state_dict()) == names


def test_a_call_like_a_stock_model_is_refused(family):
    model = install(translator(family), PRUNERS["topk"]())
    with pytest.raises(TypeError, match="its decoder would see dropped tokens"):
        model(**SOURCE, labels=TARGETS)
    with pytest.raises(TypeError, match="its decoder would see dropped tokens"):
        model.generate(**SOURCE)
