"""Scorers: the exact importance, and that it depends on the sentence's own tokens only."""

import pytest
import torch
from support.models import sentences, tiny_model

from prunekit.tokens.attention import attention_received
from prunekit.tokens.encoder import install
from prunekit.tokens.policies import KeepRatio, Threshold
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import (
    AccumulatedReceived,
    AttentionReceived,
    EarlierFirst,
    RandomOrder,
    ReceivedAfterDropout,
)
from prunekit.tokens.state import Signals, TokenState, Trace

PEAKY = [[0.5, 0.3, 0.2, 0.0], [0.6, 0.3, 0.1, 0.0], [0.4, 0.4, 0.2, 0.0], [1 / 3, 1 / 3, 1 / 3, 0.0]]
UNIFORM = [[1 / 3, 1 / 3, 1 / 3, 0.0]] * 4
LIVE = torch.tensor([[1.0, 1.0, 1.0, 0.0]])


def state(length, *, width=None, previous=None):
    width = width or length
    here = (torch.arange(width) < length).float()[None]
    return TokenState(
        here, torch.arange(width)[None], torch.zeros(1, width), torch.tensor([float(length)]), None, previous
    )


def test_attention_received_is_the_column_sum_over_alive_queries():
    """ltp.md 10.1; the reference divides by the padded length, 4 here."""
    found = attention_received(torch.tensor([[PEAKY]]), LIVE)
    torch.testing.assert_close(found, torch.tensor([[1.5, 1.0, 0.5, 0.0]]))
    torch.testing.assert_close(found / 4, torch.tensor([[0.375, 0.25, 0.125, 0.0]]))


def test_counting_attention_from_padding_gives_other_numbers():
    """ltp.md 10.1: the classic mistake."""
    found = attention_received(torch.tensor([[PEAKY]]), None) / 4
    torch.testing.assert_close(found, torch.tensor([[0.458333, 0.333333, 0.208333, 0.0]]), atol=1e-6, rtol=0)


def test_heads_are_averaged():
    """ltp.md 10.3: a second head that is uniform over the three live keys."""
    found = attention_received(torch.tensor([[PEAKY, UNIFORM]]), LIVE) / 4
    torch.testing.assert_close(found, torch.tensor([[0.3125, 0.25, 0.1875, 0.0]]))


def test_a_dropped_token_neither_gives_nor_receives_attention():
    """ltp.md 10.4: token 2 is dropped in the next layer."""
    rows = torch.tensor([[[[0.7, 0.3, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]]]])
    found = attention_received(rows, torch.tensor([[1.0, 1.0, 0.0, 0.0]])) / 4
    torch.testing.assert_close(found, torch.tensor([[0.3, 0.2, 0.0, 0.0]]))
    assert found.sum().item() == pytest.approx(2 / 4)  # live tokens per padded length


def test_accumulated_importance_sums_layers():
    """ltp.md 8.1, SpAtten's cascade, in two layers."""
    scorer = AccumulatedReceived()
    first = scorer(Signals(torch.tensor([[1.5, 1.0, 0.5]])), state(3))
    second = scorer(Signals(torch.tensor([[0.2, 0.8, 2.0]])), state(3, previous=first))
    torch.testing.assert_close(second, torch.tensor([[1.7, 1.8, 2.5]]))
    assert second.topk(2).indices.tolist() == [[2, 1]]
    assert (first.argmax().item(), second.argmax().item()) == (0, 2)


def test_accumulated_importance_moves_with_the_tokens():
    """Under every execution the state has each token's own sum, whichever tokens were dropped before it."""
    seen = {}

    class Watching(AccumulatedReceived):
        def forward(self, signals, here):
            if here.previous is not None:
                for row in range(len(here.position)):
                    alive = here.keep[row] > 0
                    pairs = zip(here.position[row][alive].tolist(), here.previous[row][alive].tolist(), strict=True)
                    seen.setdefault(execution, []).append(dict(pairs))
            return super().forward(signals, here)

    model = install(tiny_model(), TokenPruner(Watching(), KeepRatio({0: 0.9, 1: 0.6, 2: 0.4, 3: 0.2}), range(4)))
    for execution in ("mask", "drop", "pack"):
        with torch.no_grad():
            model(**sentences([20, 9, 13]), execution=execution)
    for execution in ("drop", "pack"):
        for expected, found in zip(seen["mask"], seen[execution], strict=True):
            assert found == pytest.approx(expected, abs=1e-4)


