"""`prunekit.prune`, `prunekit.fit` and `prunekit.evaluate`: a run, or an evaluation, from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.console import silence
from prunekit.pipelines.api.arguments import model_of, task_settings, words
from prunekit.pipelines.api.pruned import PrunedModel
from prunekit.pipelines.api.undisturbed import undisturbed

if TYPE_CHECKING:
    from prunekit.pipelines.evaluation import ModelEvaluation

RUNS = "runs"
Settings = Mapping[str, Any]


def prune(
    model: Any,
    texts: Any,
    budget: str | float | None = "3x",
    labels: Sequence[Any] | str | None = None,
    *,
    text: str = "text",
    text_pair: str | None = None,
    tokenizer: Any = None,
    method: str = "topk",
    folder: str | Path = RUNS,
    settings: Settings | None = None,
) -> PrunedModel:
    """Prune a fine-tuned model on texts like those that it is given; without `labels` it learns from the model itself.

    `model` is a folder, a hub id, or a model of transformers with its `tokenizer`; `texts` a list of texts or pairs, a
    frame, a Dataset, or the path of a file, with the columns `text` and `text_pair`. `labels` are a list, or the name
    of their column. `settings` are further ones of the command line, as {"trainer.epochs": 3}; {"method.train": False}
    prunes without training. The run is that of `prunekit train model=... task=csv ...` in the folder of runs: the same
    call again returns the stored result, and an interrupted one resumes. Nothing else of the process is changed.

    Raises:
        ConfigError: something cannot work, in three lines; nothing slow has started then.
    """
    more = dict(settings or {})
    task = task_settings(texts, labels, text=text, text_pair=text_pair, cache_dir=more.get("data.cache_dir"))
    with undisturbed([]), silence("transformers"):
        given = model_of(model, tokenizer)
    chosen = {"method": method, "model": given, "task": "csv", "budget": budget, "runs_dir": str(folder)}
    return _run(chosen | task | more)


def fit(
    texts: Any,
    text: str = "text",
    label: Sequence[Any] | str = "label",
    backbone: str = "minilm",
    budget: str | float | None = "3x",
    *,
    text_pair: str | None = None,
    method: str = "topk",
    folder: str | Path = RUNS,
    settings: Settings | None = None,
) -> PrunedModel:
    """Fine-tune a backbone on labelled texts, and prune it; `label` is the name of the column, or a list of labels.

    Everything else is as in `prune`. The fine-tuned model is kept and serves all later calls with the same texts.

    Raises:
        ConfigError: something cannot work, in three lines; nothing slow has started then.
    """
    more = dict(settings or {})
    task = task_settings(texts, label, text=text, text_pair=text_pair, cache_dir=more.get("data.cache_dir"))
    chosen = {"method": method, "backbone": backbone, "task": "csv", "budget": budget, "runs_dir": str(folder)}
    return _run(chosen | task | more)


def evaluate(
    model: str | Path,
    task: str = "csv",
    file: Any = None,
    *,
    text: str = "text",
    text_pair: str | None = None,
    label: str = "label",
    settings: Settings | None = None,
) -> ModelEvaluation:
    """Measure a pruned or dense model on a task's test, or on all rows of a file: score, FLOPs, tokens by layer.

    `text`, `text_pair` and `label` are the columns of the file; `settings` further ones, as {"task.max_length": 128}.

    Raises:
        ConfigError: something cannot work, in three lines.
    """
    chosen: dict[str, Any] = {"task": task, "model": str(model)}
    if file is not None:
        chosen |= task_settings(file, label, text=text, text_pair=text_pair)
    typed = words(chosen | dict(settings or {}))
    with undisturbed(typed):
        from prunekit.pipelines.evaluation import evaluate_model  # loads torch

        return evaluate_model(typed)


def _run(settings: Settings) -> PrunedModel:
    """Run a configuration as the command line does, or find its finished run."""
    typed = words(settings)
    with undisturbed(typed):
        # loads Hydra, and `import prunekit` is quick
        from prunekit.config.composition import compose
        from prunekit.config.validation import validate
        from prunekit.pipelines.run import run
        from prunekit.runs.folder import RunFolder
        from prunekit.runs.identity import canonical

        cfg, choices = compose(typed)
        validate(cfg, choices)
        result: Any = run(cfg)
        return PrunedModel(RunFolder.of(canonical(cfg)).path.absolute(), result)
