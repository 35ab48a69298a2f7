"""Prune a fine-tuned MiniLM without labels, by several methods: agreement with it on the test of 20 Newsgroups.

./run python benchmarks/label_free.py                                                     # trains, about an hour
./run prunekit table label_free/runs/newsgroups20 save=benchmarks/results/label_free.json  # takes over the numbers
./run python benchmarks/readme.py                                                         # writes the table
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from transformers import AutoModelForSequenceClassification, AutoTokenizer

from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script, train_apart
from prunekit.config.composition import compose
from prunekit.config.errors import DONE
from prunekit.data.reading import read_task
from prunekit.data.rows import Rows
from prunekit.data.sources import find_task
from prunekit.data.spec import TaskSpec
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import canonical

SETTINGS = Path(__file__).with_suffix(".yaml")
GIVEN = "minilm-newsgroups20"  # the folder of the fine-tuned model
COMMON = ["task=csv", "task.name=newsgroups20", "plots=false", "trainer.threads=1", "bench.examples=64"]


def main(arguments: Sequence[str]) -> int:
    """Write the tables, fine-tune the model, and prune it at each budget. Return 0."""
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    folder = Path(given["folder"]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(folder, given)
    common = [*COMMON, f"task.test_file={folder / 'test.csv'}"]
    dense = ["method=dense", "backbone=minilm", f"task.file={folder / 'labelled.csv'}", "trainer.epochs=2"]
    dense += [*common, f"task.max_length={given['length']}", f"runs_dir={folder / 'given'}"]
    train_apart(dense)
    save_plainly(dense, folder / GIVEN)
    pruning = [f"model={folder / GIVEN}", f"task.file={folder / 'texts.csv'}", "task.label=null", *common]
    pruning += [f"task.max_length={given['length']}", f"runs_dir={folder / 'runs'}"]
    pruning += [f"{key}={value}" for key, value in given["settings"].items()]
    for budget, method in product(given["budgets"], given["methods"]):
        train_apart([f"method={method.split()[0]}", f"budget={budget}", *pruning, *method.split()[1:]])
    return DONE


def write_tables(folder: Path, given: dict[str, Any]) -> None:
    """Write labelled rows, other texts without labels, and a test, drawn with a seed from the official splits."""
    spec = TaskSpec.from_config(compose(["task=newsgroups20", "task.validation_fraction=0.001"])[0]["task"])
    task = read_task(spec, find_task(spec))
    assert task.label_names is not None
    train, test = (
        rows.take(Random(1).sample(range(len(rows)), len(rows))) for rows in (task.splits["train"], task.splits["test"])
    )
    first, second = given["labelled"], given["labelled"] + given["texts"]
    write(folder / "labelled.csv", train.take(range(first)), task.label_names)
    write(folder / "texts.csv", train.take(range(first, min(second, len(train)))))
    write(folder / "test.csv", test.take(range(given["test"])), task.label_names)


def write(path: Path, rows: Rows[int], names: Sequence[str] | None = None) -> None:
    """Write rows as a table, with the names of their labels or without labels."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text"] if names is None else ["text", "label"])
        for text, label in zip(rows.texts, rows.labels, strict=True):
            writer.writerow([text] if names is None else [text, names[label]])


def save_plainly(words: Sequence[str], folder: Path) -> None:
    """Save the model of a run as transformers does, without anything of prunekit."""
    source = RunFolder.of(canonical(compose(words)[0])).path / "model"
    AutoModelForSequenceClassification.from_pretrained(source).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


if __name__ == "__main__":
    run_script(main)
