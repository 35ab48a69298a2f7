"""Rank documents by how well they answer a query: `rank` of a loaded model and of both engines, as of CrossEncoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.config.errors import ConfigError, quoted
from prunekit.models.forward import evaluating, on_device
from prunekit.models.given import longest_text_of
from prunekit.models.reranker import MARK
from prunekit.models.sentence_folder import activation_name
from prunekit.runtime.inputs import tokenizer_of
from prunekit.tokens.encoder import encoder_of

Pair = tuple[str, str]
Score = Callable[[list[Pair]], Float[Tensor, "pairs outputs"]]  # the logits of a batch of pairs
BATCH = 32


def rank(
    score: Score,
    tokenizer: Any,
    config: Any,
    query: Any,
    documents: Any,
    *,
    top_k: int | None = None,
    return_documents: bool = False,
    batch_size: int = BATCH,
    longest_query: int | None = None,
) -> list[dict[str, Any]]:
    """Return a dict for each of the `top_k` best documents, None = all: `corpus_id`, `score`, and `text` if asked.

    The best is first, and of equal ones the earlier. A score has passed the activation that the model's folder names,
    as in CrossEncoder. Pairs of similar length are in one batch. `longest_query` is the most tokens that a query may
    have, where it is kept whole; None cuts query and documents alike.

    Raises:
        ConfigError: the model has several outputs, the query leaves no room, or something given is no text.
    """
    _check(config, query, documents, top_k, batch_size)
    if not documents:
        return []
    if longest_query is not None and tokenizer is not None:
        length = len(tokenizer(query, add_special_tokens=False, verbose=False)["input_ids"])
        if length > longest_query:
            raise ConfigError(
                f"the query has {length} tokens, which leaves no room for a document: this model keeps it whole.\n"
                f"Allowed: up to {longest_query} tokens.\nShorten the query."
            )
    order = sorted(range(len(documents)), key=lambda number: -len(documents[number]))
    scores = torch.empty(len(documents))
    activation = activation_of_scores(config)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        logits = score([(query, documents[number]) for number in batch])
        scores[batch] = activation(logits.detach().float().cpu())[:, 0]
    best = scores.argsort(descending=True, stable=True)[:top_k].tolist()
    found = [{"corpus_id": number, "score": float(scores[number])} for number in best]
    return [{**row, "text": documents[int(row["corpus_id"])]} for row in found] if return_documents else found


def rank_with_model(
    model: PreTrainedModel, folder: Path, query: Any, documents: Any, **how: Any
) -> list[dict[str, Any]]:
    """Rank with the model that was loaded from a folder; `how` are the options of `rank`.

    Raises:
        ConfigError: as of `rank`, or the folder has no tokenizer.
    """
    tokenizer = tokenizer_of(folder, model.config)
    if tokenizer is None:
        raise ConfigError(f"{folder} has no tokenizer.\nAllowed: a folder with one.\nCopy tokenizer.json there.")
    most = min(longest_text_of(folder) or tokenizer.model_max_length, tokenizer.model_max_length)

    def score(pairs: list[Pair]) -> Tensor:
        queries, texts = map(list, zip(*pairs, strict=True))
        batch = tokenizer(queries, texts, truncation=True, max_length=most, padding=True, return_tensors="pt")
        with evaluating(model):
            logits: Tensor = model(**on_device(dict(batch), model.device)).logits
        return logits

    longest = longest_query(encoder_of(model).separator, tokenizer, most)
    return rank(score, tokenizer, model.config, query, documents, longest_query=longest, **how)


def longest_query(separator: int | None, tokenizer: Any, max_length: int) -> int | None:
    """Return the most tokens of a query that leave room for one of a document; None where a query may be cut."""
    if separator is None or tokenizer is None:
        return None
    return int(max_length - tokenizer.num_special_tokens_to_add(pair=True) - 1)


def activation_of_scores(config: Any) -> nn.Module:
    """Return what a reranker's scores pass, as its configuration names it; others are left as they are."""
    marks = getattr(config, MARK, None)
    named = marks.get("activation_fn") if isinstance(marks, dict) else None
    return nn.Identity() if named is None else getattr(nn, activation_name(named, "config.json"))()


def _check(config: Any, query: Any, documents: Any, top_k: int | None, batch_size: int) -> None:
    if config is not None and config.num_labels != 1:
        raise ConfigError(
            f"rank was asked of a model with {config.num_labels} outputs, none of which is a score.\n"
            "Allowed: models with one output, as rerankers have.\n"
            "Give an engine the pairs themselves: engine([(query, document)])."
        )
    wrong = [text for text in (query, *documents) if not isinstance(text, str)]
    if wrong or isinstance(documents, str):
        raise ConfigError(
            f"rank was given {quoted(documents if isinstance(documents, str) else wrong[0])}.\n"
            "Allowed: a query, and a list of documents, which are texts.\n"
            'Type model.rank("how are you", ["fine", "who knows"], top_k=10)'
        )
    for name, number in (("top_k", top_k), ("batch_size", batch_size)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise ConfigError(f"{name}={quoted(number)}.\nAllowed: a whole number from 1.\nGive {name}=10.")
