"""The benchmark interleaves candidates fairly and reports medians of per-round ratios; no times are asserted."""

import torch
from support.models import sentences, tiny_model

from prunekit.bench.timing import compare_speed, time_rounds
from prunekit.runtime.kernels.threads import threads
from prunekit.tokens.encoder import install
from prunekit.tokens.policies import KeepRatio
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import AttentionReceived


def test_every_candidate_sees_every_batch_once_per_round_in_abba_order():
    calls = []
    candidates = {name: lambda batch, name=name: calls.append((name, int(batch["number"]))) for name in ("a", "b")}
    spent = time_rounds(candidates, [{"number": torch.tensor(1)}, {"number": torch.tensor(2)}], rounds=range(2))
    warm_up, counted = calls[:4], calls[4:]
    assert warm_up == [("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    assert counted == [("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert [len(values) for values in spent.values()] == [1, 1]


def test_ratios_are_medians_over_rounds(monkeypatch):
    """A clock on which dense-padded costs 4, dense-packed 2, pruned-packed 1 and the control 2."""
    now = [0.0]
    model = install(tiny_model(), TokenPruner(AttentionReceived(), KeepRatio({1: 0.5}), [1]))
    stock = tiny_model()

    class Clock:
        @staticmethod
        def process_time():
            return now[0]

    def spend(module, seconds):
        module.register_forward_hook(lambda *_: now.__setitem__(0, now[0] + seconds))

    def pruned_hook(module, args, kwargs, output):
        now[0] += 1.0 if kwargs["prune"] else 2.0

    spend(stock, 4.0)
    model.register_forward_hook(pruned_hook, with_kwargs=True)
    monkeypatch.setattr("prunekit.bench.timing.time", Clock)
    found = compare_speed(model, model, stock, [sentences([6, 4]), sentences([5, 5])], rounds=range(4))
    assert found["batch_size"] == 2
    assert found["dense_padded_ms"] == 4000
    assert found["dense_packed_ms"] == 2000
    assert found["pruned_packed_ms"] == 1000
    assert (found["speedup_vs_padded"], found["speedup_vs_packed"], found["control"]) == (4, 2, 1)


def test_the_thread_count_is_put_back():
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
