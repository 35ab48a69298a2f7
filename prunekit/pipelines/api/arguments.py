"""What is given from Python, as the settings that the command line takes: the same run, by the same name."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from prunekit.config.errors import ConfigError, quoted, typed
from prunekit.config.places import cache_folder
from prunekit.config.verbatim import quote
from prunekit.data.given import task_of
from prunekit.models.sources import name_of_model

TEXT, PAIR, LABEL = "text", "text_pair", "label"  # columns of texts that are given as a list


class Typed(str):
    """A value as it was typed on the command line, which is taken as it is."""

    __slots__ = ()


def words(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as they are typed; texts that could be read as something else are quoted."""
    return [f"{key}={_word(value)}" for key, value in settings.items()]


def _word(value: Any) -> str:
    if isinstance(value, os.PathLike):
        value = str(value)
    if isinstance(value, Typed):
        return value
    if isinstance(value, str):
        is_plain = re.fullmatch(r"[\w./-]*\w[\w./-]*", value) and value != "null"
        return value if is_plain else quote(value)
    return f"[{','.join(map(_word, value))}]" if isinstance(value, list | tuple) else typed(value)


def model_of(model: Any, tokenizer: Any = None) -> str:
    """Return how a model is named: a path or a hub id as it is, a transformers model by the folder it is saved in.

    Equal models are saved once, in the folder `given` of the user's cache.

    Raises:
        ConfigError: it is neither, or a transformers model without its tokenizer.
    """
    if isinstance(model, str | os.PathLike):
        return str(model)
    if not hasattr(model, "save_pretrained") or not hasattr(model, "config"):
        raise ConfigError(
            f"the model given is of type {type(model).__name__}, {quoted(model)}.\n"
            "Allowed: a folder, a hub id, or a model of transformers with tokenizer=...\nGive one of these."
        )
    if tokenizer is None:
        raise ConfigError(
            f"a {type(model).__name__} is given without its tokenizer.\n"
            "Allowed: a model of transformers with the tokenizer that it was trained with.\n"
            "Give tokenizer=AutoTokenizer.from_pretrained(...)"
        )
    from prunekit.runs.identity import model_digest  # loads Hydra, which a path does not need

    given = cache_folder() / "given"
    scratch = given / f"{uuid4().hex}.tmp"
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        origin = str(getattr(model.config, "_name_or_path", ""))
        name = re.sub(r"[^\w.-]", "_", name_of_model(origin, Path(origin)) if origin else model.config.model_type)
        folder = given / str(model_digest(scratch))[:16] / name
        if not (folder / "config.json").is_file():
            folder.parent.mkdir(parents=True, exist_ok=True)
            scratch.replace(folder)
        return str(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def task_settings(
    texts: Any,
    labels: Sequence[Any] | str | None,
    *,
    text: str,
    text_pair: str | None,
    cache_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Return the keys of a task of these texts; `labels` are those of a list of texts, or the name of a column.

    Texts are a list of texts or of pairs, a table as `prunekit.task_of` takes it, or the path of a file.

    Raises:
        ConfigError: there are no texts, or not one label for each.
    """
    table = texts
    if isinstance(texts, list | tuple) and not any(isinstance(row, Mapping) for row in texts):
        table, text, text_pair = _rows(texts, labels)
        labels = None if labels is None else LABEL
    if labels is not None and not isinstance(labels, str):
        raise ConfigError(
            f"labels={quoted(labels)} beside a table.\n"
            "Allowed: the name of a column, or None for texts without labels.\n"
            "Put them into the table, or give a list of texts."
        )
    keys = task_of(table, text=text, label=labels, text_pair=text_pair, cache_dir=cache_dir)
    return {f"task.{key}": value for key, value in keys.items() if key in (TEXT, LABEL) or value is not None}


def _rows(texts: Sequence[Any], labels: Any) -> tuple[list[dict[str, Any]], str, str | None]:
    """Return texts, or pairs of them, as rows, and the names of their columns."""
    if len(texts) < 2:
        raise ConfigError(
            f"{len(texts)} texts are given.\n"
            "Allowed: texts to learn from, and others to measure on: hundreds of them.\n"
            "Give more texts, as a list or as the path of a file."
        )
    has_pairs = not isinstance(texts[0], str)
    for number, row in enumerate(texts):
        parts = row if has_pairs and isinstance(row, list | tuple) else [row]
        if len(parts) != 1 + has_pairs or not all(isinstance(part, str) for part in parts):
            raise ConfigError(
                f"text {number} of the list is {quoted(row)}.\nAllowed: texts, or pairs of texts, all alike.\n"
                "Convert it, or leave it out."
            )
    if labels is not None and (isinstance(labels, str) or len(labels) != len(texts)):
        raise ConfigError(
            f"labels={quoted(labels)} for {len(texts)} texts.\nAllowed: a list with a label for each text.\n"
            "Give as many labels as texts, or leave them out."
        )
    rows = [{TEXT: row[0], PAIR: row[1]} if has_pairs else {TEXT: row} for row in texts]
    if labels is not None:
        rows = [row | {LABEL: label} for row, label in zip(rows, labels, strict=True)]
    return rows, TEXT, PAIR if has_pairs else None
