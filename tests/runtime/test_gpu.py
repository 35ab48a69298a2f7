"""The packed engine on a GPU, as far as a machine without one can test it: devices, waiting, Triton's interpreter."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from support.decisions import DECISIONS, LENGTHS, batch_of, masked
from support.models import sentences, tiny_model
from support.paths import ROOT, TESTS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import prunekit
from prunekit.runtime import engine as engine_module
from prunekit.runtime.engine import PackedEngine, device_of
from prunekit.runtime.extras import MissingPackageError
from prunekit.tokens.encoder import install
from prunekit.tokens.policies import KeepRatio
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import AttentionReceived

# decisions whose numbers of kept tokens the host can predict
COUNTED = ("ratio", "accumulated", "random", "first", "gates")
ASKED = [name for name in DECISIONS if name not in (*COUNTED, "nothing")]


# -- waiting for the device ----------------------------------------------------------------------------------

# operators whose result is a number, or has a size, that the host must wait for
WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::nonzero_numpy", "aten::is_nonzero", "aten::equal",
    "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount",
    "aten::repeat_interleave",
}  # fmt: skip
# what costs nothing on a tensor of the host, but waits on one of the device
READING = ("tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__iter__", "item")


class Waits(TorchDispatchMode):
    """A record of the operators for which the host would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        indexes_by_mask = name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            part is not None and part.dtype == torch.bool for part in args[1]
        )
        if name in WAITING or indexes_by_mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class Reads(TorchFunctionMode):
    """A record of each read of a tensor's values from Python, because `tolist` of a CPU tensor is not an operator."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in READING:
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


def run_watched(engine, batch):
    """Return what the host would wait for while the layers are computed, and the result."""
    rows = engine._rows(batch)
    known = engine._counts(rows)
    with torch.inference_mode(), Waits() as waits, Reads() as reads:
        result = engine._run(rows.to(engine.device), engine.pruner, known)
    return waits.seen, reads.seen, result


def test_waits_and_reads_are_recorded():
    rows = torch.arange(6.0)
    for read in (
        lambda: rows[rows > 2],
        lambda: rows.sum().item(),
        lambda: rows.nonzero(),
        lambda: bool(rows.any()),
        lambda: rows.tolist(),
        lambda: torch.equal(rows, rows),
        lambda: rows.cpu(),
    ):
        with Waits() as waits, Reads() as reads:
            read()
        assert waits.seen or reads.seen
    with Waits() as waits, Reads() as reads:
        torch.nonzero_static(rows > 2, size=3)
        rows.masked_fill(rows > 2, 0).sort()
    assert not waits.seen
    assert not reads.seen


@pytest.mark.parametrize("decision", COUNTED)
def test_the_host_never_waits_if_lengths_determine_how_many_are_kept(decision):
    model = install(tiny_model(), DECISIONS[decision]())
    batch = batch_of(model)
    engine = PackedEngine(model, attention="torch", cls_last=False)
    waits, reads, result = run_watched(engine, batch)
    assert (waits, reads) == ([], [])
    assert result.kept == masked(model, batch)[1]


@pytest.mark.parametrize("decision", ASKED)
def test_otherwise_the_host_reads_from_the_device_once_per_decision_layer(decision):
    model = install(tiny_model(), DECISIONS[decision]())
    engine = PackedEngine(model, attention="torch", cls_last=False)
    waits, reads, result = run_watched(engine, batch_of(model))
    assert waits == []
    assert reads == ["tolist"] * sum(step.decided for step in result.steps)


@pytest.mark.parametrize("head", ["SequenceClassification", "QuestionAnswering"])
def test_the_dense_model_the_last_layer_and_answers_never_wait(head):
    model = install(tiny_model(head=head, classes=2), DECISIONS["ratio"]())
    batch = batch_of(model)
    batch["protected"] = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    batch["protected"][0, 10:18] = True
    engine = PackedEngine(model, attention="torch")
    assert run_watched(engine, batch)[:2] == ([], [])
    rows = engine._rows(batch)
    with torch.inference_mode(), Waits() as waits, Reads() as reads:
        engine._run(rows, None, {})
    assert (waits.seen, reads.seen) == ([], [])


# -- predicted numbers of kept tokens ------------------------------------------------------------------------


@pytest.mark.parametrize("decision", DECISIONS)
def test_with_predicted_counts_the_engine_keeps_the_same_tokens(decision):
    model = install(tiny_model(), DECISIONS[decision]())
    batch = batch_of(model)
    engine = PackedEngine(model, cls_last=False)
    engine.predicts_counts = True
    assert bool(engine._counts(engine._rows(batch))) == (decision in COUNTED)
    logits, kept, _ = masked(model, batch)
    result = engine(batch)
    assert result.kept == kept
    torch.testing.assert_close(result.logits, logits, atol=1e-4, rtol=0)


def test_counts_include_protected_tokens():
    model = install(tiny_model(), TokenPruner(AttentionReceived(), KeepRatio({1: 0.5, 2: 0.1}), [1, 2]))
    engine = PackedEngine(model)
    batch = sentences([10, 3])
    assert engine._counts(engine._rows(batch)) == {1: (5, 2), 2: (1, 1)}
    marked = torch.zeros(2, 10, dtype=torch.bool)
    marked[0, 2:5] = True
    assert engine._counts(engine._rows({**batch, "protected": marked})) == {1: (5, 2), 2: (4, 1)}


def test_counts_are_ignored_if_a_subclass_replaces_the_decision():
    class Everyone(KeepRatio):
        def forward(self, layer, scores, state):
            return state.alive

    for policy, layers in ((Everyone({1: 0.5}), [1]), (KeepRatio({1: 0.5, 2: 0.1}), [1])):
        model = install(tiny_model(), TokenPruner(AttentionReceived(), policy, layers))
        engine = PackedEngine(model)
        assert engine._counts(engine._rows(sentences([10, 3]))) == {}


# -- devices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "cuda"}, "device='cuda', but torch .* sees no CUDA device here; choose device='cpu'"),
        ({"device": "mps"}, "device='mps' is not supported by the packed engine; choose cpu or cuda"),
        ({"device": "gpu"}, "device='gpu' is not supported by"),
    ],
)
def test_a_missing_device_is_refused_before_the_model_is_read(monkeypatch, tmp_path, given, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        prunekit.load(tmp_path / "not there", engine="packed", **given)
    with pytest.raises(ValueError, match=message):
        PackedEngine(install(tiny_model(), None), **given)


def test_int8_native_attention_and_a_wrong_device_number_are_refused_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    model = install(tiny_model(), None)
    with pytest.raises(ValueError, match="dtype='int8' is for the CPU; choose fp32 or bf16 on cuda"):
        PackedEngine(model, device="cuda", dtype="int8")
    with pytest.raises(ValueError, match="attention='native' is for the CPU"):
        PackedEngine(model, device="cuda", attention="native")
    with pytest.raises(ValueError, match="device='cuda:1', but this machine has 1 CUDA devices, numbered from 0"):
        device_of("cuda:1")


class OneDevice(TorchDispatchMode):
    """A mode that refuses operators with tensors on two devices, except copies from one to the other."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {
            part.device.type for part in tree_leaves((args, kwargs)) if isinstance(part, torch.Tensor) and part.dim()
        }
        if len(given) > 1 and func._schema.name not in ("aten::_to_copy", "aten::copy_"):
            raise AssertionError(f"{func._schema.name} of tensors on {sorted(given)}")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def gpu(monkeypatch):
    """torch's device "meta", whose tensors have a shape but no values: reading a value fails."""
    monkeypatch.setattr(engine_module, "device_of", torch.device)
    return torch.device("meta")


