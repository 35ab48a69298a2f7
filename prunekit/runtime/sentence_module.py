"""A pruned embedder as a module of sentence-transformers, whose own API then removes tokens.

    from sentence_transformers import SentenceTransformer
    from prunekit.runtime.sentence_module import PrunedEmbedder

    model = SentenceTransformer(modules=[PrunedEmbedder("my_embedder-2x")])
    vectors = model.encode(texts)

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
from prunekit.models.given import EMBEDDING_SIZE
from prunekit.models.pretrained import model_folder
from prunekit.runtime.loading import load


class PrunedEmbedder(InputModule):
    """The whole model as one module: it reads texts, and gives vectors that are pooled and, if so, of length 1.

    `folder` is that of a run or a model, `engine` "packed" or "onnx" with the engine's own options.

    Raises:
        ConfigError: the model gives no vectors, or has no tokenizer.
    """

    save_in_root = False  # the folder that is saved holds another, which is the model's

    def __init__(self, folder: str | Path, *, engine: Any = "packed", **options: Any) -> None:
        super().__init__()
        self.folder = model_folder(folder)
        self.engine: Any = load(self.folder, engine=engine, **options)
        self.size: int | None = getattr(self.engine.config, EMBEDDING_SIZE, None)
        if self.size is None or self.engine.tokenizer is None:
            what = "gives no vectors" if self.size is None else "has no tokenizer"
            raise ConfigError(
                f"{folder} {what}.\nAllowed: a model that was made from a SentenceTransformer, with its tokenizer.\n"
                "Give the folder of such a model."
            )
        self.tokenizer: Any = self.engine.tokenizer
        self.max_seq_length: int = getattr(self.engine, "max_length", None) or self.tokenizer.model_max_length

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **ignored: Any) -> dict[str, Tensor]:
        """Return the token ids of texts, padded, with their mask."""
        texts = [f"{prompt or ''}{text}" for text in inputs]
        limit = {"truncation": True, "max_length": self.max_seq_length}
        return dict(self.tokenizer(texts, padding=True, return_tensors="pt", **limit))

    def forward(self, features: dict[str, Any], **ignored: Any) -> dict[str, Any]:
        """Add the texts' vectors to the features, as `sentence_embedding`."""
        ids = features["input_ids"]
        batch = {"input_ids": ids.cpu(), "attention_mask": features["attention_mask"].cpu()}
        vectors: Tensor = self.engine(batch).logits
        return {**features, "sentence_embedding": vectors.clone().to(ids.device)}

    def get_embedding_dimension(self) -> int:
        """Return how many numbers a vector has."""
        assert self.size is not None
        return self.size

    def save(self, output_path: str, *args: Any, **ignored: Any) -> None:
        """Copy the model's folder; `load` reads it."""
        shutil.copytree(self.folder, output_path, dirs_exist_ok=True)

    @classmethod
    def load(  # type: ignore[override]
        cls, model_name_or_path: str, subfolder: str = "", **ignored: Any
    ) -> PrunedEmbedder:
        """Load what `save` wrote, in the packed engine."""
        return cls(Path(model_name_or_path) / subfolder)
