"""The pruned encoder: without pruning it is Hugging Face's model, and its four executions compute the same."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.families import FAMILIES
from support.models import sentences, tiny_model

from prunekit.tokens.encoder import encoder_of, install
from prunekit.tokens.layout import TokenLayout
from prunekit.tokens.policies import KeepPolicy, KeepRatio, Threshold
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import AttentionReceived
from prunekit.tokens.state import Trace

RATIOS = {0: 0.9, 1: 0.7, 2: 0.5, 3: 0.25}
THRESHOLDS = {0: 0.3, 1: 0.6, 2: 0.8, 3: 0.9}


def pruner(policy, layers=range(4), **kwargs):
    return TokenPruner(AttentionReceived(), policy, layers, **kwargs)


def run(model, batch, execution, **kwargs):
    trace = Trace()
    with torch.no_grad():
        logits = model(**batch, execution=execution, trace=trace, **kwargs).logits
        hidden = model.base_model(**batch, execution=execution, **kwargs).last_hidden_state
    return logits, hidden, trace


def kept_positions(trace):
    """For each layer and sentence, the positions in the unpruned sentence of the kept tokens."""
    return [
        [sorted(entry.position[row][entry.keep[row] > 0].tolist()) for row in range(len(entry.keep))]
        for entry in trace.layers
    ]


def test_unpruned_equals_stock_hugging_face_bit_for_bit(family):
    model = tiny_model(family)
    batch = sentences([20, 13, 7, 1], pad=model.config.pad_token_id or 0)
    with torch.no_grad():
        stock = model(**batch).logits
        install(model, None)
        assert torch.equal(model(**batch, execution="dense").logits, stock)
        assert torch.equal(model(**batch, execution="mask").logits, stock)
        for execution in ("drop", "pack"):
            torch.testing.assert_close(model(**batch, execution=execution).logits, stock, atol=1e-5, rtol=0)


def test_a_budget_of_one_equals_the_dense_model(family):
    model = tiny_model(family)
    batch = sentences([9, 4, 6])
    with torch.no_grad():
        stock = model(**batch).logits
    install(model, pruner(KeepRatio(dict.fromkeys(range(4), 1.0))))
    for execution in ("soft", "mask", "drop", "pack"):
        torch.testing.assert_close(run(model, batch, execution)[0], stock, atol=1e-5, rtol=0)


@pytest.mark.parametrize("policy", [KeepRatio(RATIOS), Threshold(THRESHOLDS)], ids=["ratio", "threshold"])
def test_mask_drop_and_pack_keep_the_same_tokens_and_give_the_same_output(family, policy):
    model = install(tiny_model(family), pruner(policy))
    batch = sentences([20, 13, 7, 1, 20, 3], pad=model.config.pad_token_id or 0)
    logits, hidden, trace = run(model, batch, "mask")
    assert trace.tokens_out[-1].sum() < batch["attention_mask"].sum()  # something was pruned
    for execution in ("drop", "pack"):
        other, other_hidden, other_trace = run(model, batch, execution)
        assert kept_positions(other_trace) == kept_positions(trace)
        torch.testing.assert_close(other, logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(other_hidden, hidden, atol=1e-4, rtol=0)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=6),
    extra=st.integers(0, 7),
    thresholds=st.lists(st.floats(0.0, 1.6), min_size=4, max_size=4),
    family=st.sampled_from(FAMILIES),
)
def test_executions_agree_for_any_lengths_padding_and_thresholds(lengths, extra, thresholds, family):
    model = install(tiny_model(family), pruner(Threshold(dict(enumerate(thresholds)))))
    batch = sentences(lengths, width=max(lengths) + extra, pad=model.config.pad_token_id or 0)
    logits, hidden, trace = run(model, batch, "mask")
    for execution in ("drop", "pack"):
        other, other_hidden, other_trace = run(model, batch, execution)
        assert torch.equal(other_trace.tokens_out, trace.tokens_out)
        torch.testing.assert_close(other, logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(other_hidden, hidden, atol=1e-4, rtol=0)


@pytest.mark.parametrize("execution", ["mask", "drop", "pack"])
def test_padding_and_batch_mates_change_nothing(execution):
    model = install(tiny_model(), pruner(Threshold(THRESHOLDS)))
    batch = sentences([17, 9, 4, 12])
    together, _, trace = run(model, batch, execution)
    for row, length in enumerate([17, 9, 4, 12]):
        alone = {name: tensor[row : row + 1, :length] for name, tensor in batch.items()}
        logits, _, alone_trace = run(model, alone, execution)
        torch.testing.assert_close(logits[0], together[row], atol=1e-5, rtol=0)
        assert torch.equal(alone_trace.tokens_out[:, 0], trace.tokens_out[:, row])


def test_counting_attention_from_dropped_tokens_would_change_what_is_kept():
    """The executions could not agree if dropped queries counted: the equality tests above can fail."""

    class EveryRowVotes(AttentionReceived):
        needs = frozenset({"probs"})

        def forward(self, signals, state):
            return signals.probs.sum(2).mean(1)

    differs = 0
    for seed in range(5):
        model = install(tiny_model(seed=seed), TokenPruner(EveryRowVotes(), KeepRatio(RATIOS), range(4)))
        batch = sentences([20, 13], seed=seed)
        differs += kept_positions(run(model, batch, "mask")[2]) != kept_positions(run(model, batch, "drop")[2])
    assert differs > 0


def test_the_mean_score_of_alive_tokens_is_one_whatever_was_pruned_before():
    model = install(tiny_model(), pruner(KeepRatio(RATIOS)))
    batch = sentences([20, 11, 5])
    for execution in ("mask", "drop", "pack"):
        trace = Trace.scoring(range(4))
        with torch.no_grad():
            model(**batch, execution=execution, trace=trace)
        for entry in trace.layers:
            torch.testing.assert_close(entry.received.sum(-1), entry.tokens_in, atol=1e-4, rtol=0)


def test_permuting_tokens_permutes_what_is_kept():
    """ltp.md 10.5; tested after the embeddings, which distinguish positions."""
    encoder = encoder_of(install(tiny_model(), pruner(Threshold(THRESHOLDS))))
    hidden = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0))
    order = torch.cat([torch.zeros(1).long(), 1 + torch.randperm(11, generator=torch.Generator().manual_seed(1))])
    kept = []
    for tokens in (hidden, hidden[:, order]):
        trace = Trace()
        with torch.no_grad():
            encoder(tokens, execution="mask", trace=trace)
        kept.append(kept_positions(trace))
    moved = [[sorted(order[row].tolist()) for row in rows] for rows in kept[1]]
    assert moved == kept[0] != kept[1]
    assert len(kept[0][-1][0]) < 12


def test_a_unit_that_shrinks_with_the_sentence_would_keep_more():
    """ltp.md 10.7, the classic mistake: divided by the remaining tokens, scores rise as tokens are dropped."""

    class LeftOver(AttentionReceived):
        def forward(self, signals, state):
            return signals.received * (state.length / state.count)[:, None]

    batch, left = sentences([20, 13, 18]), []
    for scorer in (AttentionReceived(), LeftOver()):
        model = install(tiny_model(), TokenPruner(scorer, Threshold(THRESHOLDS), range(4)))
        left.append(int(run(model, batch, "mask")[2].tokens_out[-1].sum()))
    assert left[0] < left[1]


def test_a_dropped_token_never_comes_back_and_cls_is_never_dropped():
    class Revive(KeepPolicy):
        def forward(self, layer, scores, state):
            return (state.position % 2 == layer % 2).float()  # odd and even positions take turns

    model = install(tiny_model(), pruner(Revive()))
    for execution in ("soft", "mask", "drop", "pack"):
        kept = kept_positions(run(model, sentences([8]), execution)[2])
        assert [layer[0] for layer in kept] == [[0, 2, 4, 6], [0], [0], [0]]


def test_protected_tokens_are_kept():
    model = install(tiny_model(), pruner(KeepRatio(dict.fromkeys(range(4), 0.3))))
    marked = torch.zeros(1, 10, dtype=torch.bool)
    marked[0, 7] = True
    for execution in ("mask", "drop", "pack"):
        kept = kept_positions(run(model, sentences([10]), execution, protected=marked)[2])
        assert all({0, 7} <= set(layer[0]) for layer in kept)
        assert len(kept[-1][0]) == 3


def test_a_dropped_token_has_the_output_of_the_last_layer_that_it_passed():
    """Position 3 is dropped at layer 1, so it is returned with the output of layer 0."""

    class DropThird(KeepPolicy):
        def forward(self, layer, scores, state):
            return (state.position != 3).float()

    model = tiny_model(layers=2)
    batch = sentences([6])
    shorter = tiny_model(layers=1)
    shorter.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        after_one = shorter.base_model(**batch).last_hidden_state[0, 3]
    install(model, pruner(DropThird(), layers=[1]))
    for execution in ("soft", "mask", "drop", "pack"):
        hidden = run(model, batch, execution)[1]
        torch.testing.assert_close(hidden[0, 3], after_one, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("finishes", "layers_passed"), [(False, 1), (True, 2)])
def test_the_reference_of_top_finishes_the_layer_that_drops_a_token(finishes, layers_passed):
    """Position 3 is dropped at layer 1 of three: its output is that of layer 0 here, and of layer 1 there."""

    class DropThird(KeepPolicy):
        def forward(self, layer, scores, state):
            return (state.position != 3).float()

    model, shorter = tiny_model(layers=3), tiny_model(layers=layers_passed)
    batch = sentences([6])
    shorter.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        passed = shorter.base_model(**batch).last_hidden_state[0, 3]
    install(model, pruner(DropThird(), layers=[1], hide_gone=False, finishes_layer=finishes))
    for execution in ("soft", "mask"):
        torch.testing.assert_close(run(model, batch, execution)[1][0, 3], passed, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", ["TokenClassification", "QuestionAnswering"])
def test_token_and_question_answering_heads_get_the_whole_sequence(head):
    model = install(tiny_model(head=head, classes=2), pruner(KeepRatio(RATIOS)))
    batch = sentences([12, 5])
    with torch.no_grad():
        outputs = [model(**batch, execution=execution) for execution in ("mask", "drop", "pack")]
    first = outputs[0][0]
    assert first.shape[:2] == (2, 12)
    for other in outputs[1:]:
        torch.testing.assert_close(other[0], first, atol=1e-4, rtol=0)


def test_the_trace_counts_the_tokens_that_entered_each_half_of_a_layer():
    model = install(tiny_model(), pruner(KeepRatio({1: 0.5, 3: 0.25}), layers=[1, 3]))
    _, _, trace = run(model, sentences([8, 4]), "pack")
    assert trace.tokens_in.tolist() == [[8, 4], [8, 4], [4, 2], [4, 2]]
    assert trace.tokens_out.tolist() == [[8, 4], [4, 2], [4, 2], [2, 1]]
    assert [entry.decided for entry in trace.layers] == [False, True, False, True]


def test_soft_keep_scales_the_output_and_zero_hides_the_token():
    class Half(KeepPolicy):
        def forward(self, layer, scores, state):
            return torch.where(state.position == 2, 0.0, 1.0)

        def soft(self, layer, scores, state):
            return torch.where(state.position == 2, 0.0, torch.where(state.position == 1, 0.5, 1.0))

    model = install(tiny_model(layers=1), pruner(Half(), layers=[0]))
    batch = sentences([5])
    soft, hard = run(model, batch, "soft")[1], run(model, batch, "mask")[1]
    torch.testing.assert_close(soft[0, 1], 0.5 * hard[0, 1])
    torch.testing.assert_close(soft[0, [0, 2, 3, 4]], hard[0, [0, 2, 3, 4]])


@pytest.mark.parametrize("soft_form", ["scale", "bias"])
def test_tokens_with_soft_keep_0_are_removed_and_nothing_else_changes(soft_form, monkeypatch):
    """Outputs, gradients and the trace are those of an encoder that only hides them."""

    class Gated(KeepPolicy):
        def __init__(self):
            super().__init__()
            self.gates = torch.nn.Parameter(torch.tensor([0.0, 0.7, 0.4, 1.0, 0.0]))

        def soft(self, layer, scores, state):
            return self.gates[(state.position + layer) % 5]

    batch, found, widths, init = sentences([12, 7]), {}, {}, TokenLayout.__init__
    for removes in (True, False):
        policy = Gated()
        model = install(tiny_model(layers=3), pruner(policy, layers=[0, 1], soft_form=soft_form))
        if not removes:
            monkeypatch.setattr(
                TokenLayout, "__init__", lambda *a, removes_tokens, **k: init(*a, removes_tokens=False, **k)
            )
        trace = Trace()
        hidden = model.base_model(**batch, execution="soft", trace=trace).last_hidden_state
        hidden.square().sum().backward()
        weights = [p.grad for p in model.parameters() if p.grad is not None]
        keep = [entry.keep_of_all(12) for entry in trace.layers]
        found[removes] = [hidden, *keep, trace.tokens_out, *weights]
        widths[removes] = [entry.keep.shape[1] for entry in trace.layers]
    assert widths == {True: [12, 8, 6], False: [12, 12, 12]}
    torch.testing.assert_close(found[True], found[False], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("execution", ["soft", "drop"])
def test_padding_after_a_drop_has_position_0(execution):
    """Otherwise a dropped token would still be ranked by position where a longer sentence leaves it a column."""

    class Every(KeepPolicy):
        def forward(self, layer, scores, state):
            return (state.position % 3 == 0) * state.alive

        soft = forward

    model = install(tiny_model(layers=2), pruner(Every(), layers=[0]))
    _, _, trace = run(model, sentences([12, 7]), execution)
    assert trace.layers[1].position.tolist() == [[0, 3, 6, 9], [0, 3, 6, 0]]


def test_dropped_tokens_remain_keys_without_hide_gone():
    class Soft(KeepPolicy):
        def soft(self, layer, scores, state):
            return torch.where(state.position == 2, 0.0, 1.0)

    batch = sentences([6])
    outputs = {}
    for hide in (True, False):
        model = install(tiny_model(layers=2), pruner(Soft(), layers=[0], hide_gone=hide))
        outputs[hide] = run(model, batch, "soft")[0]
    assert not torch.allclose(outputs[True], outputs[False], atol=1e-4)


def test_log_keep_as_bias_tends_to_the_hard_mask():
    class Fading(KeepPolicy):
        value = 1.0

        def forward(self, layer, scores, state):
            return (state.position != 2).float()

        def soft(self, layer, scores, state):
            return torch.where(state.position == 2, self.value, 1.0)

    policy = Fading()
    model = install(tiny_model(layers=2), pruner(policy, layers=[0], soft_form="bias"))
    batch = sentences([6])
    hard = run(model, batch, "mask")[0]
    distances = []
    for value in (1.0, 1e-2, 1e-20):
        policy.value = value
        distances.append(float((run(model, batch, "soft")[0] - hard).abs().max()))
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 1e-6


def test_gradients_flow_through_soft_keep_and_scores():
    class Learned(KeepPolicy):
        def __init__(self):
            super().__init__()
            self.threshold = torch.nn.Parameter(torch.tensor(1.0))

        def soft(self, layer, scores, state):
            return torch.sigmoid((scores - self.threshold) / 0.2)

    policy = Learned()
    model = install(tiny_model().train(), pruner(policy))
    model(**sentences([9, 5]), execution="soft").logits.sum().backward()
    assert policy.threshold.grad.abs() > 0
    assert model.base_model.encoder.layer[0].attention.self.query.weight.grad.abs().sum() > 0


def test_evaluation_is_deterministic():
    model = install(tiny_model(), pruner(Threshold(THRESHOLDS)))
    batch = sentences([15, 8])
    first, second = run(model, batch, "pack")[0], run(model, batch, "pack")[0]
    assert torch.equal(first, second)


def test_a_layer_that_the_model_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"layer 7.*BertForSequenceClassification has layers 0\.\.3"):
        install(tiny_model(), pruner(KeepRatio({7: 0.5}), layers=[7]))


def test_an_unsupported_family_is_refused_by_name():
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(
        "mpnet", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20
    )
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ValueError, match=r"family 'mpnet'.*are bert, camembert, distilbert, electra, marian, roberta"):
        install(model, None)


def test_a_decoder_is_refused():
    model = tiny_model()
    model.config.is_decoder = True
    with pytest.raises(ValueError, match=r"BertForSequenceClassification has is_decoder=True"):
        install(model, None)


def test_a_misspelt_argument_is_refused():
    model = install(tiny_model(), None)
    with pytest.raises(TypeError, match=r"called with excecution"):
        model(**sentences([3]), excecution="mask")


def test_an_unknown_execution_is_refused():
    model = install(tiny_model(), None)
    with pytest.raises(ValueError, match=r"execution='fast' is unknown; choose one of dense, soft, mask, drop, pack"):
        model(**sentences([3]), execution="fast")


def test_a_stock_model_has_no_pruned_encoder():
    with pytest.raises(TypeError, match=r"BertForSequenceClassification has a stock encoder"):
        encoder_of(tiny_model())
