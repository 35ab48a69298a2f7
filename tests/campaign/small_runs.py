"""The smallest runs of both pipelines, what they must come out with, and what became of a repeated command."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

from safetensors.torch import load_file
from support.weight_runs import SMALL as WEIGHTS

from campaign.frame import DEAD_END, REFUSED, REPAIRED, SAME, SILENT, quietly
from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.files import read_jsonl
from prunekit.pipelines import run as runs
from prunekit.pipelines.tokens import artifacts
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import canonical, teacher_config
from prunekit.runs.storage import storage_errors
from prunekit.training import fit

CHECKPOINT_S = 0.15  # so that trainings of a second have several

TOKENS = (
    "task=synthetic",
    "backbone=tiny",
    "trainer=debug",
    "task.synthetic_rows=48",
    "logger.wandb.enabled=false",
    "bench.enabled=false",
    "teacher.epochs=1",
    "trainer.epochs=2",
    "trainer.max_steps=16",
    "budget=1.5x",
    "budget_tolerance=0.5",
    "examples=16",
)


@dataclass(frozen=True)
class Job:
    """A command line; its runs, its caches and its backbone are below one folder."""

    words: Sequence[str]

    def placed(self, place: Path) -> list[str]:
        """Return the command line for a folder."""
        return [*self.words, f"runs_dir={place / 'runs'}", f"data.cache_dir={place / 'cache'}"]

    def cfg(self, place: Path) -> dict[str, Any]:
        """Return the configuration."""
        return canonical(compose(self.placed(place))[0])

    def folder(self, place: Path) -> Path:
        """Return the folder of the run."""
        return RunFolder.of(self.cfg(place)).path

    def teacher(self, place: Path) -> Path | None:
        """Return the folder of the teacher's run; None where there is none."""
        cfg = teacher_config(self.cfg(place))
        return None if cfg is None else RunFolder.of(cfg).path

    def run(self, place: Path) -> str:
        """Run the command in this process and return what it printed."""
        with at_home(place), quietly() as printed, storage_errors():  # as the command line does
            runs.run(self.cfg(place))
        return printed.getvalue()

    def truth(self, place: Path, *, teacher: bool = False) -> dict[str, str]:
        """Return what a run, and its `teacher`, came out with: digests of the weights, numbers, rows of the record."""
        found = truth_of(self.folder(place))
        if teacher and (dense := self.teacher(place)) is not None:
            found |= {f"teacher's {name}": value for name, value in truth_of(dense).items()}
        return found


def truth_of(folder: Path) -> dict[str, str]:
    """Return what is the same for every run of a configuration."""
    result = json.loads((folder / "result.json").read_text())
    numbers = {key: value for key, value in result.items() if key not in ("seconds", "command", "peak_memory_mib")}
    numbers.pop("reused", None)
    for part in (numbers.get("translation") or {}).values():
        if isinstance(part, dict):  # how long it took to translate is measured
            part.pop("cpu_seconds", None)
            part.pop("encoder_cpu_seconds", None)
    rows = [{key: value for key, value in row.items() if key != "time"} for row in _rows(folder)]
    found = {"numbers": json.dumps(numbers, sort_keys=True), "record": json.dumps(rows)}
    for path in sorted((folder / "model").glob("*.safetensors")):
        digest = hashlib.sha256()  # of the tensors: safetensors writes its notes in any order
        for name, tensor in sorted(load_file(path).items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        found[path.name] = digest.hexdigest()
    return found


def _rows(folder: Path) -> list[dict[str, Any]]:
    with suppress(ValueError):
        return read_jsonl(folder / "metrics.jsonl")
    return []


@contextmanager
def at_home(place: Path) -> Iterator[None]:
    """Have the user's cache below a folder, where it can be harmed, and run as small runs do."""
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(place / "home")}), as_small_runs():
        yield


@contextmanager
def as_small_runs() -> Iterator[None]:
    """Draw no plots, which take most of the time, and take checkpoints as often as long runs have several."""
    often = partial(fit.LastCheckpoint, seconds=CHECKPOINT_S)
    with (
        mock.patch.object(artifacts, "write_plots"),
        mock.patch.object(fit, "LastCheckpoint", lambda folder, *, seconds, owner: often(folder, owner=owner)),
    ):
        yield


