"""Other runtimes of the same dense weights, each as an engine: what prunekit's own is measured against.

Each reads token ids and does all that its users would have it do: make a batch, pad it, run it. A peer that cannot run
here says why (`Absent`); the report lists it with that reason.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from prunekit.bench.protocol import BenchError
from prunekit.models.heads import CLASSIFIER, head_of
from prunekit.models.loading import load_stock
from prunekit.runtime.extras import MissingPackageError, need, version

DTYPES = ("fp32", "bf16", "int8")


class PeerUnavailableError(RuntimeError):
    """A peer that cannot run here; the message is the reason, without a full stop."""


@runtime_checkable
class Runs(Protocol):
    """An engine."""

    name: str

    def logits(self, batch: Sequence[Sequence[int]]) -> Any:
        """Logits [batch, outputs]."""


@dataclass(frozen=True)
class Inputs:
    """How a model wants its batches: the padding token, and whether it reads token types."""

    pad: int
    typed: bool

    @classmethod
    def of(cls, config: Any) -> Inputs:
        """Of a model's configuration."""
        pad = config.pad_token_id
        return cls(0 if pad is None else int(pad), getattr(config, "type_vocab_size", 0) > 1)

    def padded(self, batch: Sequence[Sequence[int]], width: int | None = None) -> dict[str, Int[np.ndarray, "b n"]]:
        """A batch padded to its longest text, or to `width`."""
        wide = max(map(len, batch)) if width is None else width
        shape = (len(batch), wide)
        found = {"input_ids": np.full(shape, self.pad, np.int64), "attention_mask": np.zeros(shape, np.int64)}
        if self.typed:
            found["token_type_ids"] = np.zeros(shape, np.int64)
        for row, ids in enumerate(batch):
            found["input_ids"][row, : len(ids)] = ids
            found["attention_mask"][row, : len(ids)] = 1
            types = getattr(ids, "types", None)
            if self.typed and types is not None:
                found["token_type_ids"][row, : len(ids)] = types
        return found


class HuggingFace:
    """The model as transformers runs it, on torch's threads; `width` pads every batch to so many tokens."""

    def __init__(self, name: str, model: PreTrainedModel, width: int | None = None) -> None:
        self.name = name
        self.model = model
        self.inputs = Inputs.of(model.config)
        self.width = width

    def logits(self, batch: Sequence[Sequence[int]]) -> Float[Tensor, "batch outputs"]:
        """Logits."""
        given = {key: torch.from_numpy(array) for key, array in self.inputs.padded(batch, self.width).items()}
        with torch.inference_mode():
            return self.model(**given).logits


def _hugging_face(
    folder: Path, threads: int, name: str, dtype: str, scratch: Path, attention: str = "sdpa", width: int | None = None
) -> Runs:
    model = load_stock(folder)
    model.set_attn_implementation(attention)
    if dtype == "bf16":
        model = model.to(torch.bfloat16)
    return HuggingFace(name, model, width)


def _compiled(folder: Path, threads: int, name: str, dtype: str, scratch: Path) -> Runs:
    import torch._inductor.config as inductor

    model = load_stock(folder)
    inductor.freezing = True  # prepacks weights
    engine = HuggingFace(name, model)
    engine.model = torch.compile(model, dynamic=True)
    texts = [[5, 6, 7, 8]], [[5] * 9, [5] * 7], [[5] * 17] * 3
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            for batch in texts:
                engine.logits(batch)
    except Exception as error:  # of the compiler, of a missing C++ toolchain, of a graph it cannot make
        raise PeerUnavailableError(f"torch.compile fails here: {_first_line(error)}") from error
    return engine


class _Dense(nn.Module):
    """A stock model with positional inputs and an additive mask, which no branch looks into: it can be traced."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *given: Tensor) -> Tensor:
        inputs = dict(zip(self.names, given, strict=True))
        mask = (1.0 - inputs.pop("attention_mask").float())[:, None, None, :] * torch.finfo(torch.float32).min
        return self.model(**inputs, attention_mask=mask).logits


def write_dense_graph(folder: Path, path: Path) -> tuple[str, ...]:
    """Writes the dense model as everybody exports it, padded batches with a mask; returns its inputs' names."""
    from prunekit.runtime.onnx_graph import OPSET, exporting

    model = load_stock(folder)
    model.set_attn_implementation("eager")
    batch = {key: torch.from_numpy(array) for key, array in Inputs.of(model.config).padded([[5] * 9, [6] * 7]).items()}
    with exporting(), torch.no_grad():
        torch.onnx.export(
            _Dense(model, list(batch)),
            tuple(batch.values()),
            str(path),
            input_names=list(batch),
            output_names=["logits"],
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in batch} | {"logits": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )
    return tuple(batch)


