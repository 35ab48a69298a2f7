"""Estimates of how long a run takes and how much disk it needs, from finished runs. Imports nothing slow.

Runs of the same kind tell most. Without one, other runs of the same task and backbone are used, or of another task
whose texts were measured: the cost of a training step is proportional to its tokens, whatever the method and the task.
The less is known, the wider the estimated range.
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
# by which factor a run may take less or more than estimated, from our own runs on a machine that did little else:
# estimated from three runs of its kind or more, from fewer, from runs of the same task and backbone, of other tasks
USUAL, FEW, SAME_TASK, OTHER_TASK = 1.2, 1.4, 2.0, 2.0
ENOUGH = 3
BACKWARD = 3  # forward passes that a training step costs
PRUNED_REST = 3.5  # how many times as long as a dense run a pruned one takes besides training, as measured


@dataclass(frozen=True)
class Estimate:
    """Seconds, and their likely range on a machine that does little else; `by` names the runs they come from."""

    seconds: float
    low: float
    high: float
    by: str

    @classmethod
    def within(cls, seconds: float, factor: float, by: str) -> Estimate:
        """Build an estimate with a range from `factor` times less to `factor` times more."""
        return cls(seconds, seconds / factor, seconds * factor, by)


@dataclass(frozen=True)
class Texts:
    """The texts that a run reads: how many, and how many tokens."""

    rows: float  # of the training split
    length: float  # mean tokens of a training text
    tests: float  # rows of the test split
    validation: float  # tokens of all texts of the split
    test: float  # the same


@dataclass(frozen=True)
class PastRun:
    """The time and the disk that one finished run took."""

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
        """Scale the time of this run to a configuration of the same kind with another schedule."""
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
        """The key of the texts that the run read."""
        return task_of(self.cfg)

    @property
    def per_work(self) -> float | None:
        """Seconds of training per unit of work; None where nothing was trained."""
        if not self.steps or self.texts is None:
            return None
        return self.fit / work(self.cfg, self.texts)


def kind_of(cfg: Mapping[str, Any]) -> Kind:
    """Return what two runs must share for one to predict the other's time; schedules, rates and seeds may differ."""
    trainer, task, data = cfg["trainer"], cfg["task"], cfg["data"]
    # runs that prune weights have neither lengths nor a training, but texts of their own
    corpora = [task.get(name) or {} for name in ("open", "domain")]
    return (
        cfg["method"]["name"],
        is_trained(cfg),
        *task_of(cfg),
        cfg["backbone"]["name"],
        *(trainer.get(key) for key in TRAINER),
        *(corpus.get(key) for corpus in corpora for key in ("samples", "seqlen")),
        *(task.get(key) for key in ("eval_tokens", "window", "stride")),
        # without all rows the number of steps follows from theirs; the two do not mix
        data["train_rows"] is None,
        data["eval_rows"],
        is_timed(cfg),
    )


def task_of(cfg: Mapping[str, Any]) -> Kind:
    """Return which texts a run reads, and the length they are cut at."""
    return cfg["task"]["name"], cfg["task"].get("max_length"), cfg["task"].get("file")


def is_trained(cfg: Mapping[str, Any]) -> bool:
    """Return whether a run trains at all."""
    return bool(cfg["method"].get("train", True))


def is_timed(cfg: Mapping[str, Any]) -> bool:
    """Return whether a run measures speed, where it can."""
    return bool(cfg.get("bench", {}).get("enabled"))


