"""The second runtime: the graph of a pruned model in ONNX Runtime or OpenVINO, one text at a time.

    engine = prunekit.load("runs/.../model", engine="onnx")
    engine(["The match ended in a draw.", "Shares fell."]).labels

Made for batch 1 and for machines without torch's kernels; a batch is run text by text, so nothing is ever padded and
no result hangs on its batch.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from prunekit.console import silence
from prunekit.files import atomic_write_text
from prunekit.models import pretrained
from prunekit.models.heads import MASKED_LOGIT, by_token
from prunekit.runtime.extras import need, version
from prunekit.runtime.inputs import Inputs
from prunekit.runtime.onnx_graph import OUTPUTS, write_graph

FOLDER = "onnx"  # inside a model's folder, where others look for ONNX files of a Hugging Face model too
FILES = {"fp32": "model.onnx", "int8": "model_int8.onnx"}
ABOUT = "prunekit_onnx.json"


@runtime_checkable
class Session(Protocol):
    """What runs a graph file."""

    inputs: tuple[str, ...]

    def run(self, feed: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Logits and depth of one text."""


class OnnxRuntime:
    """A graph in ONNX Runtime, on the CPU; `threads` None leaves the number to it."""

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        ort = need("onnxruntime", "engine='onnx'")
        options = ort.SessionOptions()
        options.log_severity_level = 3  # what it says about graphs that it optimises is of no use to a reader
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = tuple(given.name for given in self.session.get_inputs())

    def run(self, feed: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Logits and depth of one text."""
        logits, depth = self.session.run(list(OUTPUTS), dict(feed))
        return logits, depth


class OpenVino:
    """The same graph, or its IR, in OpenVINO, on the CPU; float32 unless `hint` names another inference precision."""

    def __init__(self, path: str | Path, threads: int | None = None, hint: str = "f32") -> None:
        ov = need("openvino", "OpenVINO")
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        self.model = ov.Core().compile_model(str(path), "CPU", settings)
        self.inputs = tuple(given.any_name for given in self.model.inputs)

    def run(self, feed: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Logits and depth of one text."""
        found = self.model(dict(feed))
        return found["logits"], found["depth"]


@dataclass(frozen=True)
class Outcome:
    """What a batch came to.

    `logits` are [batch, outputs], or of answers [batch, tokens, 2], where padding has none. `labels` are the names of
    the best classes; None for regression and answers. `depth` is of each text the number of layers whose feed-forward
    half each of its tokens entered.
    """

    logits: Tensor
    labels: list[str] | None
    depth: list[Int[np.ndarray, "_"]]

    @property
    def kept(self) -> list[list[list[int]]]:
        """For each layer and text, the places of the tokens that entered the layer's feed-forward half."""
        layers = max(int(depth.max()) for depth in self.depth)
        return [[np.flatnonzero(depth > layer).tolist() for depth in self.depth] for layer in range(layers)]


class GraphEngine:
    """Runs a graph; calling it gives an `Outcome`, `logits` is the short way for token ids."""

    def __init__(self, session: Session, name: str, tokenizer: Any = None, config: Any = None) -> None:
        self.session = session
        self.name = name
        self.tokenizer = tokenizer
        self.config = config

    def logits(self, batch: Sequence[Sequence[int]]) -> Float[Tensor, "batch outputs"] | Float[Tensor, "batch n 2"]:
        """Logits of texts, given as token ids; token types are those of a list's attribute `types`, else 0."""
        return self._outcome([self._text(ids, getattr(ids, "types", None), None) for ids in batch]).logits

    def __call__(self, inputs: Inputs) -> Outcome:
        """Logits, labels and depths of texts, pairs of texts, token ids, or a padded batch, whose padding is not run.

        Raises:
            ValueError: no text, or texts given to an engine without a tokenizer.
        """
        if isinstance(inputs, Mapping):
            return self._outcome(list(self._padded(inputs)))
        texts: Any = [inputs] if isinstance(inputs, str | tuple) or _is_ids(inputs) else list(inputs)
        if not texts:
            raise ValueError("the engine was given no text; give one or more.")
        if all(map(_is_ids, texts)):
            return self._outcome([self._text(ids, None, None) for ids in texts])
        if self.tokenizer is None:
            raise ValueError("this engine has no tokenizer, so it reads token ids alone; pass one when you make it.")
        pairs = [text if isinstance(text, tuple) else (text,) for text in texts]
        given = self.tokenizer(*map(list, zip(*pairs, strict=True)), truncation=True)
        types = given.get("token_type_ids") or [None] * len(texts)
        return self._outcome([self._text(*row, None) for row in zip(given["input_ids"], types, strict=True)])

    def _padded(self, batch: Mapping[str, Tensor]) -> Iterator[dict[str, np.ndarray]]:
        ids = batch["input_ids"]
        real = batch.get("attention_mask", torch.ones_like(ids)) > 0
        for row, chosen in enumerate(real):
            own = {name: batch[name][row][chosen] for name in ("token_type_ids", "protected") if name in batch}
            yield self._text(ids[row][chosen], own.get("token_type_ids"), own.get("protected"))

    def _text(self, ids: Any, types: Any, protected: Any) -> dict[str, np.ndarray]:
        given = {"input_ids": ids, "token_type_ids": types, "protected": protected}
        zeros = np.zeros((1, len(ids)), np.int64)
        return {
            name: zeros if given[name] is None else np.asarray(given[name], np.int64)[None]
            for name in self.session.inputs
        }

    def _outcome(self, texts: list[dict[str, np.ndarray]]) -> Outcome:
        found = [self.session.run(text) for text in texts]
        parts = [torch.from_numpy(np.array(logits, np.float32)) for logits, _ in found]
        if by_token(parts[0]):
            width = max(part.shape[1] for part in parts)
            parts = [
                torch.nn.functional.pad(part, (0, 0, 0, width - part.shape[1]), value=MASKED_LOGIT) for part in parts
            ]
        logits, labels = torch.cat(parts), None
        if self.config is not None and not by_token(logits) and logits.shape[-1] > 1:
            labels = [self.config.id2label[best] for best in logits.argmax(-1).tolist()]
        return Outcome(logits, labels, [np.asarray(depth, np.int64) for _, depth in found])


def _is_ids(text: Any) -> bool:
    return not isinstance(text, str | tuple) and len(text) > 0 and not isinstance(text[0], str | tuple | list)


def load_graph(folder: str | Path, *, dtype: str = "fp32", threads: int | None = None) -> GraphEngine:
    """The graph of a checkpoint folder in ONNX Runtime: the one that was exported there, else one that is made now.

    Raises:
        FileNotFoundError: the folder is no prunekit checkpoint.
        NotExportableError: the method cannot be written as a graph.
        ValueError: an unknown dtype, or a graph that was exported from other weights.
        MissingPackageError: onnxruntime is not installed.
    """
    if dtype not in FILES:
        raise ValueError(f"engine='onnx' has no dtype={dtype!r}; choose one of {', '.join(FILES)}.")
    need("onnxruntime", "engine='onnx'")
    folder = Path(folder)
    stored = folder / FOLDER
    if not (stored / FILES[dtype]).is_file():
        return of_model(pretrained.load_hf(folder), folder, dtype, threads)
    check_origin(stored, folder)
    return _opened(stored / FILES[dtype], folder, threads, f"onnx {dtype}")


def of_model(
    model: PreTrainedModel,
    folder: str | Path,
    dtype: str,
    threads: int | None = None,
) -> GraphEngine:
    """The graph of a model that `install` prepared, made now; `folder` is where its tokenizer lies.

    Raises:
        NotExportableError: the method cannot be written as a graph.
        MissingPackageError: onnxruntime is not installed, or for int8 onnx.
    """
    need("onnxruntime", "engine='onnx'")
    with tempfile.TemporaryDirectory() as scratch:
        write(model, scratch, graph_inputs(folder), int8=dtype == "int8")
        return _opened(Path(scratch) / FILES[dtype], Path(folder), threads, f"onnx {dtype}")


def _opened(path: Path, folder: Path, threads: int | None, name: str) -> GraphEngine:
    tokenizer = AutoTokenizer.from_pretrained(folder) if any(folder.glob("tokenizer*")) else None
    return GraphEngine(OnnxRuntime(path, threads), name, tokenizer, AutoConfig.from_pretrained(folder))


def graph_inputs(folder: str | Path, *, protected: bool = False) -> tuple[str, ...]:
    """What the graph of a model takes: token ids, token types where its tokenizer makes them, protected tokens."""
    typed = getattr(AutoConfig.from_pretrained(folder), "type_vocab_size", 0) > 1
    if typed and any(Path(folder).glob("tokenizer*")):
        typed = "token_type_ids" in AutoTokenizer.from_pretrained(folder).model_input_names
    return ("input_ids", *["token_type_ids"] * typed, *["protected"] * protected)


def write(
    model: PreTrainedModel, folder: str | Path, inputs: Sequence[str], *, int8: bool = False, prune: bool = True
) -> list[Path]:
    """Writes the graph, and with `int8` a second one with 8-bit weights; returns the files.

    Raises:
        NotExportableError: the method cannot be written as a graph.
        MissingPackageError: int8 without onnx and onnxruntime.
    """
    paths = [Path(folder) / FILES["fp32"]]
    write_graph(model, paths[0], inputs, prune=prune)
    if int8:
        paths.append(Path(folder) / FILES["int8"])
        quantise(paths[0], paths[1])
    return paths


def quantise(source: Path, target: Path, operators: Sequence[str] = ("MatMul", "Gemm")) -> None:
    """Writes the graph with 8-bit weights of matrix products, one scale per column; activations are quantised as they
    come. Embeddings stay in float32: nobody multiplies them.
    """
    onnx = need("onnx", "int8")
    need("onnxruntime", "int8")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    beside = target.with_name(f".{target.name}.exporting")
    try:
        with silence(""):  # it advises a preprocessing that dynamic quantisation has no use for
            quantize_dynamic(
                str(source), str(beside), op_types_to_quantize=list(operators), per_channel=True,
                weight_type=QuantType.QInt8,
                # behind operators of ONNX Runtime's own it cannot tell
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )  # fmt: skip
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def note_origin(folder: Path, model: Path, about: Mapping[str, Any]) -> None:
    """Writes which weights and which pruning a graph was made from, and with which versions."""
    settings = json.loads((model / pretrained.SETTINGS).read_text())
    origin = {name: settings.get(name) for name in ("weights_sha256", "tensors_sha256")}
    versions = {name: version(name) for name in ("torch", "onnx", "onnxruntime", "openvino")}
    atomic_write_text(folder / ABOUT, json.dumps({**origin, **about, "versions": versions}, indent=2) + "\n")


def check_origin(folder: Path, model: Path) -> None:
    """Refuses a graph that was not exported from this model.

    Raises:
        ValueError: weights or pruning are others than those of the export.
    """
    about = json.loads((folder / ABOUT).read_text()) if (folder / ABOUT).is_file() else {}
    settings = json.loads((model / pretrained.SETTINGS).read_text())
    for name in ("weights_sha256", "tensors_sha256"):
        if name in about and about[name] != settings.get(name):
            raise ValueError(
                f"{folder} was exported from other weights than those in {model} ({name} differs); "
                f"export again: prunekit export run={model.parent}"
            )