class Graph:
    """A dense graph in a runtime: `call` takes arrays by name and returns logits."""

    def __init__(self, name: str, inputs: Inputs, call: Callable[[dict[str, np.ndarray]], np.ndarray]) -> None:
        self.name = name
        self.inputs = inputs
        self.call = call

    def logits(self, batch: Sequence[Sequence[int]]) -> Float[np.ndarray, "batch outputs"]:
        """Logits."""
        return self.call(self.inputs.padded(batch))


def _dense_graph(folder: Path, dtype: str, scratch: Path) -> Path:
    graph = scratch / "dense.onnx"
    if not graph.is_file():
        write_dense_graph(folder, graph)
    return graph


def _fused_graph(folder: Path, dtype: str, scratch: Path) -> Path:
    need("onnxruntime", f"onnxruntime {dtype}")
    fused, quantised = (scratch / f"dense_{form}.onnx" for form in ("fused", "int8"))
    if not fused.is_file():
        _fuse(load_stock(folder), _dense_graph(folder, dtype, scratch), fused)
    if dtype != "int8":
        return fused
    if not quantised.is_file():
        from prunekit.runtime.onnx_engine import quantise

        quantise(fused, quantised, ("MatMul", "Gemm", "Attention"))
    return quantised


def _onnxruntime(folder: Path, threads: int, name: str, dtype: str, scratch: Path) -> Runs:
    ort = need("onnxruntime", name)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    graph = _fused_graph(folder, dtype, scratch)
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    inputs = Inputs.of(AutoConfig.from_pretrained(folder))
    return Graph(name, inputs, lambda given: session.run(["logits"], given)[0])


def _fuse(model: PreTrainedModel, source: Path, target: Path) -> None:
    """ONNX Runtime's own optimiser for encoders, which its users are told to run; without it the graph as it is."""
    log = logging.getLogger("onnxruntime.transformers")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        from onnxruntime.transformers import optimizer

        heads = getattr(model.config, "num_attention_heads", None) or model.config.n_heads
        hidden = getattr(model.config, "hidden_size", None) or model.config.dim
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.optimize_model(
                str(source), model_type="bert", num_heads=heads, hidden_size=hidden, opt_level=1
            ).save_model_to_file(str(target))
    except Exception:  # it wants one exact pattern of nodes; a graph without fusions is still right
        target.write_bytes(source.read_bytes())
    finally:
        log.setLevel(level)


def _openvino_graph(folder: Path, dtype: str, scratch: Path) -> Path:
    """The graph that OpenVINO reads: as it is, or for int8 quantised by nncf on random texts."""
    ov = need("openvino", f"openvino {dtype}")
    if dtype != "int8":
        return _dense_graph(folder, dtype, scratch)
    path = scratch / "openvino_int8.xml"
    if not path.is_file():
        nncf = need("nncf", f"openvino {dtype}")
        config, random = AutoConfig.from_pretrained(folder), np.random.default_rng(0)
        texts = [random.integers(5, int(config.vocab_size), (1, n)).tolist() for n in (8, 16, 32, 64) * 8]
        samples = nncf.Dataset([Inputs.of(config).padded(text) for text in texts])
        nncf.set_log_level(logging.ERROR)
        model = ov.Core().read_model(str(_dense_graph(folder, dtype, scratch)))
        ov.save_model(nncf.quantize(model, samples, model_type=nncf.ModelType.TRANSFORMER), str(path))
    return path


def _openvino(folder: Path, threads: int, name: str, dtype: str, scratch: Path) -> Runs:
    ov = need("openvino", name)
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = ov.Core().compile_model(str(_openvino_graph(folder, dtype, scratch)), "CPU", settings)
    inputs = Inputs.of(AutoConfig.from_pretrained(folder))
    return Graph(name, inputs, lambda given: compiled(given)["logits"])


class CTranslate2:
    """CTranslate2's encoder, which computes no padding, with the model's head behind it."""

    def __init__(self, name: str, folder: Path, threads: int, dtype: str, scratch: Path) -> None:
        ct2 = need("ctranslate2", name)
        self.name = name
        model = load_stock(folder)
        if not type(model).__name__.endswith(CLASSIFIER.architecture):
            raise PeerUnavailableError("its head is no classifier")
        self.inputs = Inputs.of(model.config)
        self.head = head_of(model)
        self.encoder = ct2.Encoder(
            str(_converted(folder, dtype, scratch)), device="cpu", compute_type={"fp32": "float32"}.get(dtype, dtype),
            inter_threads=1, intra_threads=threads,
        )  # fmt: skip

    def logits(self, batch: Sequence[Sequence[int]]) -> Float[Tensor, "batch outputs"]:
        """Logits."""
        types = None
        if self.inputs.typed:
            types = [list(getattr(ids, "types", None) or [0] * len(ids)) for ids in batch]
        found = self.encoder.forward_batch([list(ids) for ids in batch], token_type_ids=types)
        hidden = torch.from_numpy(np.array(found.last_hidden_state, np.float32))
        with torch.inference_mode():
            return self.head.logits(hidden)


