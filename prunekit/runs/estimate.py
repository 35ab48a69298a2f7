"""How long a run will take and how much disk it needs, from finished runs. Imports nothing slow.

Runs of the same kind tell best. Without one, other runs of the same task and backbone tell, or of another task whose
texts were measured: a training step costs what its tokens cost, so many times over, whatever the method and the task.
The less is known, the wider the range that is said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from prunekit.config.budget import parse_budget
from prunekit.config.errors import ConfigError
from prunekit.config.identity import is_dense
from prunekit.files import read_jsonl
from prunekit.runs.folder import RunFolder
from prunekit.runs.result import AnyResult

Kind = tuple[Any, ...]
TRAINER = ("batch_size", "precision", "freeze_embeddings", "evals_per_epoch", "accelerator")
# how many times less and more than told a run may take, after our own runs on a machine that did little else: told by
# three runs of its kind and more, by fewer, by runs of the same task and backbone, by runs of other tasks
USUAL, FEW, SAME_TASK, OTHER_TASK = 1.2, 1.4, 2.0, 2.0
ENOUGH = 3
BACKWARD = 3  # a training step costs so many forward passes
PRUNED_REST = 3.5  # beside training a pruned run takes so many times what a dense one takes, as measured


@dataclass(frozen=True)
class Estimate:
    """Seconds, and a range in which they lie unless the machine has other things to do; `by` says who tells."""

    seconds: float
    low: float
    high: float
    by: str

    @classmethod
    def within(cls, seconds: float, factor: float, by: str) -> Estimate:
        """Between `factor` times less and more."""
        return cls(seconds, seconds / factor, seconds * factor, by)


@dataclass(frozen=True)
class Texts:
    """What a run read: how many texts, and how many tokens they have on average."""

    rows: float  # of the training split
    length: float
    tests: float  # of the test split
    validation: float  # tokens of all texts of the split
    test: float


@dataclass(frozen=True)
class PastRun:
    """What one finished run took."""

    kind: Kind
    cfg: Mapping[str, Any]
    steps: int  # optimizer steps; 0 where nothing is trained
    epochs: float
    rows: int | None  # training rows, None = all
    fit: float  # seconds
    rest: float  # seconds: data, tests, speed, saving; without the teacher's training
    size: int  # bytes on the disk
    texts: Texts | None = None

    def seconds(self, cfg: Mapping[str, Any]) -> float:
        """How long a run of the same kind takes with another schedule; of its own task and batch size."""
        if not self.steps:
            return self.fit + self.rest
        trainer, rows = cfg["trainer"], cfg["data"]["train_rows"]
        share = rows / self.rows if rows and self.rows else 1.0
        steps = self.steps * share * trainer["epochs"] / self.epochs
        if trainer["max_steps"]:
            steps = min(steps, trainer["max_steps"])
        return self.fit / self.steps * steps + self.rest

    @property
    def task(self) -> Kind:
        """What runs share that read the same texts."""
        return task_of(self.cfg)

    @property
    def per_work(self) -> float | None:
        """Seconds of training per unit of work; None where nothing was trained."""
        if not self.steps or self.texts is None:
            return None
        return self.fit / work(self.cfg, self.texts)


def kind_of(cfg: Mapping[str, Any]) -> Kind:
    """What two runs must share for the one to tell the time of the other; schedules, rates and seeds may differ."""
    trainer, task, data = cfg["trainer"], cfg["task"], cfg["data"]
    # runs that prune weights have neither lengths nor a training, but texts of their own
    corpora = [task.get(name) or {} for name in ("open", "domain")]
    return (
        cfg["method"]["name"],
        trains(cfg),
        *task_of(cfg),
        cfg["backbone"]["name"],
        *(trainer.get(key) for key in TRAINER),
        *(corpus.get(key) for corpus in corpora for key in ("samples", "seqlen")),
        *(task.get(key) for key in ("eval_tokens", "window", "stride")),
        # without all rows the number of steps follows from theirs; the two do not mix
        data["train_rows"] is None,
        data["eval_rows"],
        benched(cfg),
    )


def task_of(cfg: Mapping[str, Any]) -> Kind:
    """Which texts a run reads, cut to which length."""
    return cfg["task"]["name"], cfg["task"].get("max_length"), cfg["task"].get("file")


def trains(cfg: Mapping[str, Any]) -> bool:
    """Whether a run trains at all."""
    return bool(cfg["method"].get("train", True))


def benched(cfg: Mapping[str, Any]) -> bool:
    """Whether a run measures speed, where it can."""
    return bool(cfg.get("bench", {}).get("enabled"))


def work(cfg: Mapping[str, Any], texts: Texts) -> float:
    """Tokens that a training pushes through a dense model, forward: steps count thrice, evaluations once.

    A pruned step costs less: half way between dense and the budget. Measured steps of ToP cost 0.69 of dense ones at 3x
    and 0.78 at 2x. Those of a method that computes removed tokens while it trains cost more, as its own runs tell.
    """
    trainer, data = cfg["trainer"], cfg["data"]
    rows = data["train_rows"] or texts.rows
    steps = trainer["epochs"] * rows / trainer["batch_size"]
    if trainer["max_steps"]:
        steps = min(steps, trainer["max_steps"])
    try:
        budget = 1.0 if _is_dense(cfg) else parse_budget(cfg["budget"]) or 1.0
    except ConfigError:
        budget = 1.0
    pruned = (1 + 1 / budget) / 2
    times = trainer["evals_per_epoch"] * steps * trainer["batch_size"] / rows
    return pruned * (BACKWARD * steps * trainer["batch_size"] * texts.length + times * texts.validation)


class Estimator:
    """Answers from the finished runs of a folder; what nothing tells gets None."""

    def __init__(self, runs_dir: str | Path) -> None:
        files = sorted(Path(runs_dir).glob("*/*/*/*/s*/result.json"))
        self.runs = [run for file in files if (run := measured(file.parent)) is not None]

    def seconds(self, cfg: Mapping[str, Any]) -> float | None:
        """Seconds for one run without its teacher."""
        found = self.estimate(cfg)
        return None if found is None else found.seconds

    def estimate(self, cfg: Mapping[str, Any]) -> Estimate | None:
        """The same with a range, by the runs that are most like it."""
        found = self._alike(cfg)
        return self._scaled(cfg) if found is None and "max_length" in cfg["task"] else found

    def size(self, cfg: Mapping[str, Any]) -> float | None:
        """Bytes of one run's folder: the model is most of it, so that any run of the backbone tells."""
        sizes = [run.size for run in self.runs if run.cfg["backbone"]["name"] == cfg["backbone"]["name"]]
        return float(median(sizes)) if sizes else None

    def _alike(self, cfg: Mapping[str, Any]) -> Estimate | None:
        kind = kind_of(cfg)
        told = [run.seconds(cfg) for run in self.runs if run.kind == kind]
        if not told:
            return None
        middle = float(median(told))
        by = "finished runs of the same method, task and model"
        if len(told) < ENOUGH:
            return Estimate.within(middle, FEW, by)
        return Estimate(middle, min(*told, middle / USUAL), max(*told, middle * USUAL), by)

    def _scaled(self, cfg: Mapping[str, Any]) -> Estimate | None:
        """By other runs of the backbone, scaled by tokens; the texts are known from any run of the task."""
        alike = [run for run in self.runs if _machine(run.cfg) == _machine(cfg)]
        texts = _texts(cfg, self.runs)
        here = [run for run in alike if run.task == task_of(cfg)]
        if texts is None or not alike:
            return None
        dense = _is_dense(cfg)
        rest = _nearest(
            [
                lambda run: run.task == task_of(cfg) and _is_dense(run.cfg) == dense,
                lambda run: run.task == task_of(cfg),
                lambda run: run.texts is not None and _is_dense(run.cfg) == dense,
                lambda run: run.texts is not None,
            ],
            alike,
        )
        rest = _nearest([lambda run: benched(run.cfg) == benched(cfg), lambda run: True], rest)
        if not rest:
            return None
        beside = median(
            run.rest * _beside(dense, texts) / _beside(_is_dense(run.cfg), run.texts or texts) for run in rest
        )
        fit = 0.0
        if trains(cfg):
            per_work = _per_work(cfg, alike)
            if per_work is None:
                return None
            fit = per_work * work(cfg, texts)
        by = "finished runs of the same task and model" if here else "finished runs of the model on other tasks"
        return Estimate.within(float(fit + beside), SAME_TASK if here else OTHER_TASK, by)