JOBS = {
    "dense": Job([*TOKENS, "method=dense"]),
    "random": Job([*TOKENS, "method=random"]),
    "first": Job([*TOKENS, "method=first", "method.train=false"]),
    "topk": Job([*TOKENS, "method=topk"]),
    "threshold": Job([*TOKENS, "method=threshold"]),
    "ltp": Job([*TOKENS, "method=ltp", "method.hard_fraction=0.5"]),
    "top": Job([*TOKENS, "method=top"]),
    "top, open gates": Job([*TOKENS, "method=top", "method.init=open", "method.bins=8", "method.hard_fraction=0.5"]),
    "lat": Job([*TOKENS, "method=lat", "method.iterations=1", "method.search_rows=16"]),
    "tsdtp": Job([*TOKENS, "method=tsdtp"]),
    "dtp": Job([*TOKENS, "method=dtp"]),
    "magnitude": Job([*WEIGHTS, "method=magnitude"]),
    "wanda": Job([*WEIGHTS, "method=wanda", "method.weight_update=obs"]),
    "gblm": Job([*WEIGHTS, "method=gblm"]),
    "sparsegpt": Job([*WEIGHTS, "method=sparsegpt"]),
    "dpruner": Job([*WEIGHTS, "method=dpruner", "method.stream=true"]),
}

SMALL = [word for word in TOKENS if not word.startswith(("task=", "backbone="))]
TRANSLATION = [*SMALL, "task=parallel", "task.max_target_length=24", "backbone=tiny_translator", "budget=1.3x"]
SEVERAL = ["task.kind=multilabel", "task.metrics=[micro_f1]", "task.score=micro_f1"]
WORDS = ["task.kind=tokens", "task.labels=[O,B-LOC,I-LOC]", "task.metrics=[entity_f1]", "task.score=entity_f1"]
# of the other kinds of tasks, each of which has stages of its own
OTHER_KINDS = {
    "questions": Job([*SMALL, "task=squad2", "backbone=tiny", "method=topk", "budget=1.3x"]),
    "translation": Job([*TRANSLATION, "method=topk"]),
    "translation, ltp": Job([*TRANSLATION, "method=ltp", "method.hard_fraction=0.5"]),
    "labels of words": Job(["task=csv", *TOKENS[1:], *WORDS, "method=topk", "budget=1.3x"]),
    "several labels": Job([*TOKENS, *SEVERAL, "task.tune_thresholds=true", "method=topk"]),
}


@cache
def finished(name: str, folder: Path) -> Path:
    """Return where a job of this name has run to its end, once for all that need one; below a folder."""
    place = folder / f"finished-{name}"
    JOBS[name].run(place)
    return place


def judge(job: Job, place: Path, truth: dict[str, str], command: Callable[[], str] | None = None) -> str:
    """Give the command again, follow its advice once if it refuses, and return what became of the run."""
    give = command or partial(job.run, place)
    try:
        printed = give()
    except ConfigError as error:
        if len(str(error).splitlines()) > 3:
            raise
        if not follow(str(error), place):
            return f"{DEAD_END}: {error}"
        try:
            give()
        except ConfigError:
            return DEAD_END
        found = job.truth(place)
        return REFUSED if found == truth else f"{SILENT}: {differing(found, truth)}"
    found = job.truth(place)
    if found == truth:
        return (
            REPAIRED
            if re.search(r"not what was written|another run|is gone|cannot be read|made again|finished now", printed)
            else SAME
        )
    is_said = re.search(r"metrics\.jsonl is (gone|not what was written|a file of)", re.sub(r"\s+", " ", printed))
    is_whole = is_said and found | {"record": ""} == truth | {"record": ""}
    return REPAIRED if is_whole else f"{SILENT}: {differing(found, truth)}"


def differing(found: dict[str, str], truth: dict[str, str]) -> str:
    """Return the names of what differs from the truth."""
    return ", ".join(sorted(name for name in truth.keys() | found.keys() if truth.get(name) != found.get(name)))


def follow(advice: str, place: Path) -> bool:
    """Delete the file or folder that a message says to delete; return whether there was one."""
    named = [Path(word.rstrip(".,:;")) for word in re.findall(rf"{re.escape(str(place))}\S*", advice)]
    there = [path for path in named if path.exists()]
    if "elete" not in advice or not there:
        return False
    path = there[0]
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return True
