"""A pruned reranker as a module of sentence-transformers, whose own API then removes tokens.

    from sentence_transformers import CrossEncoder
    from prunekit.runtime.rerank_module import PrunedReranker

    model = CrossEncoder(modules=[PrunedReranker("my_reranker-2x")])
    model.rank(query, documents, top_k=10)

Needs the package sentence-transformers, which nothing else of prunekit imports.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentence_transformers.base.modules.input_module import InputModule
from torch import Tensor

from prunekit.config.errors import ConfigError
from prunekit.models.pretrained import model_folder
from prunekit.runtime.loading import load
from prunekit.runtime.ranking import activation_of_scores


class PrunedReranker(InputModule):
    """The whole model as one module: it reads pairs of texts, and gives their scores, before the activation.

    A CrossEncoder that is given none takes the activation that the model's folder names. `folder` is that of a run or a
    model, `engine` "packed" or "onnx" with the engine's own options.

    Raises:
        ConfigError: the model has several outputs, or no tokenizer.
    """

    save_in_root = False  # the folder that is saved holds another, which is the model's

    def __init__(self, folder: str | Path, *, engine: Any = "packed", **options: Any) -> None:
        super().__init__()
        self.folder = model_folder(folder)
        self.engine: Any = load(self.folder, engine=engine, **options)
        outputs = self.engine.config.num_labels
        if outputs != 1 or self.engine.tokenizer is None:
            what = "has no tokenizer" if outputs == 1 else f"has {outputs} outputs"
            raise ConfigError(
                f"{folder} {what}.\nAllowed: a model with one output, which scores pairs, with its tokenizer.\n"
                "Give the folder of such a model."
            )
        self.tokenizer = self.engine.tokenizer
        self.max_seq_length: int = getattr(self.engine, "max_length", None) or self.tokenizer.model_max_length

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **ignored: Any) -> dict[str, Tensor]:
        """Return the token ids of pairs, padded, with their mask and token types; a prompt precedes the first text."""
        first, second = zip(*inputs, strict=True)
        texts = [f"{prompt or ''}{text}" for text in first], list(second)
        limit = {"truncation": True, "max_length": self.max_seq_length}
        return dict(self.engine.tokenizer(*texts, padding=True, return_tensors="pt", **limit))

    def forward(self, features: dict[str, Any], **ignored: Any) -> dict[str, Any]:
        """Add the scores of the pairs to the features, [batch, 1]."""
        names = ("input_ids", "attention_mask", "token_type_ids")
        batch = {name: features[name].cpu() for name in names if name in features}
        scores: Tensor = self.engine(batch).logits
        return {**features, "scores": scores.clone().to(features["input_ids"].device)}

    def on_model_ready(self, model: Any) -> None:
        """Give the CrossEncoder that was made of this module the activation of its scores."""
        if model.activation_fn is None:
            model.activation_fn = activation_of_scores(self.engine.config)

    def save(self, output_path: str, *args: Any, **ignored: Any) -> None:
        """Copy the model's folder; `load` reads it."""
        shutil.copytree(self.folder, output_path, dirs_exist_ok=True)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", *args: Any, **ignored: Any) -> PrunedReranker:
        """Load what `save` wrote, in the packed engine."""
        return cls(Path(model_name_or_path) / subfolder)
