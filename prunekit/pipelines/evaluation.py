"""Measure a saved model, pruned or dense, on a task's test split or on all rows of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.config.places import cache_folder
from prunekit.config.validation import validate
from prunekit.console import say, silence_libraries, track
from prunekit.cost import Shape
from prunekit.data.columns import Mapped
from prunekit.data.encoding import EncodedSplit, Encoder, load_tokenizer
from prunekit.data.kinds.embedding import EMBEDDING
from prunekit.data.loading import FixedLoader
from prunekit.data.module import TokenPruningDataModule
from prunekit.data.reading import usable_rows
from prunekit.data.rows import TaskRows
from prunekit.data.sources import find_task
from prunekit.data.spec import TaskSpec
from prunekit.data.tables import read_table
from prunekit.data.vocabulary import left_out, without_tokenless
from prunekit.evaluation.evaluate import evaluate
from prunekit.models.answers import AnyLabels, answers_of
from prunekit.models.classes import class_order
from prunekit.models.heads import HEADS, reorder_classes
from prunekit.models.loading import check_classes, check_head
from prunekit.models.pretrained import load_packable
from prunekit.models.sources import find_model, name_of_model
from prunekit.results.words import format_score, format_significant
from prunekit.runs.identity import canonical
from prunekit.tokens.encoder import encoder_of

ROWS = 64  # of a batch


@dataclass(frozen=True)
class ModelEvaluation:
    """What was measured: metrics in shares of 1 with the first that counts, GFLOPs per text, and tokens by layer.

    `flops` has the reductions against the same texts without padding and padded to `padded_length`.
    """

    model: str
    task: str
    split: str
    rows: int
    metric: str
    metrics: Mapping[str, float]
    flops: Mapping[str, float]
    padded_length: int
    mean_length: float
    tokens_per_layer: Sequence[float]

    @property
    def score(self) -> float:
        """The first metric."""
        return self.metrics[self.metric]

    def report(self) -> ModelEvaluation:
        """Print all of it, and return it."""
        flops, layers = self.flops, self.tokens_per_layer
        tokens = " ".join(f"{count:.0f}" for count in layers)
        lines = [f"{self.model} on {self.task}: {self.rows} texts of {self.split}, mean {self.mean_length:.1f} tokens"]
        lines += [f"  {name.replace('_', ' '):10} {format_score(value)}" for name, value in self.metrics.items()]
        lines += [
            f"  {'GFLOPs':10} {format_significant(flops['pruned_g'])} per text: {flops['flops_vs_unpadded']:.2f}x "
            f"fewer than unpadded, {flops['flops_vs_padded']:.2f}x fewer than padded to {self.padded_length}",
            f"  {'tokens':10} {tokens} by layer, mean {sum(layers) / len(layers):.1f}",
        ]
        print("\n".join(lines))
        return self


def evaluate_model(typed: Sequence[str]) -> ModelEvaluation:
    """Evaluate the model of a configuration, given as settings, on its task.

    Raises:
        ConfigError: the model does not fit the task, or the data cannot be used.
    """
    silence_libraries()
    cfg, choices = compose(["method=dense", *typed])
    validate(cfg, choices)
    folder = find_model(cfg["model"])
    cfg = canonical(cfg)
    spec = TaskSpec.from_config(cfg["task"])
    if spec.kind.generates or (spec.kind.asks_teacher and spec.kind is not EMBEDDING):
        raise ConfigError(
            f"task={spec.name} {'is translated' if spec.kind.generates else 'has no labels'}, which is not evaluated.\n"
            "Allowed: tasks with labels.\nName their column: label=..."
        )
    check_head(folder, HEADS[spec.kind])
    model = load_packable(folder)
    split, names, spec, where = _read(spec, folder, model, cfg)
    order = _order(folder, model, spec, names)
    if order != sorted(order):
        reorder_classes(model, order)
    batches = FixedLoader(split, ROWS)
    tracked = track(batches, f"{where} ({encoder_of(model).execution})", len(batches))
    shape = Shape.from_config(model.config)
    found = evaluate(model, tracked, spec, shape, split.targets, encoder_of(model).execution)
    return ModelEvaluation(
        name_of_model(str(cfg["model"]), folder),
        spec.name,
        where,
        found.judged,
        spec.score,
        found.metrics,
        found.cost,
        spec.padded_length,
        float(found.per_row.lengths.float().mean()),
        found.tokens_per_layer,
    )


def _read(
    spec: TaskSpec, folder: Path, model: PreTrainedModel, cfg: Mapping[str, Any]
) -> tuple[EncodedSplit, Sequence[str] | None, TaskSpec, str]:
    """Return what is measured, the classes of its labels, the task as the model reads it, and what the rows are."""
    answers, cache = answers_of(model.config), cfg["data"]["cache_dir"]
    if isinstance(answers, AnyLabels):
        spec = replace(spec, thresholds=answers.thresholds)
    place = Path(cache) if cache is not None else cache_folder()
    if spec.file is None:
        data = TokenPruningDataModule(
            spec, find_task(spec), folder, batch_size=ROWS, eval_batch_size=ROWS, seed=1, cache_dir=place
        )
        data.setup()
        return data.split("test"), data.label_names, spec, "test" if data.has_test else "validation"
    names = spec.labels or (None if spec.kind.predicts_value else tuple(_class_names(answers.names)))
    table = spec.kind.flatten(spec, read_table(Path(spec.file), place))
    for column in spec.columns:
        table.column(column)
    usable, tokenizer = usable_rows(spec, table), load_tokenizer(folder)
    rows = replace(spec.kind.rows(spec, table, usable.rows, names), places=Mapped(usable.rows, table.at))
    task = without_tokenless(spec, TaskRows({"test": rows}, names, usable.dropped), tokenizer)
    if task.dropped:
        say(f"data       {left_out(task.dropped)}, of {len(table)}")
    encoder = Encoder(tokenizer, spec.max_length, place / "tokens")
    return spec.kind.encode(spec, task.splits["test"], encoder, names, 0), names, spec, Path(spec.file).name


def _class_names(names: Sequence[str]) -> Sequence[str]:
    """Return the classes of a model as a file names them: LABEL_0 is 0."""
    numbers = list(map(str, range(len(names))))
    return numbers if list(names) == [f"LABEL_{number}" for number in numbers] else names


def _order(folder: Path, model: PreTrainedModel, spec: TaskSpec, names: Sequence[str] | None) -> list[int]:
    """Return the output of the model for each class of the task."""
    head = HEADS[spec.kind]
    if not head.has_classes:
        return []
    check_classes(folder, names, several=head.several)
    return class_order(folder, model.config, names) if names else []
