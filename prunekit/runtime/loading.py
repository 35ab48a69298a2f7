"""Load a pruned model, as a Hugging Face model or in one of the engines."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

from transformers import PreTrainedModel

from prunekit.models.pretrained import load_hf, model_folder
from prunekit.models.sentence_folder import is_embedder
from prunekit.runtime.embedding import encode_with
from prunekit.runtime.engine import PackedEngine, load_packed
from prunekit.runtime.explaining import explain_model
from prunekit.runtime.onnx_engine import GraphEngine, load_graph
from prunekit.runtime.ranking import rank_with_model
from prunekit.tokens.state import Execution

# engine -> the function that loads it from a folder, with the engine's own options
ENGINES: dict[str, Callable[..., Any]] = {"packed": load_packed, "onnx": load_graph}


@overload
def load(
    folder: str | Path, execution: Execution | None = None, *, engine: Literal["hf"] = "hf"
) -> PreTrainedModel: ...


@overload
def load(
    folder: str | Path,
    *,
    engine: Literal["packed"],
    dtype: str = "fp32",
    threads: int | None = None,
    device: str = "cpu",
    linears: str = "auto",
    attention: str = "auto",
    cls_last: bool = True,
    max_length: int | None = None,
) -> PackedEngine: ...


@overload
def load(
    folder: str | Path, *, engine: Literal["onnx"], dtype: str = "fp32", threads: int | None = None
) -> GraphEngine: ...


def load(folder: str | Path, execution: Execution | None = None, *, engine: str = "hf", **own: Any) -> Any:
    """Load the pruned model of a run folder, or of its model/, in evaluation mode; call it like any Hugging Face model.

    `execution` None means the one it was tested with, which is "pack" for nearly every method.

        model = prunekit.load("runs/.../model")
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        print(model.explain(["The match ended in a draw."]))  # its tokens, leaving layer by layer
        model.rank("a query", ["a document", "another one"], top_k=10)  # of a reranker, as CrossEncoder.rank

    An embedder has `model.encode(texts)`, in every engine: one vector per text, numpy.

    Another `engine` returns that engine instead of a model and takes its options: "packed" is
    prunekit.runtime.engine.PackedEngine, "onnx" is prunekit.runtime.onnx_engine.GraphEngine.

    Raises:
        FileNotFoundError: the folder is not a prunekit checkpoint.
        ValueError: a newer format, weights that do not match the stored settings, or an unknown engine.
        TypeError: an option that the engine does not have.
    """
    folder = model_folder(folder)
    if engine == "hf":
        if own:
            raise TypeError(f"load() has no option {', '.join(own)} for engine='hf'; it belongs to another engine.")
        model: Any = load_hf(folder, execution)
        model.explain = partial(explain_model, model, folder)
        if is_embedder(folder):
            model.encode = partial(encode_with, model, folder)
        model.rank = partial(rank_with_model, model, folder)
        return model
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r} is unknown; choose one of {', '.join(['hf', *ENGINES])}.")
    if execution is not None:
        raise TypeError(f"load() has no execution for engine={engine!r}, which has one way to run; leave it out.")
    return ENGINES[engine](folder, **own)
