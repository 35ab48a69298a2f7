"""The graph of one text equals the model: the same kept tokens and logits at any length, and drops are real."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from jaxtyping import Float
from support.models import sentences, tiny_model
from torch import Tensor

from prunekit.evaluation.evaluate import kept_tokens
from prunekit.runtime.onnx_graph import NotExportableError, single_text_model, write_graph
from prunekit.tokens.encoder import PrunedEncoder, encoder_of, install
from prunekit.tokens.policies import KeepPolicy, KeepRatio, LearnedThreshold, MeanMinusStd, ProfileThreshold, Threshold
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.rank_gates import RankGate
from prunekit.tokens.scorers import AccumulatedReceived, AttentionReceived, EarlierFirst, RandomOrder
from prunekit.tokens.task_attention import TaskImportance

SHARES = {1: 0.6, 2: 0.4, 3: 0.2}
LINE = {1: 0.6, 2: 0.8, 3: 1.0}
LAYERS = [1, 2, 3]
# the decisions of the shipped methods; only those with parts that no other method has are in the quick suite
DECISIONS = {
    "dense": lambda: None,
    "topk": lambda: TokenPruner(AttentionReceived(), KeepRatio(SHARES), LAYERS),
    "topk accumulate": lambda: TokenPruner(AccumulatedReceived(), KeepRatio({0: 1.0, **SHARES}), range(4)),
    "lat": lambda: TokenPruner(AttentionReceived(), KeepRatio({0: 0.8, **SHARES}), range(4)),
    "threshold": lambda: TokenPruner(AttentionReceived(), Threshold(LINE), LAYERS),
    "threshold profile": lambda: TokenPruner(AttentionReceived(), ProfileThreshold(LINE), LAYERS),
    "ltp": lambda: TokenPruner(AttentionReceived(), LearnedThreshold(LINE, 0.1), LAYERS),
    "top": lambda: TokenPruner(
        AttentionReceived(), RankGate([1, 2], 10, init_fine=1.0, init_slope=3.0, init_coarse=3.0), [1, 2]
    ),
    "tsdtp": lambda: TokenPruner(
        TaskImportance(32, 8, LAYERS, 0.5), MeanMinusStd(dict.fromkeys(LAYERS, 0.3)), LAYERS, soft_form="bias"
    ),
    "dtp": lambda: TokenPruner(AccumulatedReceived(), MeanMinusStd(dict.fromkeys(LAYERS, 0.3)), LAYERS),
    "first": lambda: TokenPruner(EarlierFirst(), KeepRatio(SHARES), LAYERS),
    "cls may be dropped": lambda: TokenPruner(AttentionReceived(), Threshold(LINE), LAYERS, protect_first=False),
    "end of sentence protected": lambda: TokenPruner(AttentionReceived(), KeepRatio(SHARES), LAYERS, protect_last=True),
}
LENGTHS = (1, 2, 7, 40)


def run(path, **inputs):
    session = onnxruntime.InferenceSession(str(path))
    return session.run(["logits", "depth"], {name: tensor.numpy() for name, tensor in inputs.items()})


def check_equal(model, path, lengths=LENGTHS):
    """Check that logits and depths equal those of "mask", on texts that the graph was not traced with."""
    shares = []
    for length in lengths:
        batch = sentences([length], seed=length)
        logits, depth = run(path, input_ids=batch["input_ids"])
        with torch.no_grad():
            expected = model(**batch, execution="mask").logits.numpy()
        np.testing.assert_allclose(logits, expected, atol=2e-5)
        assert depth.tolist() == kept_tokens(model, batch)[0][0].tolist()
        shares.append(depth.mean() / 4)
    return shares


QUICK = ("top", "tsdtp")


@pytest.mark.parametrize(
    "decision", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in DECISIONS]
)
def test_every_decision_is_the_same_in_the_graph(decision, tmp_path):
    torch.manual_seed(1)
    model = install(tiny_model(), DECISIONS[decision]()).eval()
    write_graph(model, tmp_path / "model.onnx")
    shares = check_equal(model, tmp_path / "model.onnx")
    assert decision == "dense" or shares[-1] < 0.9  # something was dropped, or the comparison means little


@pytest.mark.slow
@pytest.mark.parametrize("name", ["roberta", "electra", "distilbert"])
def test_every_family_has_a_graph(name, tmp_path):
    model = install(tiny_model(name), DECISIONS["threshold"]()).eval()
    write_graph(model, tmp_path / "model.onnx")
    check_equal(model, tmp_path / "model.onnx", lengths=(3, 40))


def test_dropped_tokens_are_not_computed():
    """Top-k of 20 tokens: layers 0 to 2 feed 20, 12 and 8 rows forward; the last only [CLS], which the head reads."""
    model = install(tiny_model(), DECISIONS["topk"]()).eval()
    rows = []
    for block in encoder_of(model).blocks:
        block.intermediate.register_forward_hook(lambda module, given, output: rows.append(output.shape[1]))
    with torch.no_grad():
        single_text_model(model)(input_ids=sentences([20])["input_ids"], depths=[])
    assert rows == [20, 12, 8, 1]


def test_computing_the_last_layer_for_cls_only_changes_nothing():
    model = install(tiny_model(), DECISIONS["topk"]()).eval()
    ids = sentences([20])["input_ids"]
    with torch.no_grad():
        short, whole = (
            single_text_model(model, first_only=first_only)(input_ids=ids, depths=[]).logits
            for first_only in (True, False)
        )
    torch.testing.assert_close(short, whole, atol=1e-6, rtol=0)


def test_question_answering_reads_every_token(tmp_path):
    """A dropped token keeps the output of its last layer, and protected tokens are never dropped."""
    model = install(tiny_model(head="QuestionAnswering", classes=2), DECISIONS["topk"]()).eval()
    write_graph(model, tmp_path / "model.onnx", ("input_ids", "protected"))
    batch = sentences([30])
    protected = torch.zeros(1, 30, dtype=torch.bool)
    protected[0, 10:16] = True
    logits, depth = run(tmp_path / "model.onnx", input_ids=batch["input_ids"], protected=protected.long())
    with torch.no_grad():
        expected = model(**batch, protected=protected, execution="mask")
    np.testing.assert_allclose(logits[0, :, 0], expected.start_logits[0], atol=2e-5)
    np.testing.assert_allclose(logits[0, :, 1], expected.end_logits[0], atol=2e-5)
    assert depth[10:16].tolist() == [4] * 6
    assert depth.mean() < 4


def test_of_equal_scores_the_earlier_token_is_kept(tmp_path):
    """ONNX's TopK is our stable sort: with all scores equal, the first 6 of ten tokens are kept, then 4, then 2."""

    class Same(AttentionReceived):
        def forward(self, signals, state) -> Float[Tensor, "batch tokens"]:
            return torch.ones_like(state.keep)

    model = install(tiny_model(), TokenPruner(Same(), KeepRatio(SHARES), LAYERS)).eval()
    write_graph(model, tmp_path / "model.onnx")
    _, depth = run(tmp_path / "model.onnx", input_ids=sentences([10])["input_ids"])
    assert depth.tolist() == [4, 4, 3, 3, 2, 2, 1, 1, 1, 1]


