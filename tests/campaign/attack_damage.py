"""Damage of every file that a run reads back: a flipped bit, a cut end, another run's file, no file."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest import mock

from support.damage import flip

from campaign.frame import REFUSED, SAME, Case
from campaign.small_runs import JOBS, Job, at_home, judge
from prunekit.config.errors import ConfigError
from prunekit.pipelines.tokens import pipeline
from prunekit.runs.finished import open_run

TITLE = "damaged files"
HARMS = ("header", "middle", "end", "cut", "swapped", "swapped with its seal", "removed")
# what a killed run left; a finished run that is asked for again, and opened; a run that is repeated with its caches
STATES = ("trained", "finished", "opened", "cached")


def cases(count: int, rng: random.Random, folder: Path) -> Iterator[Case]:
    """Yield damages: a state of a run, a file in it, and a harm."""
    bases: dict[tuple[str, str], Path] = {}
    for number in range(count):
        name = rng.choice(["top", "top", "topk", "wanda"])
        state = rng.choice(STATES if name != "wanda" else ("finished", "cached"))
        if (name, state) not in bases:
            bases[name, state] = prepare(name, state, folder / f"{name}-{state}")
        base = bases[name, state]
        file, harm = rng.choice(targets(base / "own")), rng.choice(HARMS)
        case = f"{name}, {state}: {harm} of {file}"
        yield Case(case, partial(attack, JOBS[name], state, base, folder / f"case-{number}", file, harm))


def prepare(name: str, state: str, base: Path) -> Path:
    """Make `whole`, a finished run, `own`, a run in the state to be harmed, and `other`, the same with another seed."""
    job, other = JOBS[name], Job([*JOBS[name].words, "seed=2"])
    job.run(base / "whole")
    shutil.copytree(base / "whole", base / "own")
    other.run(base / "other")
    if state in ("trained", "cached"):
        for one, place in ((job, base / "own"), (other, base / "other")):
            shutil.rmtree(one.folder(place))
            if state == "trained":
                kill_after_training(one, place)
    return base


def kill_after_training(job: Job, place: Path) -> None:
    """Train, and stop before the test, as a kill would."""
    with mock.patch.object(pipeline, "evaluate_models", side_effect=KeyboardInterrupt):
        try:
            job.run(place)
        except KeyboardInterrupt:
            return
    raise AssertionError("the run was not stopped")


def targets(place: Path) -> list[Path]:
    """Return the files of a folder that a run may read back, relative to it."""
    files = [path.relative_to(place) for path in place.rglob("*") if path.is_file()]
    kept = [path for path in files if path.suffix not in (".lock", ".md", ".csv", ".png", ".txt")]
    return sorted(path for path in kept if not path.name.startswith(".lock") and "native" not in path.parts)


def attack(job: Job, state: str, base: Path, place: Path, file: Path, harm: str) -> str:
    """Harm a copy, and return what becomes of it."""
    truth = job.truth(base / "whole")
    # at the path of the original: results name their folders
    shutil.copytree(base / "own", place)
    hurt(place / file, counterpart(base / "other", file), harm)
    if state == "opened":
        return opened(job, place)
    return judge(job, place, truth)


def opened(job: Job, place: Path) -> str:
    """Open a finished run, as export and bench do; a way on is to give its command again, or to restore the file."""
    try:
        with at_home(place):
            open_run(job.folder(place))
    except ConfigError as error:
        if len(str(error).splitlines()) > 3:
            raise
        return REFUSED
    return SAME


def counterpart(other: Path, file: Path) -> Path | None:
    """Return the file of the other run that has the same place; None without one."""
    found = [path for path in sorted(other.rglob(file.name)) if path.parent.name == file.parent.name]
    return found[0] if found else None


def hurt(path: Path, other: Path | None, harm: str) -> None:
    """Do one harm to a file."""
    size = path.stat().st_size
    if harm == "removed" or (size == 0 and "swapped" not in harm):
        path.unlink()
    elif harm == "cut":
        os.truncate(path, size // 2)
    elif "swapped" in harm:
        if other is not None:
            shutil.copy(other, path)
            seal = other.with_name(f".{other.name}.sha256")
            if harm.endswith("seal") and seal.is_file():
                shutil.copy(seal, path.with_name(seal.name))
    else:
        flip(path, {"header": 0.02, "middle": 0.5, "end": 1.0}[harm])
