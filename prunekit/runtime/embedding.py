"""Vectors of texts: `model.encode(texts)` of a loaded embedder and of every engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.config.errors import shown
from prunekit.models.forward import evaluating, on_device
from prunekit.models.given import EMBEDDING_SIZE, longest_text_of
from prunekit.runtime.inputs import tokenizer_of

Run = Callable[[list[list[int]]], Tensor]  # token ids of some texts -> their vectors


def encode(
    run: Run, tokenizer: Any, config: Any, max_length: int | None, texts: Any, batch_size: int = 32
) -> np.ndarray:
    """Return the vectors of texts, float32 [texts, size], or [size] of one text that is given by itself.

    Texts of similar length are computed together, and cut at `max_length` tokens.

    Raises:
        ValueError: the model gives no vectors, has no tokenizer, or `batch_size` is below 1.
        TypeError: what was given is no text and no list of texts.
    """
    size = getattr(config, EMBEDDING_SIZE, None)
    if size is None:
        raise ValueError(
            "this model gives no vectors: it is no embedder.\n"
            "Allowed: a model that was made from a SentenceTransformer.\nCall the model or the engine itself."
        )
    if tokenizer is None:
        raise ValueError("this model has no tokenizer, so texts cannot be read; load it from a folder that has one.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is no number of texts; give 1 or more.")
    given = [texts] if isinstance(texts, str) or not isinstance(texts, Iterable) else list(texts)
    if wrong := [text for text in given if not isinstance(text, str)]:
        raise TypeError(
            f"encode was given {shown(wrong[0])}.\nAllowed: a text, or a list of texts.\n"
            'Type model.encode(["The match ended in a draw."])'
        )
    found = np.zeros((len(given), size), np.float32)
    ids: list[list[int]] = []
    if given:
        ids = tokenizer(given, truncation=True, max_length=max_length, return_attention_mask=False)["input_ids"]
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        found[rows] = run([ids[row] for row in rows]).float().cpu().numpy()
    return found[0] if isinstance(texts, str) else found


def encode_with(model: PreTrainedModel, folder: Path, texts: Any, *, batch_size: int = 32) -> np.ndarray:
    """Return the vectors of texts by the embedder that was loaded from a folder, as `encode`."""
    tokenizer = tokenizer_of(folder, model.config)

    def run(ids: list[list[int]]) -> Tensor:
        batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        with evaluating(model):
            vectors: Tensor = model(**on_device(dict(batch), model.device)).logits
        return vectors

    return encode(run, tokenizer, model.config, longest_text_of(folder), texts, batch_size)
