"""Load what is benchmarked: the model of a finished run or a plain model, with its texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from prunekit.bench.inputs import encode_row
from prunekit.bench.protocol import Encoded
from prunekit.config.errors import ConfigError, listed, quoted, shown
from prunekit.console import say, silence_libraries
from prunekit.data.cells import is_missing, text_fault
from prunekit.data.encoding import load_tokenizer
from prunekit.data.errors import DataError
from prunekit.data.faults import Faults
from prunekit.data.folders import why_no_file
from prunekit.data.label_sets import LabelFaultError, label_key, labels_in, numbers_of
from prunekit.data.labels import class_numbers
from prunekit.data.tables import Table, read_table
from prunekit.data.vocabulary import is_tokenless
from prunekit.evaluation.metrics import build_metrics
from prunekit.models import pretrained
from prunekit.models.answers import answers_of
from prunekit.models.heads import CLASSIFIER, stored_head
from prunekit.models.tokenizers import check_tokenizer, longest_text
from prunekit.runs.finished import FinishedRun
from prunekit.runtime.engine import check_removable
from prunekit.tokens.encoder import encoder_of

MODEL_EXAMPLES, MODEL_TOKENS = 64, 512


@dataclass(frozen=True)
class BenchSubject:
    """A model under test, with its texts and what is stored about them."""

    folder: Path  # of the weights that peers read
    model: PreTrainedModel  # with prunekit's encoder; its pruner is None if nothing is pruned
    texts: Sequence[Encoded]
    place: Path  # where raw timings are written by default
    about: Mapping[str, Any]  # fields of the result
    score: Callable[[np.ndarray], dict[str, float]] | None  # of logits, if labels are known
    padded_to: int  # tokens
    is_quick: bool = False  # whether an answer within a minute is wanted

    @property
    def prunes(self) -> bool:
        """Whether there is a pruned model to compare with the dense one."""
        return encoder_of(self.model).pruner is not None


def load_run(run: FinishedRun, examples: int | None, seed: int, elsewhere: str | Path | None = None) -> BenchSubject:
    """Load a run's model and its validation set, or so many rows of it; `elsewhere` is where its file is now.

    Raises:
        ConfigError: the data is no longer where it was, or the model cannot be packed.
    """
    silence_libraries()
    data = run.data(elsewhere)
    split = data.split("validation")
    chosen = _sample_rows(len(split), examples, seed)
    labels = split.batch(torch.as_tensor(chosen))["labels"]

    def score(logits: np.ndarray) -> dict[str, float]:
        metrics = build_metrics(run.spec, data.label_names)
        metrics.update(torch.from_numpy(logits), labels)
        return {name: float(value) for name, value in metrics.compute().items()}

    model = pretrained.load_hf(run.model)
    check_removable(model)
    return BenchSubject(
        folder=run.model,
        model=model,
        texts=[encode_row(split, row, encoder_of(model).longest) for row in chosen],
        place=run.path,
        about={
            "title": f"{run.result.method} on {run.result.task}",
            "method": run.result.method,
            "task": run.result.task,
            "budget": run.cfg["budget"],
            "run": run.result.hash,
            "metric": run.spec.score,
            "split": "validation",
        },
        score=None if run.spec.kind.asks_teacher else score,
        padded_to=run.spec.padded_length,
    )


def load_model(given: Mapping[str, Any]) -> BenchSubject:
    """Load a user's dense model and the texts of a file; `given` are the settings of cli/bench.yaml.

    Raises:
        ConfigError: the folder has no classifier with its tokenizer, or the file no such texts and labels.
    """
    folder, file = Path(given["model"]), Path(given["data"])
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"model={folder} is no model: it has no config.json.\n"
            "Allowed: a folder written by save_pretrained, with its tokenizer.\nGive such a folder."
        )
    if not file.is_file():
        raise ConfigError(
            f"data={shown(given['data'])} {why_no_file(file)}.\n"
            "Allowed: a .csv, .tsv, .jsonl or .parquet file.\nGive its path."
        )
    silence_libraries()
    tokenizer = load_tokenizer(folder)
    table = read_table(file)
    column = given["text"] or _choose_text_column(table.columns)
    usable = _usable_rows(table, column, tokenizer)
    examples = MODEL_EXAMPLES if given["examples"] is None else given["examples"]
    chosen = [usable[place] for place in _sample_rows(len(usable), examples, given["seed"])]
    model = _load_classifier(folder)
    check_tokenizer(folder, model.config, tokenizer)
    longest = min(MODEL_TOKENS, longest_text(model.config, tokenizer))
    width = min(longest, given["max_length"] or longest)
    texts = [table.column(column)[row] for row in chosen]
    ids = tokenizer(texts, truncation=True, max_length=width, verbose=False)["input_ids"]
    score = None
    if given["label"] is not None:
        score = (_micro_f1 if answers_of(model.config).several else _accuracy)(
            table, given["label"], chosen, model.config
        )
    # a fixed length to pad to is the one that was asked for, or else the longest text's
    padded_to = min(longest, given["max_length"] or max(map(len, ids)))
    return BenchSubject(
        folder=folder,
        model=model,
        texts=[Encoded(row) for row in ids],
        place=Path.cwd(),
        about={
            "title": f"{folder.name} on {file.name}",
            "method": "dense",
            "task": given["data"],
            "metric": "micro_f1" if answers_of(model.config).several else "accuracy",
            "split": f"column {column}",
        },
        score=score,
        padded_to=padded_to,
        is_quick=True,
    )


def _load_classifier(folder: Path) -> PreTrainedModel:
    if stored_head(folder) is not CLASSIFIER:
        raise ConfigError(
            f"model={folder} has no classifier: its architecture is {stored_head(folder)}.\n"
            "Allowed: a fine-tuned ...ForSequenceClassification.\nGive the folder of a fine-tuned model."
        )
    return pretrained.load_packable(folder)


def _choose_text_column(columns: Mapping[str, Sequence[Any]]) -> str:
    """Return `text`, or else the column with the longest texts."""
    if "text" in columns:
        return "text"
    return max(columns, key=lambda name: sum(len(entry) for entry in columns[name][:100] if isinstance(entry, str)))


def _usable_rows(table: Table, column: str, tokenizer: Any) -> list[int]:
    """Return the rows with a text, and report how many have none.

    Raises:
        DataError: a cell holds something else, or no row has a text.
    """
    rows, wrong = [], Faults()
    for row, entry in enumerate(table.column(column)):
        if fault := "" if is_missing(entry) else text_fault(entry):
            wrong.add(table.place(row), f": column {quoted(column)} holds {fault}")
        elif entry and not is_missing(entry) and not is_tokenless(entry, tokenizer):
            rows.append(row)
    if wrong or not rows:
        raise DataError(
            f"{f'{table.prefix}{wrong}' if wrong else f'{table.path}: no row of column {quoted(column)} has a text'}.\n"
            f"Allowed: a column of texts; the columns are {listed(table.columns)}.\nName it with text=..."
        )
    if len(rows) < len(table):
        say(f"data       {len(table) - len(rows)} of {len(table)} rows of {table.path} have no text and are left out")
    return rows


def _accuracy(table: Table, column: str, rows: Sequence[int], config: Any) -> Callable[[np.ndarray], dict[str, float]]:
    """Return the accuracy for labels that are the model's class names, or their numbers.

    Raises:
        DataError: a label that the model does not know.
    """
    with _advice_on_labels():
        numbers = class_numbers(table, column, rows, answers_of(config).names).values

    def score(logits: np.ndarray) -> dict[str, float]:
        return {"accuracy": float((logits.argmax(-1) == numbers[: len(logits)]).mean())}

    return score


def _micro_f1(table: Table, column: str, rows: Sequence[int], config: Any) -> Callable[[np.ndarray], dict[str, float]]:
    """Return the micro F1 for lists of the model's label names, or of their numbers.

    Raises:
        DataError: a cell that is no list, or a label that the model does not know.
    """
    answers, wrong = answers_of(config), Faults()
    found: list[tuple[int, Sequence[Any]]] = []
    for row in rows:
        try:
            found.append((row, labels_in(table.column(column)[row], None)))
        except LabelFaultError as error:
            wrong.add(table.place(row), f": label {quoted(table.column(column)[row])} is {error}")
    if wrong:
        raise DataError(
            f"{table.prefix}{wrong}, and the model gives a text several labels.\n"
            'Allowed: lists of labels, as ["a", "b"].\nName another column with label=..., or leave it out.'
        )
    with _advice_on_labels():
        number = numbers_of(table, column, lambda: found, answers.names)
    wanted = torch.zeros(len(rows), config.num_labels, dtype=torch.bool)
    for place, (_, labels) in enumerate(found):
        wanted[place, [number[label_key(label)] for label in labels]] = True

    def score(logits: np.ndarray) -> dict[str, float]:
        here, labels = answers.decide(torch.from_numpy(logits)), wanted[: len(logits)]
        return {"micro_f1": float(2 * (here & labels).sum() / (here.sum() + labels.sum()).clamp(min=1))}

    return score


@contextmanager
def _advice_on_labels() -> Iterator[None]:
    """Say of a label that is of no class what to do here, where no task has its own classes."""
    try:
        yield
    except DataError as error:
        first, *_ = str(error).splitlines()
        said, _, known = first.removesuffix("; correct it or task.labels.").partition(" is not in the set ")
        raise DataError(
            f"{said} is none of the model's.\nAllowed: {known}, or their numbers from 0.\n"
            "Name another column with label=..., or leave it out."
        ) from error


def _sample_rows(count: int, limit: int | None, seed: int) -> list[int]:
    if limit is None or limit >= count:
        return list(range(count))
    return np.random.default_rng((seed, 2)).permutation(count)[:limit].tolist()
