"""What is benchmarked: the model of a finished run or a plain model, with its texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.config.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from prunekit.bench.protocol import Encoded
    from prunekit.runs.finished import FinishedRun


MODEL_EXAMPLES, MODEL_SECONDS, MODEL_TOKENS = 64, 35.0, 512


class BenchSubject:
    """What is measured: a folder of weights, its texts, and what is known about them."""

    def __init__(
        self,
        folder: Path,
        model: PreTrainedModel,
        texts: Sequence[Encoded],
        *,
        place: Path,
        about: Mapping[str, Any],
        score: Callable[[Any], dict[str, float]] | None,
        padded_to: int,
    ) -> None:
        self.folder = folder  # of the weights that peers read
        self.model = model  # carries the traversal; its pruner is None where nothing is pruned
        self.texts = texts
        self.place = place  # where raw timings go unless told
        self.about = dict(about)
        self.score = score
        self.padded_to = padded_to
        self.quick = False

    @property
    def prunes(self) -> bool:
        """Whether there is a pruned model to compare with the dense one."""
        from prunekit.tokens.encoder import encoder_of

        return encoder_of(self.model).pruner is not None


def _benched(given: str) -> FinishedRun:
    """The run in a folder, if its texts are read one by one.

    Raises:
        ConfigError: it is none, is not finished, or finds answers or translates.
    """
    from prunekit.runs.finished import open_run

    run = open_run(given)
    if run.spec.kind not in ("classification", "regression"):
        does = "finds answers in texts, which it reads in windows" if run.spec.kind == "span" else "translates"
        raise ConfigError(
            f"run={given} {does}; bench does not measure that.\n"
            "Allowed: a run of classification or regression.\nWhat the run measured itself is in its result.json."
        )
    return run


def _of_run(run: FinishedRun, given: Mapping[str, Any]) -> BenchSubject:
    """A run's model and its validation set."""
    import torch

    from prunekit.bench.protocol import Encoded
    from prunekit.console import silence_libraries
    from prunekit.evaluation.metrics import build_metrics
    from prunekit.models import pretrained

    silence_libraries()
    data = run.data()
    split = data.split("validation")
    chosen = _sample(len(split), given["examples"], given["seed"])
    texts = []
    for row in chosen:
        text = Encoded(split.row(row))
        if split.segments is not None:
            start, end = int(split.offsets[row]), int(split.offsets[row + 1])
            types = split.segments[start:end].tolist()
            text.types = types if any(types) else None
        texts.append(text)
    labels = split.labels[chosen]

    def score(logits: Any) -> dict[str, float]:
        metrics = build_metrics(run.spec, data.num_labels)
        metrics.update(torch.from_numpy(logits), labels)
        return {name: float(value) for name, value in metrics.compute().items()}

    about = {
        "title": f"{run.result['method']} on {run.result['task']}",
        "method": run.result["method"],
        "task": run.result["task"],
        "budget": run.cfg["budget"],
        "run": run.result["hash"],
        "metric": run.spec.score,
        "split": "validation",
    }
    return BenchSubject(
        run.model, pretrained.load_hf(run.model), texts,
        place=run.path, about=about, score=score, padded_to=run.spec.padded_length,
    )  # fmt: skip


def _of_model(given: Mapping[str, Any]) -> BenchSubject:
    """A user's dense model and texts of a file; nothing is trained."""
    from transformers import AutoTokenizer

    from prunekit.bench.protocol import Encoded
    from prunekit.console import silence_libraries
    from prunekit.data.encoding import load_tokenizer
    from prunekit.data.tables import read_table
    from prunekit.models import loading, pretrained
    from prunekit.models.heads import CLASSIFIER, stored_head
    from prunekit.tokens.encoder import install
    from prunekit.tokens.families.embeddings import most_tokens

    folder = Path(given["model"])
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"model={folder} is no model: it has no config.json.\n"
            "Allowed: a folder written by save_pretrained, with its tokenizer.\nGive such a folder."
        )
    if not Path(given["data"]).is_file():
        raise ConfigError(
            f"data={given['data']} does not exist (looked in {Path.cwd()}).\n"
            "Allowed: a .csv, .tsv, .jsonl or .parquet file.\nGive its path."
        )
    silence_libraries()
    load_tokenizer(folder)  # says what is missing
    tokenizer = AutoTokenizer.from_pretrained(folder)
    table = read_table(Path(given["data"]))
    column = given["text"] or _text_column(table.columns)
    entries = [str(entry) for entry in table.column(column)]
    examples = MODEL_EXAMPLES if given["examples"] is None else given["examples"]
    chosen = _sample(len(entries), examples, given["seed"])
    if (folder / pretrained.SETTINGS).is_file():
        model = pretrained.load_hf(folder)
    else:
        if stored_head(folder) is not CLASSIFIER:
            raise ConfigError(
                f"model={folder} has no classifier: its architecture is {stored_head(folder)}.\n"
                "Allowed: a fine-tuned ...ForSequenceClassification.\nGive the folder of a fine-tuned model."
            )
        model = install(loading.load_stock(folder), None, "pack")
    reads = min(MODEL_TOKENS, tokenizer.model_max_length, most_tokens(model))
    width = min(reads, given["max_length"] or reads)
    ids = tokenizer([entries[row] for row in chosen], truncation=True, max_length=width, verbose=False)["input_ids"]
    score = None
    if given["label"] is not None:
        score = _accuracy([table.column(given["label"])[row] for row in chosen], model.config)
    # who pads to a fixed length pads to what was asked for, or at least to the longest text
    widest = given["max_length"] or max(map(len, ids))
    subject = BenchSubject(
        folder, model, [Encoded(row) for row in ids], place=Path.cwd(), score=score, padded_to=min(reads, widest),
        about={"title": f"{folder.name} on {Path(given['data']).name}", "method": "dense", "task": given["data"],
               "metric": "accuracy", "split": f"column {column}"},
    )  # fmt: skip
    subject.quick = True
    return subject


def _text_column(columns: Mapping[str, Sequence[Any]]) -> str:
    if "text" in columns:
        return "text"
    return max(columns, key=lambda name: sum(len(str(entry)) for entry in columns[name][:100]))


def _accuracy(labels: Sequence[Any], config: Any) -> Callable[[Any], dict[str, float]]:
    """Accuracy for labels that are the model's class names, or their numbers.

    Raises:
        ConfigError: a label that the model does not know.
    """
    known = {str(name): int(number) for name, number in (config.label2id or {}).items()}
    numbers = []
    for label in labels:
        place = known.get(str(label), int(str(label)) if str(label).isdigit() else -1)
        if not 0 <= place < config.num_labels:
            raise ConfigError(
                f"label {label!r} is none of the model's.\nAllowed: {', '.join(known)}, or 0 to "
                f"{config.num_labels - 1}.\nName another column with label=..., or leave it out."
            )
        numbers.append(place)

    def score(logits: Any) -> dict[str, float]:
        return {"accuracy": float((logits.argmax(-1) == numbers[: len(logits)]).mean())}

    return score


def _sample(count: int, limit: int | None, seed: int) -> list[int]:
    import numpy as np

    if limit is None or limit >= count:
        return list(range(count))
    return np.random.default_rng((seed, 2)).permutation(count)[:limit].tolist()
