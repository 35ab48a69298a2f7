"""The packed engine is the mask path, faster: the same tokens, the same logits, whatever the backend or the batch."""

import pytest
import torch
from conftest import FAMILIES, sentences, tiny_model

import prunekit
from prunekit.pretrained import save
from prunekit.runtime.engine import PackedEngine
from prunekit.tokens.encoder import TokenPruner, install
from prunekit.tokens.policies import KeepRatio, MeanMinusStd, Threshold
from prunekit.tokens.rank_gates import RankGate
from prunekit.tokens.scorers import AccumulatedReceived, AttentionReceived, EarlierFirst, RandomOrder
from prunekit.tokens.state import Trace
from prunekit.tokens.task_attention import TaskImportance

LENGTHS = [20, 13, 7, 1, 20, 3]


def gates():
    policy = RankGate([1, 2], 5, init_coarse=4.0, min_tokens=1)
    with torch.no_grad():
        policy.token_loga.copy_(torch.tensor([[3.0, 3, 3, -3, -3], [3, 3, -3, -3, -3]]))
    return policy


def task_importance():
    torch.manual_seed(1)
    return TaskImportance(32, 8, range(4), 1.0)


RATIOS = {0: 0.9, 1: 0.7, 2: 0.5, 3: 0.25}
THRESHOLDS = {0: 0.3, 1: 0.6, 2: 0.8, 3: 0.9}
DECISIONS = {
    "ratio": lambda: TokenPruner(AttentionReceived(), KeepRatio(RATIOS), range(4)),
    "accumulated": lambda: TokenPruner(AccumulatedReceived(), KeepRatio(RATIOS), range(4)),
    "random": lambda: TokenPruner(RandomOrder(3), KeepRatio(RATIOS), range(4)),
    "first": lambda: TokenPruner(EarlierFirst(), KeepRatio(RATIOS), range(4)),
    "threshold": lambda: TokenPruner(AttentionReceived(), Threshold(THRESHOLDS), range(4)),
    "threshold, nothing protected": lambda: TokenPruner(
        AttentionReceived(), Threshold(THRESHOLDS), range(4), protect_first=False
    ),
    "gates": lambda: TokenPruner(AttentionReceived(), gates(), [1, 2]),
    "task attention": lambda: TokenPruner(
        task_importance(), MeanMinusStd({1: 0.2, 2: 0.2}), range(3), protect_last=True
    ),
    "nothing": lambda: None,
}


def masked(model, batch, **kwargs):
    """Logits and kept places of the mask path."""
    trace = Trace()
    with torch.no_grad():
        logits = model(**batch, execution="mask", trace=trace, **kwargs).logits
    kept = [[p[k > 0].tolist() for p, k in zip(step.position, step.keep, strict=True)] for step in trace.layers]
    return logits, kept, trace


def batch_of(model, lengths=LENGTHS):
    return sentences(lengths, pad=model.config.pad_token_id or 0)


# every decision on one family, and every family with a decision that needs little and with one that needs much
CASES = [("bert", decision) for decision in DECISIONS]
CASES += [(family, decision) for family in FAMILIES[1:] for decision in ("ratio", "task attention")]


@pytest.mark.parametrize("linears", ["auto", "torch"])
@pytest.mark.parametrize(("family", "decision"), CASES)
def test_the_engine_keeps_the_tokens_of_the_mask_path_and_gives_its_logits(family, decision, linears):
    model = install(tiny_model(family), DECISIONS[decision]())
    batch = batch_of(model)
    logits, kept, trace = masked(model, batch)
    engine = PackedEngine(model, linears=linears, cls_last=False)
    result = engine(batch)
    assert result.kept == kept
    assert torch.equal(result.trace.tokens_in, trace.tokens_in)
    assert torch.equal(result.trace.tokens_out, trace.tokens_out)
    torch.testing.assert_close(result.logits, logits, atol=1e-4, rtol=0)
    if decision != "nothing":
        assert trace.tokens_out[-1].sum() < sum(LENGTHS)  # something was pruned


@pytest.fixture
def saved(tmp_path):
    model = install(tiny_model(), DECISIONS["gates"]())
    save(model, None, tmp_path / "model")
    return model, tmp_path / "model"


def test_load_gives_the_engine_where_it_is_asked_for(saved):
    model, folder = saved
    batch = batch_of(model)
    engine = prunekit.load(folder, engine="packed")
    assert isinstance(engine, PackedEngine)
    torch.testing.assert_close(engine(batch).logits, masked(model, batch)[0], atol=1e-4, rtol=0)
    assert not isinstance(prunekit.load(folder), PackedEngine)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"engine": "fast"}, ValueError, "engine='fast' is unknown; choose one of hf, packed"),
        ({"dtype": "bf16"}, TypeError, "no option dtype for engine='hf'"),
        ({"engine": "packed", "execution": "mask"}, TypeError, "no execution for engine='packed'"),
        ({"engine": "packed", "dtype": "fp8"}, ValueError, "dtype='fp8' is unknown; choose one of fp32, bf16, int8"),
        ({"engine": "packed", "threads": 0}, ValueError, "threads=0 is no number of threads"),
        ({"engine": "packed", "linears": "int8"}, ValueError, "choose one of auto, onednn, torch"),
    ],
)
def test_what_load_does_not_know_is_refused(saved, given, kind, message):
    with pytest.raises(kind, match=message):
        prunekit.load(saved[1], **given)