@pytest.mark.parametrize(
    ("family", "head", "decision", "dtype"),
    [
        ("bert", "SequenceClassification", "ratio", "bf16"),
        ("bert", "SequenceClassification", "gates", "fp32"),
        ("bert", "SequenceClassification", "threshold, nothing protected", "fp32"),
        ("bert", "SequenceClassification", "after dropout", "bf16"),
        ("roberta", "QuestionAnswering", "accumulated", "fp32"),
        ("distilbert", "SequenceClassification", "random", "bf16"),
        ("electra", "SequenceClassification", "threshold", "fp32"),
    ],
)
def test_every_tensor_of_the_forward_pass_is_on_the_device(monkeypatch, gpu, family, head, decision, dtype):
    left = [[max(1, length - 1 - layer) for length in LENGTHS] for layer in range(4)]
    asked = []
    monkeypatch.setattr(
        "prunekit.runtime.forward.read", lambda counts: (left[len(asked)], asked.append(counts.device))[0]
    )
    model = install(tiny_model(family, head=head, classes=2), DECISIONS[decision]())
    for cls_last in (True, False):
        engine = PackedEngine(model, device=gpu, dtype=dtype, attention="torch", cls_last=cls_last)
        assert model.device.type == "cpu"  # the given model is not moved
        asked.clear()
        with OneDevice():
            result = engine(batch_of(model))
            engine(batch_of(model), prune=False)
        assert result.logits.device == gpu
        assert result.logits.dtype == torch.float32
        deciding = [step for step in result.steps if step.decided]
        assert asked == ([] if decision in COUNTED else [gpu] * len(deciding))
        assert deciding
        assert {step.keep.device for step in result.steps} == {gpu}


def test_reading_from_the_meta_device_fails_and_mixing_two_devices_is_refused(gpu):
    there = torch.zeros(3, device=gpu)
    for read in (there.tolist, there.sum().item, there.nonzero, lambda: there[there > 0]):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()
    with OneDevice(), pytest.raises(AssertionError, match=r"index_select of tensors on \['cpu', 'meta'\]"):
        there.index_select(0, torch.tensor([0]))


# -- Triton --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_kernels_pass_their_tests_in_tritons_interpreter():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed (286 MB): run tests/extras.sh triton")
    given = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", str(TESTS / "runtime" / "triton_interpreted.py")]
    run = subprocess.run(command, env=given, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert "skipped" not in run.stdout


def test_without_triton_the_engine_uses_torchs_attention(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "prunekit.runtime.kernels.triton_attention", raising=False)
    cuda = torch.device("cuda")
    assert engine_module.fused_attention("auto", "bf16", cuda, 64) is None
    with pytest.raises(
        MissingPackageError, match=r"attention='triton' needs the package triton(.|\n)*prunekit\[triton\]"
    ):
        engine_module.fused_attention("triton", "bf16", cuda, 64)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("attention", ["triton", "torch"])
def test_results_on_a_gpu_equal_those_on_the_cpu(attention):
    for decision in ("ratio", "gates", "threshold"):
        model = install(tiny_model(), DECISIONS[decision]())
        batch = sentences([20, 13, 1, 70])
        here, there = PackedEngine(model), PackedEngine(model, device="cuda", attention=attention)
        assert there(batch).kept == here(batch).kept
        torch.testing.assert_close(there(batch).logits.cpu(), here(batch).logits, atol=1e-4, rtol=0)
        rounded = PackedEngine(model, device="cuda", dtype="bf16", attention=attention)
        dense = here(batch, prune=False).logits
        torch.testing.assert_close(rounded(batch, prune=False).logits.cpu(), dense, atol=0.15, rtol=0)