def test_a_pruned_model_has_a_dense_graph_too(tmp_path):
    model = install(tiny_model(), DECISIONS["topk"]()).eval()
    write_graph(model, tmp_path / "model.onnx", prune=False)
    batch = sentences([12])
    logits, depth = run(tmp_path / "model.onnx", input_ids=batch["input_ids"])
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(**batch, prune=False).logits, atol=2e-5)
    assert depth.tolist() == [4] * 12


def test_the_model_is_not_modified_and_its_weights_are_not_copied(tmp_path):
    model = install(tiny_model(), DECISIONS["topk"]())
    encoder, before = encoder_of(model), model.state_dict()
    copied = single_text_model(model)
    write_graph(model, tmp_path / "model.onnx")
    assert encoder_of(model) is encoder
    assert isinstance(encoder, PrunedEncoder)
    assert {tensor.data_ptr() for tensor in copied.parameters()} <= {tensor.data_ptr() for tensor in before.values()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def test_a_hashed_order_cannot_be_exported(tmp_path):
    model = install(tiny_model(), TokenPruner(RandomOrder(1), KeepRatio(SHARES), LAYERS))
    with pytest.raises(NotExportableError, match="RandomOrder orders tokens by a 64-bit hash"):
        write_graph(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_decision_that_cannot_be_exported_is_named(tmp_path):
    class Odd(KeepPolicy):
        def forward(self, layer, scores, state) -> Float[Tensor, "batch tokens"]:
            return (torch.special.bessel_j0(scores) > 0).float()

    model = install(tiny_model(), TokenPruner(AttentionReceived(), Odd(), LAYERS))
    with pytest.raises(
        NotExportableError, match=r"AttentionReceived with Odd cannot be exported as a graph .*bessel_j0"
    ):
        write_graph(model, tmp_path / "model.onnx")
