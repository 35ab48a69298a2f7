"""Rerankers with a head of modules: an encoder of transformers, and what CrossEncoder of sentence-transformers adds.

A plain cross-encoder is a sequence classifier of transformers, and needs none of this. The folder stays theirs:
`CrossEncoder(folder)` loads what is saved here, as the dense model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoModel

from prunekit.config.errors import ConfigError
from prunekit.files import atomic_write_text
from prunekit.models.embedder import VECTOR, SentenceEmbedder, VectorHead, load_head
from prunekit.models.given import EMBEDDING_SIZE
from prunekit.models.sentence_folder import RERANKER, SCORES, SentenceFolder, read_sentence_folder


class RerankerForSequenceClassification(SentenceEmbedder):
    """An encoder with a Pooling and the modules after it, of which the last gives the scores: the `logits`."""

    def __init__(self, body: Any, head: VectorHead, about: Mapping[str, Any] | None = None) -> None:
        super().__init__(body, head, about)
        delattr(self.config, EMBEDDING_SIZE)  # its outputs are scores, and no vector
        if self.config.num_labels != head.size:
            self.config.num_labels = head.size

    @classmethod
    def from_pretrained(cls, source: Any, *, output_loading_info: bool = False, **settings: Any) -> Any:
        """Load the folder of a CrossEncoder, as the class method of transformers does.

        Raises:
            ConfigError: it has modules, or settings, that are not computed here.
        """
        folder = read_sentence_folder(source)
        if folder is None or folder.model_type != RERANKER or not folder.head:
            raise ConfigError(
                f"{source} is no folder of a CrossEncoder with modules after its Transformer.\n"
                "Allowed: a folder that CrossEncoder.save wrote.\nGive another folder."
            )
        others = {name: value for name, value in settings.items() if name != "trust_remote_code"}
        body, report = AutoModel.from_pretrained(source, trust_remote_code=False, output_loading_info=True, **others)
        body.pooler = None  # the modules read the states of tokens
        report["missing_keys"] = [name for name in report["missing_keys"] if not name.startswith("pooler.")]
        modules = [(part.kind, _as_vector(part.settings)) for part in folder.head]
        head = load_head(folder, modules, body.config)
        model = cls(body, head, _about(folder)).eval()
        return (model, report) if output_loading_info else model

    @property
    def classifier(self) -> nn.Module:
        """The layer that gives the scores."""
        return self.head.steps[-1].get_submodule("linear")

    def save_pretrained(self, folder: Any, state_dict: Mapping[str, Tensor] | None = None, **more: Any) -> None:
        """Write the encoder as transformers does, and the modules of sentence-transformers beside it."""
        super().save_pretrained(folder, state_dict, **more)
        last = Path(folder) / f"{len(self.head.steps)}_Dense" / "config.json"
        stored = json.loads(last.read_text(encoding="utf-8")) | {"module_output_name": SCORES}
        atomic_write_text(last, json.dumps(stored, indent=2) + "\n")


def _as_vector(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a module whose output is called as that of the modules before it."""
    is_last = settings.get("module_output_name") == SCORES
    return {**settings, "module_output_name": VECTOR} if is_last else dict(settings)


def _about(folder: SentenceFolder) -> dict[str, Any]:
    return {**folder.settings, "model_type": RERANKER}
