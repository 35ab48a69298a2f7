"""Measure a language model on the texts of a run: perplexity, choice and generation."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prunekit.config.errors import first_line
from prunekit.console import say, track
from prunekit.data.text.samples import Texts, evaluation_ids
from prunekit.evaluation.language_model import choice_scores, choose, perplexity, rouge
from prunekit.files import damage, json_sha256, write_sealed_text
from prunekit.pipelines.weights.calibration import CORPORA
from prunekit.pipelines.weights.loading import LoadedModel
from prunekit.runs.storage import keep_in_cache

EVALUATION = 1  # version of the stored scores of dense models: raise it when what is measured changes


@dataclass(frozen=True)
class Evaluated:
    """What was measured, with the counts of tokens and rows; `seconds` is None if it was read from the cache."""

    values: Mapping[str, Any]
    seconds: float | None


def evaluate_dense(loaded: LoadedModel, texts: Texts, cache: Path) -> Evaluated:
    """Measure the dense model, or read from the folder `cache` what an earlier run measured."""
    key = [EVALUATION, loaded.identity, dataclasses.asdict(texts.spec), _text_digest(loaded, texts)]
    path = cache / f"dense-{json_sha256(key, sort_keys=False)[:16]}.json"
    if path.is_file() and (values := _read_values(path)) is not None:
        return Evaluated(values, seconds=None)
    evaluated = evaluate(loaded, texts, "dense")
    keep_in_cache(path, lambda: write_sealed_text(path, json.dumps(evaluated.values) + "\n"))
    return evaluated


def _read_values(path: Path) -> dict[str, Any] | None:
    """Return the stored scores; None where the file is damaged, which is printed."""
    wrong = damage(path)
    if wrong is None:
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            wrong = f"cannot be read ({first_line(error)})"
    say(f"cache      {path} {wrong}; it is made again.")
    return None


def evaluate(loaded: LoadedModel, texts: Texts, label: str) -> Evaluated:
    """Measure the perplexity of both corpora and, if the task has them, choices and generation."""
    start = time.monotonic()
    model, tokenizer, spec, longest = loaded.model, loaded.tokenizer, texts.spec, loaded.max_tokens
    values: dict[str, Any] = {}
    for stream in CORPORA:
        ids = evaluation_ids(texts, stream, tokenizer)
        progress = partial(track, label=f"{stream} ({label})")
        window = min(spec.window, longest)
        values[f"{stream}_perplexity"] = perplexity(model, ids, window, spec.stride, spec.reduction, progress)
        values[f"{stream}_tokens"] = len(ids)
    if questions := texts.questions:
        picked = [
            choose(model, tokenizer, question.prompt, question.choices, longest)
            for question in track(questions, f"choice ({label})")
        ]
        scores = choice_scores(picked, [question.answer for question in questions], len(questions[0].choices))
        values |= {f"choice_{name}": value for name, value in scores.items()} | {"choice_rows": len(questions)}
    if texts.references and spec.generation is not None:
        values |= rouge(model, tokenizer, texts.references, spec.generation.new_tokens, longest)
    return Evaluated(values, time.monotonic() - start)


def _text_digest(loaded: LoadedModel, texts: Texts) -> str:
    """Return the hex digest of the evaluation text itself, whatever files it came from."""
    digest = hashlib.sha256()
    for stream in CORPORA:
        digest.update(repr(evaluation_ids(texts, stream, loaded.tokenizer).tolist()).encode())
    digest.update(repr([(q.prompt, q.choices, q.answer) for q in texts.questions]).encode())
    digest.update(repr(texts.references).encode())
    return digest.hexdigest()
