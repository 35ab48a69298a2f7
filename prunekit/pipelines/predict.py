"""Predict the rows of a file with the model of a finished run, and write them as they come."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prunekit.config.errors import ConfigError, listed, quoted
from prunekit.console import silence_libraries, track
from prunekit.data import spill
from prunekit.data.cells import is_missing
from prunekit.data.encoding import load_tokenizer
from prunekit.data.errors import DataError
from prunekit.data.faults import Faults
from prunekit.data.kinds.base import TaskKind
from prunekit.data.tables import Table, read_table
from prunekit.data.vocabulary import is_tokenless
from prunekit.data.words import NO_LABEL, WordTokeniser, first_tokens
from prunekit.evaluation.evaluate import predict
from prunekit.models import pretrained
from prunekit.models.answers import answers_of
from prunekit.runs.finished import FinishedRun
from prunekit.tokens.encoder import encoder_of

BATCHES = 16  # that are sorted by length together, so that little is padded
NAMED = 5  # rows that a message names


@dataclass(frozen=True)
class PredictionRows:
    """A table, its columns of texts in the order in which the model reads them, and which rows have texts."""

    table: Table
    columns: tuple[str, ...]
    whole: Bool[np.ndarray, "rows"]


@dataclass(frozen=True)
class Prediction:
    """What the model says about one row; `kept` tokens per layer.

    `predicted` is a class, a list of labels, a value, or the label of each word, None for words that were cut.
    `probabilities` are by class, and empty for values and words.
    """

    predicted: str | float | Sequence[str | None]
    probabilities: Mapping[str, float]
    kept: tuple[int, ...]


def read_rows(path: Path) -> Table:
    """Read the table of a file.

    Raises:
        DataError: it cannot be read, or has no rows.
    """
    table = read_table(path)
    if not len(table):
        raise ConfigError(f"data={path} has no rows.\nAllowed: a file with a row per text.\nGive another file.")
    return table


def check_rows(table: Table, columns: Mapping[str, str], empty: str, kind: TaskKind, tokenizer: Any) -> PredictionRows:
    """Return the rows with those marked that have all their texts; `columns` are by the name of their setting.

    `kind` says what a text is: words, where these have labels. A text of which the tokenizer leaves nothing is empty.

    Raises:
        ConfigError: a column is missing, holds something else than text, or has empty texts and `empty` is "error".
    """
    texts = []
    for key, column in columns.items():
        if column not in table.columns and not any(column.startswith(f"{name}.") for name in table.columns):
            raise ConfigError(
                f"{table.path} has no column {quoted(column)}.\nAllowed: {listed(table.columns)}.\n"
                f"Name the column of the texts: {key}=..."
            )
        try:
            texts.append(table.column(column))
        except DataError as error:  # a field that rows do not have
            raise ConfigError(str(error).replace("task.text=", f"{key}=")) from error
        wrong = Faults()
        for row, value in enumerate(texts[-1]):
            if fault := "" if is_missing(value) else kind.text_fault(value):
                wrong.add(table.place(row), f": column {quoted(column)} holds {fault}")
        if wrong:
            raise ConfigError(
                f"{table.prefix}{wrong}.\n"
                + (
                    f"Allowed: a column of texts, of {listed(table.columns)}.\n"
                    f"Name it: {key}=..., or put quotes around the value."
                    if kind.labels_texts
                    else f"Allowed: {kind.allowed_text}\nName the column: {key}=..., of {listed(table.columns)}."
                )
            )

    def is_text(cell: Any) -> bool:
        if is_missing(cell) or kind.is_blank(cell):
            return False
        return kind.labels_words or not is_tokenless(cell, tokenizer)

    whole = spill.filled((all(map(is_text, row)) for row in zip(*texts, strict=True)), np.bool_, len(table))
    if not whole.all() and empty == "error":
        missing = np.flatnonzero(~whole)
        shown = [table.place(row).removeprefix("row ") for row in missing[:NAMED].tolist()]
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise ConfigError(
            f"{table.path}: {len(missing)} of {len(whole)} rows have no text: row {', '.join(shown)}{more}.\n"
            "Allowed: a text in every row, or empty=skip.\nType empty=skip to write such rows without a prediction."
        )
    return PredictionRows(table, tuple(columns.values()), whole)


def predict_file(run: FinishedRun, rows: PredictionRows, out: Path, batch_size: int) -> int:
    """Write all rows with their predictions, as they are computed; return how many were predicted.

    What is written stands beside `out` until it is whole, so that a killed command leaves nothing that looks finished.

    Raises:
        ConfigError: the table has a column that would be written, or the file cannot be written.
    """
    silence_libraries()
    predictor = (_WordPredictor if run.spec.kind.labels_words else _Predictor)(run, batch_size)
    writer = {".csv": _CsvWriter, ".jsonl": _JsonWriter}[out.suffix.lower()]
    names = writer.names(predictor.classes, predictor.layers)
    if taken := [name for name in names if name in rows.table.columns]:
        raise ConfigError(
            f"{rows.table.path} has a column {taken[0]!r} already, which predict writes.\n"
            f"Allowed: files without {', '.join(names[:3])} and so on.\nRename that column, or leave it out."
        )
    beside = out.with_name(f".{out.name}.{os.getpid()}.part")
    count = 0
    try:
        with beside.open("w", encoding="utf-8", newline="") as stream:
            written = writer(stream, tuple(rows.table.columns), names)
            texts = [rows.table.column(column) for column in rows.columns]
            places = track(range(len(rows.table)), "predict")
            for row, prediction in zip(places, predictor.all(texts, rows.whole), strict=True):
                written.write({name: values[row] for name, values in rows.table.columns.items()}, prediction)
                count += prediction is not None
        os.replace(beside, out)
    except OSError as error:
        raise ConfigError(
            f"out={out} cannot be written ({error.strerror}).\nAllowed: a file in a folder that can be written.\n"
            "Give another out=..."
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    return count


class _Predictor:
    """The model of a run with its tokenizer."""

    def __init__(self, run: FinishedRun, batch_size: int) -> None:
        self.model = pretrained.load_hf(run.model)
        self.execution = encoder_of(self.model).execution
        self.tokenizer = load_tokenizer(run.model)
        self.max_length, self.batch_size = run.spec.max_length, batch_size
        config = self.model.config
        self.layers = len(encoder_of(self.model).blocks)
        self.answers = answers_of(config)
        self.classes = self.answers.names

    def all(self, columns: Sequence[Sequence[Any]], whole: Bool[np.ndarray, "rows"]) -> Iterator[Prediction | None]:
        """Yield a prediction for each row, None for one without text."""
        chunk = BATCHES * self.batch_size
        for start in range(0, len(whole), chunk):
            rows = [row for row in range(start, min(start + chunk, len(whole))) if whole[row]]
            rows.sort(key=lambda row: sum(len(column[row]) for column in columns))
            found: dict[int, Prediction] = {}
            for first in range(0, len(rows), self.batch_size):
                batch = rows[first : first + self.batch_size]
                texts = [[column[row] for row in batch] for column in columns]
                found |= zip(batch, self._batch(texts), strict=True)
            yield from (found.get(row) for row in range(start, min(start + chunk, len(whole))))

    def _batch(self, texts: Sequence[list[Any]]) -> Iterator[Prediction]:
        cut = {"truncation": True, "max_length": self.max_length, "padding": True}
        encoded = self.tokenizer(*texts, **cut, return_tensors="pt", verbose=False)
        batch = {name: tensor for name, tensor in encoded.items() if isinstance(tensor, torch.Tensor)}
        logits, trace = predict(self.model, batch, self.execution)
        kept = trace.tokens_out.T.int().tolist()
        labels, shares = self.answers.labels(logits), self.answers.probabilities(logits)
        if labels is None or shares is None:
            yield from (
                Prediction(value, {}, tuple(counts))
                for value, counts in zip(self.answers.decide(logits).tolist(), kept, strict=True)
            )
            return
        for label, values, counts in zip(labels, shares.tolist(), kept, strict=True):
            yield Prediction(label, dict(zip(self.classes, values, strict=True)), tuple(counts))


class _WordPredictor(_Predictor):
    """The same, of a model that gives each word a label; a text is a list of words."""

    def __init__(self, run: FinishedRun, batch_size: int) -> None:
        super().__init__(run, batch_size)
        self.tokenise = WordTokeniser.of(self.tokenizer, self.max_length)

    def _batch(self, texts: Sequence[list[Any]]) -> Iterator[Prediction]:
        encodings = self.tokenise.encode(texts[0])
        words = [first_tokens(encoding.word_ids) for encoding in encodings]
        batch = {
            "input_ids": _padded([encoding.ids for encoding in encodings], self.tokenizer.pad_token_id),
            "attention_mask": _padded([[1] * len(encoding.ids) for encoding in encodings], 0),
            # where a word begins there is something to predict
            "labels": _padded([[0 if word >= 0 else NO_LABEL for word in row] for row in words], NO_LABEL),
        }
        if self.tokenise.texts.has_segments:
            types = [encoding.type_ids for encoding in encodings]
            batch["token_type_ids"] = _padded(types, self.tokenizer.pad_token_type_id)
        logits, trace = predict(self.model, batch, self.execution)
        best = iter(logits.argmax(-1).tolist())
        for text, row, counts in zip(texts[0], words, trace.tokens_out.T.int().tolist(), strict=True):
            labels: list[str | None] = [None] * len(text)
            for word in row:
                if word >= 0:
                    labels[word] = self.classes[next(best)]
            yield Prediction(labels, {}, tuple(counts))


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Int[Tensor, "rows width"]:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)


class _Writer(Protocol):
    """A format of the file that is written, row by row."""

    @staticmethod
    def names(classes: Sequence[str], layers: int) -> tuple[str, ...]:
        """Return the columns that are added."""

    def write(self, row: Mapping[str, Any], prediction: Prediction | None) -> None:
        """Write one row with its prediction."""


class _CsvWriter(_Writer):
    def __init__(self, stream: TextIO, columns: Sequence[str], names: Sequence[str]) -> None:
        self.writer = csv.writer(stream)
        self.width = len(names)
        self.writer.writerow([*columns, *names])

    @staticmethod
    def names(classes: Sequence[str], layers: int) -> tuple[str, ...]:
        counts = (f"kept_layer_{layer:02d}" for layer in range(layers))
        return ("predicted", *(f"p_{name}" for name in classes), *counts)

    def write(self, row: Mapping[str, Any], prediction: Prediction | None) -> None:
        added: list[Any] = [""] * self.width
        if prediction is not None:
            shares = [f"{share:.6f}" for share in prediction.probabilities.values()]
            said = prediction.predicted
            written = json.dumps(said, ensure_ascii=False) if isinstance(said, list) else said
            added = [written, *shares, *prediction.kept]
        self.writer.writerow([*row.values(), *added])


class _JsonWriter(_Writer):
    def __init__(self, stream: TextIO, columns: Sequence[str], names: Sequence[str]) -> None:
        self.stream = stream

    @staticmethod
    def names(classes: Sequence[str], layers: int) -> tuple[str, ...]:
        return ("predicted", *(("probabilities",) if classes else ()), "kept")

    def write(self, row: Mapping[str, Any], prediction: Prediction | None) -> None:
        added: dict[str, Any] = {"predicted": None, "kept": None}
        if prediction is not None:
            shares = {name: round(share, 6) for name, share in prediction.probabilities.items()}
            added = {
                "predicted": prediction.predicted,
                **({"probabilities": shares} if shares else {}),
                "kept": list(prediction.kept),
            }
        self.stream.write(json.dumps({**row, **added}, ensure_ascii=False, default=str) + "\n")
