"""What a token-pruning run leaves beside its numbers: predictions, examples, plots and logged media."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from prunekit.console import say
from prunekit.data.encoding import EncodedSplit
from prunekit.evaluation.evaluate import EvaluationResult
from prunekit.loggers.base import Media, Sink, _first_line
from prunekit.results import examples, heatmap
from prunekit.runs.folder import RunFolder


def _predicted(split: EncodedSplit, dense: EvaluationResult, pruned: EvaluationResult) -> dict[str, np.ndarray]:
    """Labels and both models' predictions on each row; where answers are found, also what they are."""
    if split.questions is None:
        columns = {
            "labels": pruned.per_row.labels,
            "predicted": pruned.per_row.predicted,
            "dense": dense.per_row.predicted,
        }
        return {name: column.numpy() for name, column in columns.items() if column is not None}
    assert split.examples is not None
    assert dense.answers is not None
    assert pruned.answers is not None
    assert dense.per_row.right is not None
    assert pruned.per_row.right is not None
    golds = [next(iter(answer.texts), "") for answer in split.questions.labels]  # type: ignore[union-attr]
    right = torch.stack([dense.per_row.right, pruned.per_row.right]).numpy()
    return examples.answered(golds, dense.answers, pruned.answers, right, split.examples.numpy())


def _predictions(split: EncodedSplit, answers: list[str]) -> str:
    """Answers by the ids of their questions, as SQuAD's own script reads them."""
    ids = split.questions.ids if split.questions is not None else None
    names = ids or [str(row + 1) for row in range(len(answers))]
    return json.dumps(dict(zip(names, answers, strict=True)), ensure_ascii=False, indent=1) + "\n"


def log_tokens(loggers: Sequence[Logger], folder: RunFolder, texts: int) -> None:
    """Shows which tokens stayed, of at most `texts` test texts, to the loggers that show pictures and tables.

    Nothing where the run stored no tokens, as a dense one. What goes wrong here is said and stops nothing.
    """
    able = [logger for logger in loggers if isinstance(logger, Sink | TensorBoardLogger)]
    if not able or not texts:
        return
    try:
        found = examples.load(folder.path)
        if found is None or not len(found.index):
            return
        places = heatmap.chosen(found, texts)
        shown = Media(heatmap.pixels(heatmap.heat_map(found, places)), *heatmap.token_table(found, places))
    except Exception as error:
        say(f"tokens are not shown in {' and '.join(_title(logger) for logger in able)} ({_first_line(error)}).")
        return
    for logger in able:
        if isinstance(logger, Sink):
            logger.show(shown)
        else:
            logger.experiment.add_image("tokens/heatmap", shown.picture, dataformats="HWC")


def _title(logger: Sink | TensorBoardLogger) -> str:
    return logger.title if isinstance(logger, Sink) else "TensorBoard"