def _converted(folder: Path, dtype: str, scratch: Path) -> Path:
    need("ctranslate2", f"ctranslate2 {dtype}")
    target = scratch / "ctranslate2"
    if target.is_dir():
        return target
    try:
        from ctranslate2.converters import TransformersConverter

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TransformersConverter(str(_with_positions(folder, scratch / "stated"))).convert(str(target))
    except Exception as error:  # it knows few architectures, and follows transformers at a distance
        raise PeerUnavailableError(
            f"ctranslate2 {version('ctranslate2')} cannot convert it: {_first_line(error)}"
        ) from error
    return target


def _with_positions(folder: Path, target: Path) -> Path:
    """A copy whose configuration says that positions are absolute, which transformers no longer writes, as all are."""
    target.mkdir(exist_ok=True)
    for file in folder.iterdir():
        if file.is_file() and file.name != "config.json":
            (target / file.name).symlink_to(file.resolve())
    config = {"position_embedding_type": "absolute"} | json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config))
    return target


def _ctranslate2(folder: Path, threads: int, name: str, dtype: str, scratch: Path) -> Runs:
    return CTranslate2(name, folder, threads, dtype, scratch)


@dataclass(frozen=True)
class Peer:
    """A runtime at a precision; `package` says whose version is reported, `padded` whether it computes padding.

    `make` builds it from the model's folder, the number of threads and a folder for files of its own; `files` writes
    these beforehand, so that the memory it takes is not counted as the engine's.
    """

    name: str
    dtype: str
    package: str
    make: Callable[[Path, int, Path], Runs]
    files: Callable[[Path, str, Path], Path] | None = None
    padded: bool = True

    def prepare(self, folder: Path, scratch: Path) -> None:
        """Writes its files, where they are not there yet.

        Raises:
            Absent: it cannot run here; says why.
        """
        if self.files is not None:
            _or_absent(lambda: self.files(folder, self.dtype, scratch))  # type: ignore[misc]

    def build(self, folder: Path, threads: int, scratch: Path) -> Runs:
        """The engine.

        Raises:
            Absent: it cannot run here; says why.
        """
        found: Runs = _or_absent(lambda: self.make(folder, threads, scratch))
        return found


def _or_absent(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except MissingPackageError as error:
        raise PeerUnavailableError(f"not installed: {str(error).splitlines()[-1]}") from error


def _of(
    make: Callable[..., Runs],
    name: str,
    dtype: str,
    package: str,
    files: Callable[[Path, str, Path], Path] | None = None,
    *,
    padded: bool = True,
) -> Peer:
    full = f"{name} {dtype}"

    def build(folder: Path, threads: int, scratch: Path) -> Runs:
        return make(folder, threads, full, dtype, scratch)

    return Peer(full, dtype, package, build, files, padded)


PEERS: tuple[Peer, ...] = (
    _of(_hugging_face, "hf sdpa", "fp32", "transformers"),
    _of(_hugging_face, "hf sdpa", "bf16", "transformers"),
    _of(_compiled, "torch.compile", "fp32", "torch"),
    _of(_onnxruntime, "onnxruntime", "fp32", "onnxruntime", _fused_graph),
    _of(_onnxruntime, "onnxruntime", "int8", "onnxruntime", _fused_graph),
    _of(_openvino, "openvino", "fp32", "openvino", _openvino_graph),
    _of(_openvino, "openvino", "bf16", "openvino", _openvino_graph),
    _of(_openvino, "openvino", "int8", "openvino", _openvino_graph),
    _of(_ctranslate2, "ctranslate2", "fp32", "ctranslate2", _converted, padded=False),
    _of(_ctranslate2, "ctranslate2", "int8", "ctranslate2", _converted, padded=False),
)


def eager_padded(folder: Path, threads: int, width: int) -> Runs:
    """Hugging Face's eager model, every batch padded to `width`: what papers of this field compare with."""
    name = f"hf eager fp32, padded to {width}"
    return _hugging_face(folder, threads, name, "fp32", folder, attention="eager", width=width)


def chosen(asked: str, dtypes: Sequence[str]) -> tuple[list[Peer], dict[str, str]]:
    """The peers that a setting names at these precisions, and why the others are left out.

    `asked` is all, none, or names and beginnings of names with commas between.

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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
