"""The graph engine: a pruned model as an ONNX graph in ONNX Runtime or OpenVINO, one text at a time.

    engine = prunekit.load("runs/.../model", engine="onnx")
    engine(["The match ended in a draw.", "Shares fell."]).labels

For batch size 1 and for machines without torch's kernels. A batch is run text by text, so nothing is padded and no
result depends on its batch.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.console import silence
from prunekit.data.encoding import load_tokenizer
from prunekit.files import atomic_write_text
from prunekit.models import pretrained
from prunekit.models.answers import Answers, answers_of
from prunekit.models.given import longest_text_of
from prunekit.models.heads import MASKED_LOGIT, by_token
from prunekit.models.reading import read_config
from prunekit.runtime.embedding import encode
from prunekit.runtime.explaining import Explanation, Kept, explain
from prunekit.runtime.extras import need, version
from prunekit.runtime.inputs import Inputs, tokenizer_of
from prunekit.runtime.onnx_graph import OUTPUTS, write_graph
from prunekit.runtime.ranking import longest_query, rank

FOLDER = "onnx"  # inside a model's folder, where other tools also look for a Hugging Face model's ONNX files
FILES = {"fp32": "model.onnx", "int8": "model_int8.onnx"}
ABOUT = "prunekit_onnx.json"


@runtime_checkable
class Session(Protocol):
    """A loaded graph that can be run; `inputs` are the names of its inputs."""

    inputs: tuple[str, ...]

    def run(self, feed: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits and token depths of one text."""


