"""Other runtimes of the same dense weights, each as an engine that prunekit's own are compared with.

Each reads token ids and does everything that its users would: make a batch, pad it, run it. A peer that cannot run here
raises PeerUnavailableError; the report lists it with that reason.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.bench.inputs import BatchPadder
from prunekit.bench.protocol import BenchError, Engine
from prunekit.config.errors import first_line
from prunekit.console import silence
from prunekit.models.heads import CLASSIFIER, head_of
from prunekit.models.loading import load_stock
from prunekit.models.reading import read_config
from prunekit.runtime.extras import MissingPackageError, need, version
from prunekit.runtime.onnx_engine import quantise
from prunekit.runtime.onnx_graph import OPSET, export_settings

Made = TypeVar("Made")


class PeerUnavailableError(RuntimeError):
    """A peer cannot run here; the message is the reason, without a full stop."""


class HuggingFace:
    """The model as transformers runs it, on torch's threads; `width` is the number of tokens to pad every batch to."""

    def __init__(self, name: str, model: PreTrainedModel, width: int | None = None) -> None:
        self.name = name
        self.model = model
        self.padder = BatchPadder.of(model.config)
        self.width = width

    def logits(self, batch: Sequence[Sequence[int]]) -> Float[Tensor, "batch outputs"]:
        """Return the logits of token ids."""
        inputs = {key: torch.from_numpy(array) for key, array in self.padder.pad(batch, self.width).items()}
        with torch.inference_mode():
            return self.model(**inputs).logits


def build_hugging_face(
    folder: Path, threads: int, name: str, dtype: str, scratch: Path, attention: str = "sdpa", width: int | None = None
) -> Engine:
    """Build Hugging Face's model at a precision."""
    model = load_stock(folder)
    model.set_attn_implementation(attention)
    if dtype == "bf16":
        model = model.to(torch.bfloat16)
    return HuggingFace(name, model, width)


def build_compiled(folder: Path, threads: int, name: str, dtype: str, scratch: Path) -> Engine:
    """Build torch.compile's model, with frozen weights.

    Raises:
        PeerUnavailableError: it cannot be compiled here.
    """
    import torch._inductor.config as inductor  # takes a second to import, and this peer alone compiles

    model = load_stock(folder)
    inductor.freezing = True  # prepacks weights
    engine = HuggingFace(name, model)
    engine.model = torch.compile(model, dynamic=True)
    texts = [[5, 6, 7, 8]], [[5] * 9, [5] * 7], [[5] * 17] * 3
    try:
        with silence(hide_warnings=True), torch.no_grad():
            for batch in texts:
                engine.logits(batch)
    except Exception as error:  # of the compiler, of a missing C++ toolchain, of a graph it cannot make
        raise PeerUnavailableError(f"torch.compile fails here: {first_line(error)}") from error
    return engine


class TraceableModel(nn.Module):
    """A stock model with positional inputs and an additive mask, which no branch looks into: it can be traced."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *given: Tensor) -> Tensor:
        """Return the logits of inputs in the order of `names`."""
        inputs = dict(zip(self.names, given, strict=True))
        mask = (1.0 - inputs.pop("attention_mask").float())[:, None, None, :] * torch.finfo(torch.float32).min
        return self.model(**inputs, attention_mask=mask).logits


def write_dense_graph(folder: Path, path: Path) -> tuple[str, ...]:
    """Write the graph of the dense model as it is usually exported, padded batches with a mask; return its inputs."""
    model = load_stock(folder)
    model.set_attn_implementation("eager")
    texts = [[5] * 9, [6] * 7]
    batch = {key: torch.from_numpy(array) for key, array in BatchPadder.of(model.config).pad(texts).items()}
    with export_settings(), torch.no_grad():
        torch.onnx.export(
            TraceableModel(model, list(batch)),
            tuple(batch.values()),
            str(path),
            input_names=list(batch),
            output_names=["logits"],
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in batch} | {"logits": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )
    return tuple(batch)


class DenseGraphEngine:
    """A dense graph in a runtime: `call` takes arrays by name and returns logits."""

    def __init__(self, name: str, padder: BatchPadder, call: Callable[[dict[str, np.ndarray]], np.ndarray]) -> None:
        self.name = name
        self.padder = padder
        self.call = call

    def logits(self, batch: Sequence[Sequence[int]]) -> Float[np.ndarray, "batch outputs"]:
        """Return the logits of token ids."""
        return self.call(self.padder.pad(batch))


def prepare_dense_graph(folder: Path, dtype: str, scratch: Path) -> Path:
    """Write the dense graph unless it is there, and return its path."""
    graph = scratch / "dense.onnx"
    if not graph.is_file():
        write_dense_graph(folder, graph)
    return graph


def prepare_fused_graph(folder: Path, dtype: str, scratch: Path) -> Path:
    """Write the graph that ONNX Runtime reads unless it is there, and return its path."""
    need("onnxruntime", f"onnxruntime {dtype}")
    fused, quantised = (scratch / f"dense_{form}.onnx" for form in ("fused", "int8"))
    if not fused.is_file():
        _fuse(load_stock(folder), prepare_dense_graph(folder, dtype, scratch), fused)
    if dtype != "int8":
        return fused
    if not quantised.is_file():
        quantise(fused, quantised, ("MatMul", "Gemm", "Attention"))
    return quantised


def build_onnxruntime(folder: Path, threads: int, name: str, dtype: str, scratch: Path) -> Engine:
    """Build ONNX Runtime's session, with its own fusions."""
    ort = need("onnxruntime", name)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    graph = prepare_fused_graph(folder, dtype, scratch)
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    padder = BatchPadder.of(read_config(folder))
    return DenseGraphEngine(name, padder, lambda inputs: session.run(["logits"], inputs)[0])


