"""ToP's policy in the encoder: top.md T6 to T10, and token counts without running a model."""

import pytest
import torch
from support.models import sentences, tiny_model

from prunekit.tokens.encoder import install
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.rank_gates import RankGate
from prunekit.tokens.scorers import AttentionReceived, ReferenceReceived
from prunekit.tokens.state import TokenState, Trace

LAYERS = [1, 2]


def scattered(layers=LAYERS, bins=5, *, on=True, seed=0, **options):
    """Gates that keep a scattered set of bins, as learned ones do."""
    policy = RankGate(layers, bins, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        policy.token_loga.copy_(torch.randn(len(layers), bins, generator=generator) * 2)
        policy.pruner_loga.fill_(4.0 if on else -4.0)
    return policy


def with_fine(rows, **options):
    """A policy whose deterministic gates are exactly `rows`."""
    policy = RankGate(range(len(rows)), len(rows[0]), init_coarse=4.60517, **options)
    with torch.no_grad():
        policy.token_loga.copy_(torch.tensor(rows) * 9.21034 - 4.60517)
    return policy


def state(keep, *, protected_first=True):
    keep = torch.tensor(keep)
    position = torch.arange(keep.shape[1]).expand_as(keep)
    protected = ((position == 0) & protected_first).float()
    return TokenState(keep, position, protected, keep.sum(-1))


def run(model, batch, execution):
    trace = Trace()
    with torch.no_grad():
        return model(**batch, execution=execution, trace=trace).logits, trace


def test_tokens_of_an_open_bin_are_kept_and_cls_is_not_ranked():
    policy = with_fine([[1.0, 0.0, 1.0, 0.0]])
    scores = torch.tensor([[9.0, 0.4, 0.3, 0.2, 0.1]])  # [CLS] has the best score and takes no rank
    assert policy(0, scores, state([[1.0, 1, 1, 1, 1]])).tolist() == [[0, 1, 0, 1, 0]]


def test_bins_are_relative_to_the_alive_tokens_of_each_sentence():
    policy = with_fine([[1.0, 0.0]])
    scores = torch.tensor([[0.0, 5, 4, 3, 2], [0.0, 5, 4, 3, 2]])
    keep = policy(0, scores, state([[1.0, 1, 1, 1, 1], [1, 1, 1, 0, 0]]))
    assert keep.tolist() == [[0, 1, 1, 0, 0], [0, 1, 0, 0, 0]]


def test_among_equal_scores_the_earlier_token_ranks_first():
    policy = with_fine([[1.0, 0.0]])
    assert policy(0, torch.zeros(1, 5), state([[1.0, 1, 1, 1, 1]])).tolist() == [[0, 1, 1, 0, 0]]


def test_a_layer_whose_switch_is_off_prunes_nothing():
    policy = with_fine([[1.0, 0.0]])
    with torch.no_grad():
        policy.pruner_loga.fill_(-4.60517)
    assert policy(0, torch.zeros(1, 4), state([[1.0, 1, 1, 0]])).tolist() == [[0, 1, 1, 0]]


def test_min_tokens_keeps_the_best_even_when_their_bin_is_closed():
    policy = with_fine([[0.0, 1.0]], min_tokens=1)
    scores = torch.tensor([[0.0, 3, 2, 1, 0.5]])
    assert policy(0, scores, state([[1.0, 1, 1, 1, 1]])).tolist() == [[0, 1, 0, 1, 1]]


def test_monotone_closes_every_bin_after_a_closed_one():
    policy = with_fine([[1.0, 0.0, 1.0, 0.0]], monotone=True)
    assert policy.hard_gates()[0].tolist() == [[1, 0, 0, 0]]


def test_all_bins_open_or_all_switches_off_is_the_dense_model():
    batch = sentences([12, 5])
    dense = run(install(tiny_model(), None), batch, "dense")[0]
    opened = RankGate(LAYERS, 5, init_coarse=4.60517)
    closed = scattered(on=False)
    for policy in (opened, closed):
        model = install(tiny_model(), TokenPruner(AttentionReceived(), policy, LAYERS))
        for execution in ("mask", "drop", "pack"):
            torch.testing.assert_close(run(model, batch, execution)[0], dense, atol=1e-5, rtol=0)


def test_mask_drop_and_pack_agree_on_scattered_gates(family):
    policy = scattered()
    model = install(tiny_model(family), TokenPruner(AttentionReceived(), policy, LAYERS))
    batch = sentences([20, 13, 7, 1, 2], pad=model.config.pad_token_id or 0)
    logits, trace = run(model, batch, "mask")
    assert trace.tokens_out[-1, 0] < 20
    for execution in ("drop", "pack"):
        other, other_trace = run(model, batch, execution)
        assert torch.equal(other_trace.tokens_out, trace.tokens_out)
        torch.testing.assert_close(other, logits, atol=1e-4, rtol=0)


def test_the_number_of_alive_tokens_never_rises_and_cls_is_always_kept():
    model = install(tiny_model(), TokenPruner(AttentionReceived(), scattered(), LAYERS))
    _, trace = run(model, sentences([20, 9, 1]), "mask")
    counts = trace.tokens_out
    assert bool((counts[1:] <= counts[:-1]).all())
    assert bool((counts >= 1).all())
    assert all(bool((entry.keep[:, 0] == 1).all()) for entry in trace.layers)


def test_padding_changes_decisions_only_in_the_reference():
    """top.md T7: the reference counts padding queries, so its decisions depend on the padding."""
    batch = sentences([14, 6])
    padded = sentences([14, 6], width=40)
    for compat, scorer in ((False, AttentionReceived), (True, ReferenceReceived)):
        policy = scattered(bins=20, compat=compat)
        model = install(tiny_model(seed=3), TokenPruner(scorer(), policy, LAYERS))
        gap = float((run(model, batch, "mask")[0] - run(model, padded, "mask")[0]).abs().max())
        assert (gap > 1e-3) if compat else (gap < 1e-5)


def test_counts_from_lengths_equal_what_the_model_executes():
    policy = scattered(bins=7)
    model = install(tiny_model(), TokenPruner(AttentionReceived(), policy, LAYERS))
    lengths = [20, 13, 7, 1, 2, 20]
    _, trace = run(model, sentences(lengths), "pack")
    tokens_in, tokens_out = policy.counts(torch.tensor(lengths), 4)
    assert torch.equal(tokens_in, trace.tokens_in)
    assert torch.equal(tokens_out, trace.tokens_out)


@pytest.mark.parametrize("options", [{}, {"min_tokens": 3}, {"compat": True}, {"monotone": True}])
def test_counts_follow_every_option(options):
    policy = scattered(bins=6, **options)
    model = install(tiny_model(), TokenPruner(AttentionReceived(), policy, LAYERS))
    lengths = [17, 4, 9]
    _, trace = run(model, sentences(lengths), "mask")
    assert torch.equal(policy.counts(torch.tensor(lengths), 4)[1], trace.tokens_out)


def test_a_shift_ranges_from_pruning_everything_to_pruning_nothing():
    policy = scattered(bins=10)
    lengths = torch.tensor([21])
    shifts = [torch.full((2,), shift) for shift in (-20.0, -2.0, 0.0, 2.0, 20.0)]
    totals = [float(policy.counts(lengths, 4, shift)[1].sum()) for shift in shifts]
    assert totals == sorted(totals)
    assert totals[0] == 21 + 1 + 1 + 1  # layer 0 is dense, then [CLS] alone
    assert totals[-1] == 4 * 21


def test_meet_finds_the_shift_to_within_one_bin():
    policy = scattered(bins=50, seed=2)
    lengths = torch.tensor([128])

    def reduction(shift):
        return float(4 * 128 / policy.counts(lengths, 4, shift)[1].sum())

    for target in (1.2, 1.7, 2.4):
        policy.meet(reduction, target)
        reached = float(4 * 128 / policy.counts(lengths, 4)[1].sum())
        assert reached == pytest.approx(target, rel=0.01)


def test_meet_switches_layers_on_when_none_is():
    policy = scattered(bins=50, on=False)
    policy.meet(lambda shift: float(4 * 128 / policy.counts(torch.tensor([128]), 4, shift)[1].sum()), 2.0)
    assert policy.hard_gates()[1].tolist() == [1, 1]
    assert float(4 * 128 / policy.counts(torch.tensor([128]), 4)[1].sum()) == pytest.approx(2.0, rel=0.02)


def test_meet_switches_further_layers_on_when_those_that_are_on_cannot_reach_the_target():
    policy = scattered(bins=50)
    policy.pruner_loga.data = torch.tensor([-2.0, 4.0])  # only layer 2 prunes: at least 3 of 4 layers' worth remains
    lengths = torch.tensor([128])

    def reduction(shift):
        return float(4 * 128 / policy.counts(lengths, 4, shift)[1].sum())

    policy.meet(reduction, 1.2)
    assert policy.hard_gates()[1].tolist() == [0, 1]
    policy.meet(reduction, 3.0)
    assert policy.hard_gates()[1].tolist() == [1, 1]
    assert reduction(None) == pytest.approx(3.0, rel=0.02)


def test_meet_moves_two_locations_at_once_when_one_alone_cannot_reach_the_target():
    # three bins of 4 tokens; layer 1 keeps two of them, layer 2 none, only [CLS]
    policy = RankGate([1, 2], 3, init_coarse=4.0)
    policy.token_loga.data = torch.tensor([[4.0, 4.0, -9.0], [-9.0, -9.0, -9.0]])
    lengths = torch.tensor([13])

    def reduction(shift):
        return float(5 * 13 / policy.counts(lengths, 5, shift)[1].sum())

    # after layer 1 and layers 2 to 4: 9 + 3 x 1 or, with one bin less and one more, 5 + 3 x 3
    assert policy.counts(lengths, 5)[1].flatten().tolist() == [13, 9, 1, 1, 1]
    policy.meet(reduction, 65 / 27, tolerance=0.01)
    assert policy.counts(lengths, 5)[1].flatten().tolist() == [13, 5, 3, 3, 3]


def test_soft_keep_is_one_draw_for_the_whole_batch():
    policy = RankGate([0], 4, init_fine=0.0, init_coarse=4.60517)
    torch.manual_seed(0)
    same = state([[1.0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    keep = policy.soft(0, torch.tensor([[0.0, 4, 3, 2, 1], [0.0, 1, 2, 3, 4]]), same).detach()
    assert torch.equal(keep[0, 1:], keep[1, 1:].flip(0))
    assert 0 < float(keep[0, 1:].max()) <= 1


def test_a_closed_switch_passes_no_task_gradient_and_an_open_one_does():
    """top.md T22: a draw of exactly 0 leaves both kinds of gates to the Lagrangian alone."""
    for coarse, expects in ((-60.0, False), (0.0, True)):
        policy = RankGate([0], 4, init_fine=0.0, init_coarse=coarse)
        found = False
        for seed in range(20):
            torch.manual_seed(seed)
            policy.zero_grad()
            keep = policy.soft(0, torch.tensor([[0.0, 4, 3, 2, 1]]), state([[1.0, 1, 1, 1, 1]]))
            keep.sum().backward()
            found |= bool(policy.pruner_loga.grad.abs().sum() > 0)
        assert found is expects


def test_only_bins_with_tokens_get_a_gradient():
    """Two ranked tokens and four bins: ranks 0 and 1 fall in bins 0 and 2."""
    policy = RankGate([0], 4, init_fine=0.0, init_coarse=60.0)
    touched = torch.zeros(4, dtype=torch.bool)
    for seed in range(40):
        torch.manual_seed(seed)
        policy.zero_grad()
        policy.soft(0, torch.tensor([[0.0, 2, 1]]), state([[1.0, 1, 1]])).sum().backward()
        touched |= policy.token_loga.grad[0] != 0
    assert touched.tolist() == [True, False, True, False]


def test_clamp_holds_the_log_odds_within_ln_100():
    policy = RankGate([0], 2, init_fine=9.0, init_coarse=-9.0)
    policy.clamp()
    assert policy.token_loga[0].tolist() == pytest.approx([4.605170, 4.605170])
    assert policy.pruner_loga.tolist() == pytest.approx([-4.605170])


def test_a_slope_starts_the_last_bin_lower():
    policy = RankGate([0, 1], 5, init_fine=4.0, init_slope=2.0)
    assert policy.token_loga[0].tolist() == [4.0, 3.5, 3.0, 2.5, 2.0]
    assert torch.equal(policy.token_loga[0], policy.token_loga[1])