def _per_work(cfg: Mapping[str, Any], runs: Sequence[PastRun]) -> float | None:
    """Seconds of training per unit of work; None where none of the runs trained.

    By runs of the task, where these are of other methods times what this method costs against those on other tasks;
    else by the method's runs of other tasks, else by all. Short texts cost more a token, so the task counts first.
    """
    found: dict[tuple[Kind, str], list[float]] = {}
    for run in runs:
        if (seconds := run.per_work) is not None:
            found.setdefault((run.task, run.cfg["method"]["name"]), []).append(seconds)
    cost = {key: float(median(values)) for key, values in found.items()}
    task, method = task_of(cfg), cfg["method"]["name"]
    if (task, method) in cost:
        return cost[task, method]

    def against(other: str) -> float:
        tasks = [where for where, which in cost if which == method and (where, other) in cost]
        return float(median(cost[where, method] / cost[where, other] for where in tasks)) if tasks else 1.0

    here = [value * against(other) for (where, other), value in cost.items() if where == task]
    same = [value for (_, which), value in cost.items() if which == method]
    told = here or same or list(cost.values())
    return float(median(told)) if told else None


def _machine(cfg: Mapping[str, Any]) -> Kind:
    return cfg["backbone"]["name"], *(cfg["trainer"].get(key) for key in ("precision", "accelerator"))