def _fuse(model: PreTrainedModel, source: Path, target: Path) -> None:
    """Write the graph with the fusions of ONNX Runtime's own optimiser for encoders; if these fail, as it is."""
    try:
        from onnxruntime.transformers import optimizer  # an optional package

        heads = getattr(model.config, "num_attention_heads", None) or model.config.n_heads
        hidden = getattr(model.config, "hidden_size", None) or model.config.dim
        with silence("onnxruntime.transformers", hide_warnings=True):
            optimizer.optimize_model(
                str(source), model_type="bert", num_heads=heads, hidden_size=hidden, opt_level=1
            ).save_model_to_file(str(target))
    except Exception:  # it needs one exact pattern of nodes; a graph without fusions is still right
        target.write_bytes(source.read_bytes())


def prepare_openvino_graph(folder: Path, dtype: str, scratch: Path) -> Path:
    """Write the graph that OpenVINO reads, for int8 quantised by nncf on random texts; return its path."""
    ov = need("openvino", f"openvino {dtype}")
    if dtype != "int8":
        return prepare_dense_graph(folder, dtype, scratch)
    path = scratch / "openvino_int8.xml"
    if not path.is_file():
        nncf = need("nncf", f"openvino {dtype}")
        config, random = read_config(folder), np.random.default_rng(0)
        texts = [random.integers(5, int(config.vocab_size), (1, n)).tolist() for n in (8, 16, 32, 64) * 8]
        samples = nncf.Dataset([BatchPadder.of(config).pad(text) for text in texts])
        nncf.set_log_level(logging.ERROR)
        model = ov.Core().read_model(str(prepare_dense_graph(folder, dtype, scratch)))
        ov.save_model(nncf.quantize(model, samples, model_type=nncf.ModelType.TRANSFORMER), str(path))
    return path


def build_openvino(folder: Path, threads: int, name: str, dtype: str, scratch: Path) -> Engine:
    """Build OpenVINO's compiled model."""
    ov = need("openvino", name)
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = ov.Core().compile_model(str(prepare_openvino_graph(folder, dtype, scratch)), "CPU", settings)
    padder = BatchPadder.of(read_config(folder))
    return DenseGraphEngine(name, padder, lambda inputs: compiled(inputs)["logits"])


class CTranslate2:
    """CTranslate2's encoder, which computes no padding, followed by the model's head."""

    def __init__(self, name: str, folder: Path, threads: int, dtype: str, scratch: Path) -> None:
        ct2 = need("ctranslate2", name)
        self.name = name
        model = load_stock(folder)
        if not type(model).__name__.endswith(CLASSIFIER.architecture):
            raise PeerUnavailableError("its head is no classifier")
        self.has_types = BatchPadder.of(model.config).has_types
        self.head = head_of(model)
        self.encoder = ct2.Encoder(
            str(convert_to_ctranslate2(folder, dtype, scratch)),
            device="cpu",
            compute_type={"fp32": "float32"}.get(dtype, dtype),
            inter_threads=1,
            intra_threads=threads,
        )

    def logits(self, batch: Sequence[Sequence[int]]) -> Float[Tensor, "batch outputs"]:
        """Return the logits of token ids."""
        types = None
        if self.has_types:
            types = [list(getattr(ids, "types", None) or [0] * len(ids)) for ids in batch]
        output = self.encoder.forward_batch([list(ids) for ids in batch], token_type_ids=types)
        hidden = torch.from_numpy(np.array(output.last_hidden_state, np.float32))
        with torch.inference_mode():
            return self.head.logits(hidden)


def convert_to_ctranslate2(folder: Path, dtype: str, scratch: Path) -> Path:
    """Write the model that CTranslate2 reads unless it is there, and return its path.

    Raises:
        PeerUnavailableError: CTranslate2 does not know the architecture.
    """
    need("ctranslate2", f"ctranslate2 {dtype}")
    target = scratch / "ctranslate2"
    if target.is_dir():
        return target
    try:
        from ctranslate2.converters import TransformersConverter  # an optional package

        with silence(hide_warnings=True):
            TransformersConverter(str(_copy_with_positions(folder, scratch / "stated"))).convert(str(target))
    except Exception as error:  # it knows few architectures, and lags behind transformers
        raise PeerUnavailableError(
            f"ctranslate2 {version('ctranslate2')} cannot convert it: {first_line(error)}"
        ) from error
    return target