def work(cfg: Mapping[str, Any], texts: Texts) -> float:
    """Return the tokens that a training passes forward through a dense model: steps count thrice, evaluations once.

    A pruned step costs less: half way between dense and the budget. Measured steps of ToP cost 0.69 of dense ones at 3x
    and 0.78 at 2x. A method that computes dropped tokens while it trains costs more, which its own runs show.
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
    """Estimates from the finished runs of a folder; None where no run helps."""

    def __init__(self, runs_dir: str | Path) -> None:
        files = sorted(Path(runs_dir).glob("*/*/*/*/s*/result.json"))
        self.runs = [run for file in files if (run := read_past_run(file.parent)) is not None]

    def seconds(self, cfg: Mapping[str, Any]) -> float | None:
        """Estimate the seconds of one run without its teacher."""
        estimate = self.estimate(cfg)
        return None if estimate is None else estimate.seconds

    def estimate(self, cfg: Mapping[str, Any]) -> Estimate | None:
        """Estimate the same with a range, from the runs that are most alike."""
        estimate = self._by_kind(cfg)
        return self._by_tokens(cfg) if estimate is None and "max_length" in cfg["task"] else estimate

    def besides(self, cfg: Mapping[str, Any]) -> float | None:
        """Estimate the seconds that a run takes besides its training, from runs of its kind, or of its task and model.

        They are for reading data before it, and for tests, speed and saving after it.
        """
        like = [
            lambda run: run.kind == kind_of(cfg),
            lambda run: (
                run.task == task_of(cfg)
                and _machine(run.cfg) == _machine(cfg)
                and (_is_dense(run.cfg), is_timed(run.cfg)) == (_is_dense(cfg), is_timed(cfg))
            ),
        ]
        found = _first_matching(like, self.runs)
        return float(median(run.rest for run in found)) if found else None

    def size(self, cfg: Mapping[str, Any]) -> float | None:
        """Estimate the bytes of a run's folder, from any run of the backbone: the model is most of it."""
        sizes = [run.size for run in self.runs if run.cfg["backbone"]["name"] == cfg["backbone"]["name"]]
        return float(median(sizes)) if sizes else None

    def _by_kind(self, cfg: Mapping[str, Any]) -> Estimate | None:
        """Estimate from runs of the same kind."""
        kind = kind_of(cfg)
        times = [run.seconds(cfg) for run in self.runs if run.kind == kind]
        if not times:
            return None
        middle = float(median(times))
        by = "finished runs of the same method, task and model"
        if len(times) < ENOUGH:
            return Estimate.within(middle, FEW, by)
        return Estimate(middle, min(*times, middle / USUAL), max(*times, middle * USUAL), by)

    def _by_tokens(self, cfg: Mapping[str, Any]) -> Estimate | None:
        """Estimate from other runs of the backbone, scaled by tokens; any run of the task tells what its texts are."""
        alike = [run for run in self.runs if _machine(run.cfg) == _machine(cfg)]
        texts = _texts(cfg, self.runs)
        here = [run for run in alike if run.task == task_of(cfg)]
        if texts is None or not alike:
            return None
        dense = _is_dense(cfg)
        rest = _first_matching(
            [
                lambda run: run.task == task_of(cfg) and _is_dense(run.cfg) == dense,
                lambda run: run.task == task_of(cfg),
                lambda run: run.texts is not None and _is_dense(run.cfg) == dense,
                lambda run: run.texts is not None,
            ],
            alike,
        )
        rest = _first_matching([lambda run: is_timed(run.cfg) == is_timed(cfg), lambda run: True], rest)
        if not rest:
            return None
        besides = median(
            run.rest * _rest_work(dense, texts) / _rest_work(_is_dense(run.cfg), run.texts or texts) for run in rest
        )
        fit = 0.0
        if is_trained(cfg):
            per_work = _per_work(cfg, alike)
            if per_work is None:
                return None
            fit = per_work * work(cfg, texts)
        by = "finished runs of the same task and model" if here else "finished runs of the model on other tasks"
        return Estimate.within(float(fit + besides), SAME_TASK if here else OTHER_TASK, by)


def _per_work(cfg: Mapping[str, Any], runs: Sequence[PastRun]) -> float | None:
    """Return the seconds of training per unit of work; None where none of the runs trained.

    From runs of the task; those of other methods count times what this method costs against theirs on other tasks.
    Otherwise from the method's runs of other tasks, or else from all. Short texts cost more per token, so the task
    comes first.
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
    known = here or same or list(cost.values())
    return float(median(known)) if known else None


def _machine(cfg: Mapping[str, Any]) -> Kind:
    return cfg["backbone"]["name"], *(cfg["trainer"].get(key) for key in ("precision", "accelerator"))


def _is_dense(cfg: Mapping[str, Any]) -> bool:
    return is_dense(cfg["method"]["name"])


def _rest_work(dense: bool, texts: Texts) -> float:
    """Return the work besides training, in tokens of test texts: a pruned run tests the dense model as well."""
    return texts.test * (1 if dense else PRUNED_REST)


def _first_matching(conditions: Sequence[Callable[[PastRun], bool]], runs: Iterable[PastRun]) -> list[PastRun]:
    """Return the runs that meet the first condition that any of them meets."""
    some = list(runs)
    return next((matching for fits in conditions if (matching := [run for run in some if fits(run)])), [])


def _texts(cfg: Mapping[str, Any], runs: Iterable[PastRun]) -> Texts | None:
    """Return the texts that a run will read, from finished runs of the task; None if these read a part and it all."""
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


def read_past_run(folder: Path) -> PastRun | None:
    """Read what the run in a folder took; None where the folder does not tell, or the run was resumed."""
    try:
        result = RunFolder(folder, "").result()
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        cfg = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        if result is None or result.seconds is None or manifest.get("resumed"):
            return None  # the clock of a resumed run started again
        seconds = result.seconds
        steps = [row["step"] for row in read_jsonl(folder / "metrics.jsonl") if isinstance(row.get("step"), int)]
        fit = float(seconds.get("fit", 0.0))
        epochs = float(cfg["trainer"].get("epochs", 1)) or 1.0  # 0 where nothing is trained, nor a step taken
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
            texts=_texts_read(result, manifest, cfg, taken / epochs),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return None  # half-written, or of another version


def _texts_read(result: AnyResult, manifest: Mapping[str, Any], cfg: Mapping[str, Any], steps: float) -> Texts | None:
    """Return the texts that a run with `steps` steps per epoch read; None where its folder does not tell."""
    if (texts := manifest.get("texts")) is not None:
        tokens = {name: float(one["rows"] * one["tokens"]) for name, one in texts.items()}
        train, tests = texts["train"], float(texts["test"]["rows"])
        return Texts(float(train["rows"]), float(train["tokens"]), tests, tokens["validation"], tokens["test"])
    if "max_length" not in cfg["task"]:  # running text, which weights are pruned on
        return None
    # an older manifest has no texts: take all splits to be like the test
    rows = cfg["data"]["train_rows"] or steps * cfg["trainer"]["batch_size"]
    length, tests = float(result.mean_length), float(result.score.rows)
    return Texts(float(rows), length, tests, tests * length, tests * length) if rows else None