class OnnxRuntime:
    """A graph in ONNX Runtime, on the CPU; `threads` None keeps its default number."""

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        ort = need("onnxruntime", "engine='onnx'")
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only: its warnings about graph optimisation do not help users
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = tuple(node.name for node in self.session.get_inputs())

    def run(self, feed: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits and token depths of one text."""
        logits, depth = self.session.run(list(OUTPUTS), dict(feed))
        return logits, depth


class OpenVino:
    """The graph, or its OpenVINO IR, in OpenVINO, on the CPU; `hint` is the inference precision, float32 by default."""

    def __init__(self, path: str | Path, threads: int | None = None, hint: str = "f32") -> None:
        ov = need("openvino", "OpenVINO")
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        self.model = ov.Core().compile_model(str(path), "CPU", settings)
        self.inputs = tuple(node.any_name for node in self.model.inputs)

    def run(self, feed: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits and token depths of one text."""
        outputs = self.model(dict(feed))
        return outputs["logits"], outputs["depth"]


@dataclass(frozen=True)
class Outcome:
    """The graph engine's output for a batch.

    `logits` are [batch, outputs], or [batch, tokens, 2] for question answering, with `MASKED_LOGIT` at padding.
    `answers` says how they are read, None for question answering. `depth` holds, for each text, the number of layers
    whose feed-forward each of its tokens entered.
    """

    logits: Tensor
    answers: Answers | None
    depth: list[Int[np.ndarray, "_"]]

    @property
    def labels(self) -> list[str] | list[list[str]] | None:
        """The name of each text's best class, or of all its labels; None for regression and question answering."""
        return None if self.answers is None else self.answers.labels(self.logits)

    @property
    def probabilities(self) -> Float[Tensor, "batch classes"] | None:
        """The probability of each class or label; None for regression and question answering."""
        return None if self.answers is None else self.answers.probabilities(self.logits)

    @property
    def kept(self) -> list[list[list[int]]]:
        """For each layer and text, the positions of the tokens that entered the layer's feed-forward."""
        layers = max(int(depth.max()) for depth in self.depth)
        return [[np.flatnonzero(depth > layer).tolist() for depth in self.depth] for layer in range(layers)]


class GraphEngine:
    """A graph with its tokenizer; calling it returns an `Outcome`, and `logits` takes token ids directly."""

    def __init__(
        self, session: Session, name: str, tokenizer: Any = None, config: Any = None, longest_query: int | None = None
    ) -> None:
        self.session = session
        self.longest_query = longest_query
        self.name = name
        self.tokenizer = tokenizer
        self.config = config

    def logits(self, batch: Sequence[Sequence[int]]) -> Float[Tensor, "batch outputs"] | Float[Tensor, "batch n 2"]:
        """Return the logits of texts given as token ids; token types are the list's attribute `types`, else 0."""
        return self._outcome([self._text(ids, getattr(ids, "types", None), None) for ids in batch]).logits

    def __call__(self, inputs: Inputs) -> Outcome:
        """Run texts, pairs of texts, token ids or a padded batch (without its padding); return logits, labels, depths.

        Raises:
            ValueError: no text, or texts given to an engine without a tokenizer.
        """
        if isinstance(inputs, Mapping):
            return self._outcome(list(self._unpad(inputs)))
        texts: Any = [inputs] if isinstance(inputs, str | tuple) or _is_ids(inputs) else list(inputs)
        if not texts:
            raise ValueError("the engine was given no text; give one or more.")
        if all(map(_is_ids, texts)):
            return self._outcome([self._text(ids, None, None) for ids in texts])
        if self.tokenizer is None:
            raise ValueError("this engine has no tokenizer, so it reads token ids only; give it one when creating it.")
        pairs = [text if isinstance(text, tuple) else (text,) for text in texts]
        encoded = self.tokenizer(*map(list, zip(*pairs, strict=True)), truncation=True)
        types = encoded.get("token_type_ids") or [None] * len(texts)
        return self._outcome([self._text(*row, None) for row in zip(encoded["input_ids"], types, strict=True)])

    def encode(self, texts: Any, *, batch_size: int = 32) -> np.ndarray:
        """Return the vectors of texts, float32 [texts, size], as of `prunekit.runtime.embedding.encode`."""
        return encode(self.logits, self.tokenizer, self.config, None, texts, batch_size)

    def explain(self, texts: Any) -> Explanation:
        """Explain what is kept of texts, or pairs of texts, layer by layer; print it, or show it in a notebook."""

        def run(batch: Mapping[str, Tensor]) -> tuple[Tensor, Kept]:
            outcome = self(batch)
            return outcome.logits, outcome.kept

        return explain(run, self.tokenizer, self.config, None, texts)

    def rank(self, query: Any, documents: Any, **how: Any) -> list[dict[str, Any]]:
        """Rank documents by a query, with the options of prunekit.runtime.ranking.rank, as top_k=10.

        Raises:
            ConfigError: as there.
        """

        def score(pairs: list[tuple[str, str]]) -> Tensor:
            return self(pairs).logits

        return rank(score, self.tokenizer, self.config, query, documents, longest_query=self.longest_query, **how)

    def _unpad(self, batch: Mapping[str, Tensor]) -> Iterator[dict[str, np.ndarray]]:
        ids = batch["input_ids"]
        real = batch.get("attention_mask", torch.ones_like(ids)) > 0
        for row, mask in enumerate(real):
            extra = {name: batch[name][row][mask] for name in ("token_type_ids", "protected") if name in batch}
            yield self._text(ids[row][mask], extra.get("token_type_ids"), extra.get("protected"))

    def _text(self, ids: Any, types: Any, protected: Any) -> dict[str, np.ndarray]:
        values = {"input_ids": ids, "token_type_ids": types, "protected": protected}
        zeros = np.zeros((1, len(ids)), np.int64)
        return {
            name: zeros if values[name] is None else np.asarray(values[name], np.int64)[None]
            for name in self.session.inputs
        }

    def _outcome(self, texts: list[dict[str, np.ndarray]]) -> Outcome:
        outputs = [self.session.run(text) for text in texts]
        parts = [torch.from_numpy(np.array(logits, np.float32)) for logits, _ in outputs]
        if by_token(parts[0]):
            width = max(part.shape[1] for part in parts)
            parts = [
                torch.nn.functional.pad(part, (0, 0, 0, width - part.shape[1]), value=MASKED_LOGIT) for part in parts
            ]
        logits = torch.cat(parts)
        answers = None if self.config is None or by_token(logits) else answers_of(self.config)
        return Outcome(logits, answers, [np.asarray(depth, np.int64) for _, depth in outputs])


def _is_ids(text: Any) -> bool:
    return not isinstance(text, str | tuple) and len(text) > 0 and not isinstance(text[0], str | tuple | list)


def load_graph(folder: str | Path, *, dtype: str = "fp32", threads: int | None = None) -> GraphEngine:
    """Load the graph of a checkpoint folder into ONNX Runtime: the exported one if there is one, else export it now.

    Raises:
        FileNotFoundError: the folder is not a prunekit checkpoint.
        NotExportableError: the method cannot be exported as a graph.
        ValueError: an unknown dtype, or a graph that was exported from other weights.
        MissingPackageError: onnxruntime is not installed.
    """
    if dtype not in FILES:
        raise ValueError(f"engine='onnx' has no dtype={dtype!r}; choose one of {', '.join(FILES)}.")
    need("onnxruntime", "engine='onnx'")
    folder = Path(folder)
    stored = folder / FOLDER
    if not (stored / FILES[dtype]).is_file():
        return build_graph_engine(pretrained.load_hf(folder), folder, dtype, threads)
    check_origin(stored, folder)
    return _open(stored / FILES[dtype], folder, threads, f"onnx {dtype}")


def build_graph_engine(
    model: PreTrainedModel,
    folder: str | Path,
    dtype: str,
    threads: int | None = None,
) -> GraphEngine:
    """Export a model prepared by `install` and load its graph; `folder` holds its tokenizer and config.

    Raises:
        NotExportableError: the method cannot be exported as a graph.
        MissingPackageError: onnxruntime, or onnx for int8, is not installed.
    """
    need("onnxruntime", "engine='onnx'")
    with tempfile.TemporaryDirectory() as scratch:
        write(model, scratch, graph_inputs(folder), int8=dtype == "int8")
        return _open(Path(scratch) / FILES[dtype], Path(folder), threads, f"onnx {dtype}")


def _open(path: Path, folder: Path, threads: int | None, name: str) -> GraphEngine:
    config = read_config(folder)
    tokenizer = tokenizer_of(folder, config)
    if tokenizer is not None:
        tokenizer.model_max_length = min(longest_text_of(folder) or sys.maxsize, tokenizer.model_max_length)
    separator = json.loads((folder / pretrained.SETTINGS).read_text()).get("separator")
    longest = longest_query(separator, tokenizer, 0 if tokenizer is None else tokenizer.model_max_length)
    return GraphEngine(OnnxRuntime(path, threads), name, tokenizer, config, longest)


def graph_inputs(folder: str | Path, *, protected: bool = False) -> tuple[str, ...]:
    """Return the inputs of a model's graph: token ids, token types if its tokenizer makes them, protected tokens."""
    typed = getattr(read_config(folder), "type_vocab_size", 0) > 1
    if typed and any(Path(folder).glob("tokenizer*")):
        typed = "token_type_ids" in load_tokenizer(folder).model_input_names
    return ("input_ids", *["token_type_ids"] * typed, *["protected"] * protected)


def write(
    model: PreTrainedModel, folder: str | Path, inputs: Sequence[str], *, int8: bool = False, prune: bool = True
) -> list[Path]:
    """Write the graph and, with `int8`, a second one with 8-bit weights; return the files.

    Raises:
        NotExportableError: the method cannot be exported as a graph.
        MissingPackageError: int8 without onnx and onnxruntime.
    """
    paths = [Path(folder) / FILES["fp32"]]
    write_graph(model, paths[0], inputs, prune=prune)
    if int8:
        paths.append(Path(folder) / FILES["int8"])
        quantise(paths[0], paths[1])
    return paths


def quantise(source: Path, target: Path, operators: Sequence[str] = ("MatMul", "Gemm")) -> None:
    """Write the graph with 8-bit weights in matrix products, one scale per column.

    Activations are quantised dynamically. Embeddings stay in float32, because they are looked up, not multiplied.
    """
    onnx = need("onnx", "int8")
    need("onnxruntime", "int8")
    from onnxruntime.quantization import QuantType, quantize_dynamic  # an optional package

    scratch = target.with_name(f".{target.name}.exporting")
    try:
        with silence(""):  # it recommends a preprocessing that dynamic quantisation does not need
            quantize_dynamic(
                str(source), str(scratch), op_types_to_quantize=list(operators), per_channel=True,
                weight_type=QuantType.QInt8,
                # it cannot infer the type of tensors after ONNX Runtime's own operators
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )  # fmt: skip
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def note_origin(folder: Path, model: Path, about: Mapping[str, Any]) -> None:
    """Record which weights and pruning a graph was exported from, and with which versions."""
    settings = json.loads((model / pretrained.SETTINGS).read_text())
    origin = {name: settings.get(name) for name in ("weights_sha256", "tensors_sha256")}
    versions = {name: version(name) for name in ("torch", "onnx", "onnxruntime", "openvino")}
    atomic_write_text(folder / ABOUT, json.dumps({**origin, **about, "versions": versions}, indent=2) + "\n")


def check_origin(folder: Path, model: Path) -> None:
    """Check that a graph was exported from this model.

    Raises:
        ValueError: the model's weights or pruning differ from the exported ones.
    """
    about = json.loads((folder / ABOUT).read_text()) if (folder / ABOUT).is_file() else {}
    settings = json.loads((model / pretrained.SETTINGS).read_text())
    for name in ("weights_sha256", "tensors_sha256"):
        if name in about and about[name] != settings.get(name):
            raise ValueError(
                f"{folder} was exported from other weights than those in {model} ({name} differs); "
                f"export again: {shlex.join(['prunekit', 'export', f'run={model.parent}'])}"
            )
