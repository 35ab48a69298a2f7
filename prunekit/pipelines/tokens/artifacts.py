"""What a token-pruning run leaves besides its numbers: plots, examples, predictions, the model and its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunekit import files
from prunekit.config.identity import is_dense
from prunekit.console import track
from prunekit.data.module import TokenPruningDataModule
from prunekit.evaluation.evaluate import kept_tokens
from prunekit.evaluation.judging import Predictions
from prunekit.files import atomic_write_text
from prunekit.models import pretrained
from prunekit.models.answers import store_thresholds
from prunekit.models.heads import HEADS
from prunekit.pipelines.inputs import RunInputs
from prunekit.pipelines.tokens.preparation import Prepared
from prunekit.pipelines.tokens.testing import Tested
from prunekit.results import examples
from prunekit.results.card import model_card
from prunekit.results.plots import write_bands, write_pareto, write_plots
from prunekit.runs.result import RunResult
from prunekit.tokens.encoder import encoder_of


def write_artifacts(
    run: RunInputs, prepared: Prepared, tested: Tested, tokenizer: Any, finalised: dict[str, Any]
) -> None:
    """Write the plots, and which tokens of the first test texts were kept.

    `finalised` is what the method decided after the fit, such as the points of a search.
    """
    method, data = prepared.method, prepared.data
    plots, drawn = run.folder.path / "plots", run.cfg["plots"]
    what = f"{run.cfg['method']['name']} on {run.spec.name}"
    name = f"{what}, {'test' if data.has_test else 'validation'}"
    write_plots(plots, name, tested.dense.per_row, tested.test.per_row, run.folder.metrics, method.asked, drawn=drawn)
    if finalised:
        write_pareto(plots, f"{what}, validation", finalised, drawn=drawn)
    if tested.bands:
        write_bands(plots, name, run.spec.score, tested.bands, drawn=drawn)
    if run.cfg["examples"] and len(tested.test.per_row.predictions):
        write_examples(run, method.model, data, tested, tokenizer)


def write_examples(run: RunInputs, model: Any, data: TokenPruningDataModule, tested: Tested, tokenizer: Any) -> None:
    """Store every prediction on the test rows, and which tokens of the first ones were kept; for reports."""
    split, pruned = data.split("test"), tested.test.per_row
    # a dense model keeps every token: its predictions say all
    wanted = (
        0 if is_dense(run.cfg["method"]["name"]) else examples.rows_within(split.lengths.tolist(), run.cfg["examples"])
    )
    size = run.cfg["trainer"]["eval_batch_size"]
    batches = [split.batch(rows) for rows in torch.arange(wanted).split(size)] if wanted else []
    depths, scores = [torch.zeros(0)], [torch.zeros(0, pruned.tokens.shape[1])]
    for batch in track(batches, "kept tokens", len(batches)):
        depth, received = kept_tokens(model, batch)
        real = batch["attention_mask"] > 0
        depths.append(depth[real])
        scores.append(received.movedim(0, -1)[real])
    depth_of = torch.cat(depths).numpy().astype(np.uint8)
    entered = np.arange(pruned.tokens.shape[1]) <= depth_of[:, None]
    ids = split.tokens.first(wanted).astype(np.int32)
    types = np.unique(ids)
    most = slice(0, examples.ROWS)
    columns = _predicted(tested.dense.per_row.predictions, pruned.predictions)
    examples.save(
        examples.Examples(
            **{name: column[most] for name, column in columns.items()},
            lengths=pruned.lengths[most].numpy().astype(np.uint16),
            counts=pruned.tokens[most].numpy().astype(np.uint16),
            index=np.arange(wanted, dtype=np.int32),
            offsets=split.offsets[: wanted + 1].numpy().astype(np.int32),
            ids=ids,
            depth=depth_of,
            scores=examples.encode_scores(torch.cat(scores).numpy(), entered),
            piece_ids=types,
            pieces=np.array(tokenizer.convert_ids_to_tokens(types.tolist()), dtype=np.str_),
            special=np.isin(types, tokenizer.all_special_ids),
            classes=tuple(pruned.predictions.classes),
        ),
        run.folder.path,
    )


def write_predictions(run: RunInputs, prepared: Prepared, tested: Tested) -> None:
    """Write predictions.json where the model answers in words."""
    if tested.test.texts:
        text = json.dumps(dict(tested.test.texts), ensure_ascii=False, indent=1) + "\n"
        atomic_write_text(run.folder.path / "predictions.json", text)


def save_model(run: RunInputs, prepared: Prepared, tested: Tested, tokenizer: Any) -> Path:
    """Save the pruned model with its tokenizer as a Hugging Face folder, and return the folder."""
    folder, method = run.folder.path / "model", prepared.method
    store_thresholds(method.model.config, tested.spec.thresholds)
    encoder_of(method.model).execution = method.test_execution
    pretrained.save(method.model, tokenizer, folder, max_length=run.spec.max_length)
    return folder


def describe_model(run: RunInputs, prepared: Prepared, folder: Path, result: RunResult) -> None:
    """Write the result into the saved model and its card, and the digest of its weights into the manifest."""
    data = prepared.data
    pretrained.describe(folder, result.to_json())
    card = model_card(
        result,
        base_model=run.cfg["backbone"].get("hub"),
        labels=list(data.label_names) if data.label_names else None,
        task_type=HEADS[run.spec.kind].pipeline,
        several=HEADS[run.spec.kind].several,
        drops_tokens=encoder_of(prepared.method.model).pruner is not None,
        longest=encoder_of(prepared.method.model).longest,
        hardware=run.folder.manifest().get("cpu"),
    )
    atomic_write_text(folder / "README.md", card)
    run.folder.update_manifest({"weights_sha256": files.sha256(folder / "model.safetensors")})


def _predicted(dense: Predictions, pruned: Predictions) -> dict[str, np.ndarray]:
    """Return labels, both models' predictions on each row, and the texts where texts are predicted."""
    columns = {"labels": pruned.labels, "predicted": pruned.predicted, "dense": dense.predicted}
    found = {name: column.numpy() for name, column in columns.items()}
    if not pruned.texts:
        return found
    texts = [(gold, theirs, ours) for (gold, theirs), (_, ours) in zip(dense.texts, pruned.texts, strict=True)]
    return found | {"answers": np.array([[text[: examples.ANSWER] for text in row] for row in texts], np.str_)}