def _copy_with_positions(folder: Path, target: Path) -> Path:
    """Copy the model with a configuration that calls positions absolute, as they are; transformers omits it now."""
    target.mkdir(exist_ok=True)
    for file in folder.iterdir():
        if file.is_file() and file.name != "config.json":
            (target / file.name).symlink_to(file.resolve())
    config = {"position_embedding_type": "absolute"} | json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config))
    return target


def build_ctranslate2(folder: Path, threads: int, name: str, dtype: str, scratch: Path) -> Engine:
    """Build CTranslate2's encoder."""
    return CTranslate2(name, folder, threads, dtype, scratch)


@dataclass(frozen=True)
class Peer:
    """A runtime at a precision; `package` is the one whose version is reported, `padded` whether it computes padding.

    `make` builds it from the model's folder, the number of threads and a folder for its files; `files` writes these
    first, so that the memory that takes is not counted as the engine's.
    """

    name: str
    dtype: str
    package: str
    make: Callable[[Path, int, Path], Engine]
    files: Callable[[Path, str, Path], Path] | None = None
    padded: bool = True

    def prepare(self, folder: Path, scratch: Path) -> None:
        """Write its files, unless they are there.

        Raises:
            PeerUnavailableError: it cannot run here.
        """
        if self.files is not None:
            _make_or_explain(partial(self.files, folder, self.dtype, scratch))

    def build(self, folder: Path, threads: int, scratch: Path) -> Engine:
        """Build the engine.

        Raises:
            PeerUnavailableError: it cannot run here.
        """
        return _make_or_explain(partial(self.make, folder, threads, scratch))


def _make_or_explain(make: Callable[[], Made]) -> Made:
    try:
        return make()
    except MissingPackageError as error:
        raise PeerUnavailableError(f"not installed: {str(error).splitlines()[-1]}") from error


def _peer(
    make: Callable[..., Engine],
    name: str,
    dtype: str,
    package: str,
    files: Callable[[Path, str, Path], Path] | None = None,
    *,
    padded: bool = True,
) -> Peer:
    full = f"{name} {dtype}"

    def build(folder: Path, threads: int, scratch: Path) -> Engine:
        return make(folder, threads, full, dtype, scratch)

    return Peer(full, dtype, package, build, files, padded)


PEERS: tuple[Peer, ...] = (
    _peer(build_hugging_face, "hf sdpa", "fp32", "transformers"),
    _peer(build_hugging_face, "hf sdpa", "bf16", "transformers"),
    _peer(build_compiled, "torch.compile", "fp32", "torch"),
    _peer(build_onnxruntime, "onnxruntime", "fp32", "onnxruntime", prepare_fused_graph),
    _peer(build_onnxruntime, "onnxruntime", "int8", "onnxruntime", prepare_fused_graph),
    _peer(build_openvino, "openvino", "fp32", "openvino", prepare_openvino_graph),
    _peer(build_openvino, "openvino", "bf16", "openvino", prepare_openvino_graph),
    _peer(build_openvino, "openvino", "int8", "openvino", prepare_openvino_graph),
    _peer(build_ctranslate2, "ctranslate2", "fp32", "ctranslate2", convert_to_ctranslate2, padded=False),
    _peer(build_ctranslate2, "ctranslate2", "int8", "ctranslate2", convert_to_ctranslate2, padded=False),
)


def build_padded_eager(folder: Path, threads: int, width: int) -> Engine:
    """Build Hugging Face's eager model, every batch padded to `width`: what papers of this field compare with."""
    name = f"hf eager fp32, padded to {width}"
    return build_hugging_face(folder, threads, name, "fp32", folder, attention="eager", width=width)


def choose_peers(asked: str, dtypes: Sequence[str]) -> tuple[list[Peer], dict[str, str]]:
    """Return the peers that a setting names at these precisions, and why the others are left out.

    `asked` is all, none, or names and beginnings of names, separated by commas.

    Raises:
        BenchError: a name that no peer begins with.
    """
    words = [word.strip() for word in asked.split(",") if word.strip()]
    for word in words:
        if word not in ("all", "none") and not any(peer.name.startswith(word) for peer in PEERS):
            raise BenchError(
                f"peers={asked}: no peer is called {word}.\nAllowed: all, none, or beginnings of "
                f"{', '.join(peer.name for peer in PEERS)}.\nWrite as peers=hf,onnxruntime."
            )
    taken, left = [], {}
    for peer in PEERS:
        if not any(word == "all" or peer.name.startswith(word) for word in words):
            left[peer.name] = f"not asked for (peers={asked})"
        elif peer.dtype not in dtypes:
            left[peer.name] = f"not asked for (dtypes={','.join(dtypes)})"
        else:
            taken.append(peer)
    return taken, left
