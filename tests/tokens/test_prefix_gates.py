"""ToP's tied gates: before they are learned they are top-k, and in training one draw cuts each layer's ranking."""

import pytest
import torch
from support.models import sentences, tiny_model

from prunekit.tokens.encoder import install
from prunekit.tokens.policies import KeepRatio
from prunekit.tokens.prefix_gates import PrefixGate
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import AttentionReceived
from prunekit.tokens.state import TokenState, Trace

SHARES = {1: 0.6, 2: 0.25}


def state(length, *, width=None):
    keep = (torch.arange(width or length) < length).float()[None]
    position = torch.arange(keep.shape[1])[None]
    return TokenState(keep, position, (position == 0).float(), torch.tensor([float(length)]))


def run(policy, execution, lengths=(20, 13, 7, 1, 2)):
    model = install(tiny_model(), TokenPruner(AttentionReceived(), policy, SHARES))
    trace = Trace()
    with torch.no_grad():
        return model(**sentences(list(lengths)), execution=execution, trace=trace).logits, trace


def test_the_profile_is_the_one_it_starts_with():
    assert PrefixGate(SHARES).profile() == pytest.approx(SHARES, abs=1e-6)


def test_whole_shares_keep_every_token_of_a_long_text():
    policy = PrefixGate(dict.fromkeys(range(24), 1.0))
    assert int(policy(23, torch.randn(1, 4096), state(4096)).sum()) == 4096


@pytest.mark.parametrize("execution", ["mask", "drop", "pack"])
def test_before_it_is_learned_it_keeps_what_a_ratio_keeps(execution):
    logits, trace = run(PrefixGate(SHARES), execution)
    expected, other = run(KeepRatio(SHARES), execution)
    assert torch.equal(trace.tokens_out, other.tokens_out)
    assert trace.tokens_out[2].tolist() == [5, 3, 2, 1, 1]  # floor(0.25 * length + 1/2)
    torch.testing.assert_close(logits, expected, atol=0, rtol=0)


def test_counts_from_lengths_equal_what_the_model_executes():
    policy = PrefixGate(SHARES)
    with torch.no_grad():
        policy.loga.add_(0.4)
    _, trace = run(policy, "pack")
    tokens_in, tokens_out = policy.counts(torch.tensor([20, 13, 7, 1, 2]), 4)
    assert torch.equal(tokens_in, trace.tokens_in)
    assert torch.equal(tokens_out, trace.tokens_out)


def test_in_training_a_better_rank_is_never_less_open():
    scores = torch.tensor([[0.0, 8, 7, 6, 5, 4, 3, 2, 1, 9]])
    torch.manual_seed(0)
    for _ in range(20):
        keep = PrefixGate({1: 0.5}).soft(1, scores, state(9, width=10))
        assert keep[0, 0] == keep[0, 9] == 0  # [CLS] has no gate, and padding has none
        assert keep[0, 1:9].tolist() == sorted(keep[0, 1:9].tolist(), reverse=True)


def test_in_training_the_share_is_kept_on_average():
    torch.manual_seed(0)
    for share in (0.1, 0.3, 0.6):
        policy, here = PrefixGate({1: share}), state(101)
        kept = [float(policy.soft(1, torch.randn(1, 101), here).detach().sum()) for _ in range(300)]
        assert sum(kept) / 300 == pytest.approx(100 * share, rel=0.1)


def test_all_sentences_of_a_batch_share_a_draw():
    one = state(9)
    two = TokenState(*[torch.cat([part, part]) for part in (one.keep, one.position, one.protected, one.length)])
    torch.manual_seed(3)
    keep = PrefixGate({1: 0.5}).soft(1, torch.arange(9.0).expand(2, 9), two)
    assert torch.equal(keep[0], keep[1])


def test_gradients_reach_the_share():
    torch.manual_seed(0)
    policy = PrefixGate({1: 0.5})
    sum(policy.soft(1, torch.randn(1, 50), state(50)).sum() for _ in range(5)).backward()
    assert policy.loga.grad.item() > 0


@pytest.mark.parametrize("target", [1.0, 1.7, 3.0])
def test_the_budget_moves_all_shares_by_one_constant(target):
    policy = PrefixGate(SHARES)
    before = policy.loga.detach().clone()
    policy.meet(lambda profile: 2 / sum(profile.values()), target)
    moved = policy.loga.detach() - before
    assert 2 / sum(policy.profile().values()) == pytest.approx(target, rel=1e-3)
    if target > 1:
        assert moved[0].item() == pytest.approx(moved[1].item(), abs=1e-5)


def test_what_was_learned_is_forgotten_on_request():
    policy = PrefixGate(SHARES)
    with torch.no_grad():
        policy.loga.add_(1.0)
    policy.reset()
    assert policy.profile() == pytest.approx(SHARES, abs=1e-6)


def test_the_ranks_of_a_bin_share_a_gate_in_training_alone():
    torch.manual_seed(0)
    policy, scores, here = PrefixGate({1: 0.5}, bins=2), torch.arange(9.0, 0, -1)[None], state(9)
    for _ in range(10):
        keep = policy.soft(1, scores, here)[0, 1:].tolist()
        assert len(set(keep[:4])) == len(set(keep[4:])) == 1
    assert policy(1, scores, here)[0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0, 0]  # floor(0.5 * 9 + 1/2), [CLS] included