def _is_dense(cfg: Mapping[str, Any]) -> bool:
    return is_dense(cfg["method"]["name"])


def _beside(dense: bool, texts: Texts) -> float:
    """What a run does beside training, in tokens of test texts: a pruned run tests the dense model as well."""
    return texts.test * (1 if dense else PRUNED_REST)


def _nearest(ranks: Sequence[Callable[[PastRun], bool]], runs: Iterable[PastRun]) -> list[PastRun]:
    """The runs that the first of the conditions which any meets is true of."""
    some = list(runs)
    return next((found for fits in ranks if (found := [run for run in some if fits(run)])), [])


def _texts(cfg: Mapping[str, Any], runs: Iterable[PastRun]) -> Texts | None:
    """The texts that a run will read, by finished runs of the task; None where these read a part and it wants all."""
    known = [(run.texts, run.rows) for run in runs if run.task == task_of(cfg) and run.texts is not None]
    whole = [texts.rows for texts, rows in known if rows is None]
    train, asked = cfg["data"]["train_rows"], cfg["data"]["eval_rows"]
    if not known or (train is None and not whole):
        return None
    most = max((texts for texts, _ in known), key=lambda texts: (texts.test, texts.rows))
    share = min(1.0, asked / most.tests) if asked else 1.0
    rows = train or max(whole)  # the most, because max_steps may have cut an epoch
    if train and whole:
        rows = min(train, max(whole))
    return replace(most, rows=float(rows), validation=most.validation * share, test=most.test * share)


def measured(folder: Path) -> PastRun | None:
    """What the run in a folder took; None where it does not say, or went on after an interruption."""
    try:
        result = RunFolder(folder, "").result()
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        cfg = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        if result is None or result.seconds is None or manifest.get("resumed"):
            return None  # of one that was resumed the clock began anew
        seconds = result.seconds
        steps = [row["step"] for row in read_jsonl(folder / "metrics.jsonl") if isinstance(row.get("step"), int)]
        fit = float(seconds.get("fit", 0.0))
        epochs = float(cfg["trainer"].get("epochs", 1))
        taken = max(steps) + 1 if steps and fit else 0
        return PastRun(
            kind=kind_of(cfg),
            cfg=cfg,
            steps=taken,
            epochs=epochs,
            rows=cfg["data"]["train_rows"],
            fit=fit,
            rest=float(seconds["total"]) - fit - float(seconds.get("teacher", 0.0)),
            size=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
            texts=_read(result, manifest, cfg, taken / epochs),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return None  # half-written, or of an older version: it tells nothing


def _read(result: AnyResult, manifest: Mapping[str, Any], cfg: Mapping[str, Any], steps: float) -> Texts | None:
    """How many texts of which length a run read, with so many steps an epoch; None where it does not say."""
    if (texts := manifest.get("texts")) is not None:
        tokens = {name: float(one["rows"] * one["tokens"]) for name, one in texts.items()}
        train, tests = texts["train"], float(texts["test"]["rows"])
        return Texts(float(train["rows"]), float(train["tokens"]), tests, tokens["validation"], tokens["test"])
    if "max_length" not in cfg["task"]:  # text without lengths, as weights are pruned on
        return None
    # written before the manifest told: as if all splits were as the test
    rows = cfg["data"]["train_rows"] or steps * cfg["trainer"]["batch_size"]
    length, tests = float(result.mean_length), float(result.score.rows)
    return Texts(float(rows), length, tests, tests * length, tests * length) if rows else None