def test_a_scorer_that_needs_no_previous_scores_gets_none():
    class Watching(AttentionReceived):
        def forward(self, signals, here):
            assert here.previous is None
            return super().forward(signals, here)

    model = install(tiny_model(), TokenPruner(Watching(), KeepRatio({1: 0.5, 2: 0.5}), [1, 2]))
    model(**sentences([6]), execution="pack")


@pytest.mark.parametrize(
    ("scorer", "policy"),
    [
        (AccumulatedReceived(), KeepRatio({0: 1.0, 1: 0.8, 2: 0.5, 3: 0.3})),
        (AccumulatedReceived(), Threshold({0: 0.3, 1: 1.4, 2: 2.4, 3: 3.6})),
        (RandomOrder(7), KeepRatio({1: 0.8, 2: 0.5, 3: 0.3})),
        (EarlierFirst(), KeepRatio({1: 0.8, 2: 0.5, 3: 0.3})),
        (ReceivedAfterDropout(), KeepRatio({1: 0.8, 2: 0.5, 3: 0.3})),
    ],
    ids=["accumulated-ratio", "accumulated-threshold", "random", "first", "after-dropout"],
)
def test_mask_drop_and_pack_agree(family, scorer, policy):
    layers = sorted(policy.ratios if isinstance(policy, KeepRatio) else policy.thresholds)
    model = install(tiny_model(family), TokenPruner(scorer, policy, layers))
    batch = sentences([20, 13, 7, 1, 20, 3], width=23, pad=model.config.pad_token_id or 0)
    results = {}
    for execution in ("mask", "drop", "pack"):
        trace = Trace()
        with torch.no_grad():
            logits = model(**batch, execution=execution, trace=trace).logits
        kept = [
            [sorted(entry.position[row][entry.keep[row] > 0].tolist()) for row in range(6)] for entry in trace.layers
        ]
        results[execution] = logits, kept
    assert sum(map(len, results["mask"][1][-1])) < 64  # something was pruned
    for execution in ("drop", "pack"):
        assert results[execution][1] == results["mask"][1]
        torch.testing.assert_close(results[execution][0], results["mask"][0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "scorer", [AccumulatedReceived(), RandomOrder(3), EarlierFirst()], ids=lambda s: type(s).__name__
)
def test_padding_and_batch_mates_change_nothing(scorer):
    model = install(tiny_model(), TokenPruner(scorer, KeepRatio({0: 1.0, 1: 0.7, 2: 0.5, 3: 0.3}), range(4)))
    batch = sentences([17, 9, 4, 12], width=20)
    with torch.no_grad():
        together = model(**batch, execution="mask").logits
        for row, length in enumerate([17, 9, 4, 12]):
            alone = {name: tensor[row : row + 1, :length] for name, tensor in batch.items()}
            torch.testing.assert_close(model(**alone, execution="mask").logits[0], together[row], atol=1e-5, rtol=0)


def test_the_random_order_is_a_function_of_the_seed_and_the_length():
    here = state(50)
    assert torch.equal(RandomOrder(1)(Signals(), here), RandomOrder(1)(Signals(), here))
    assert not torch.equal(RandomOrder(1)(Signals(), here), RandomOrder(2)(Signals(), here))
    assert not torch.equal(RandomOrder(1)(Signals(), here), RandomOrder(1)(Signals(), state(51, width=50)))


def test_the_random_order_is_uniform():
    drawn = torch.cat([RandomOrder(seed)(Signals(), state(200)) for seed in range(50)]).flatten()
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.01)
    assert drawn.std().item() == pytest.approx(12**-0.5, abs=0.01)
    # neither seeds nor neighbouring positions are correlated
    table = drawn.view(50, 200)
    assert abs(torch.corrcoef(torch.stack([table[:, :-1].flatten(), table[:, 1:].flatten()]))[0, 1]) < 0.05
    assert abs(torch.corrcoef(torch.stack([table[:-1].flatten(), table[1:].flatten()]))[0, 1]) < 0.05


def test_controls_need_no_attention_probabilities():
    assert RandomOrder.needs == EarlierFirst.needs == frozenset()


def test_scores_after_dropout_differ_only_in_training():
    model = install(tiny_model(), None)
    before, after = {}, {}
    for training in (False, True):
        torch.manual_seed(0)
        model.train(training)
        trace = Trace.scoring([0], ReceivedAfterDropout())
        plain = Trace.scoring([0])
        model(**sentences([9]), execution="mask", trace=trace)
        torch.manual_seed(0)
        model(**sentences([9]), execution="mask", trace=plain)
        before[training], after[training] = plain.layers[0].received, trace.layers[0].scores
    torch.testing.assert_close(after[False], before[False])
    assert not torch.allclose(after[True], before[True])
