"""Damage of every file that a run reads back: a flipped bit, a cut end, another run's file, no file."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from unittest import mock

from campaign.frame import REFUSED, SAME, SILENT, UNTRIED, Case, place_for
from campaign.small_runs import JOBS, Job, at_home, differing, finished, judge
from prunekit.config.errors import ConfigError
from prunekit.models.pretrained import load_hf
from prunekit.pipelines.tokens import pipeline
from prunekit.runs.finished import open_run

TITLE = "damaged files"
LONG, SHORT = 1000, 2
SWAPPED, WITH_SEAL = "another run's", "another run's with its seal"
HARMS = ("header", "middle", "end", "zeros", "cut", "longer", SWAPPED, WITH_SEAL, "removed")
BLOCK = 512  # bytes, as a disk loses them
# what a killed run left; a finished run that is asked for again, and opened; a run that is repeated with its caches
ALL = ("trained", "finished", "opened", "cached")
METHODS = {"top": ALL, "topk": ALL, "lat": ALL, "wanda": ("finished", "cached"), "dpruner": ("finished", "cached")}


def cases(count: int, rng: random.Random, folder: Path) -> Iterator[Case]:
    """Yield damages: a state of a run, a file in it, and a harm."""
    for _ in range(count):
        name = rng.choice(list(METHODS))
        state = rng.choice(METHODS[name])
        file, harm = rng.choice(targets(name, state, folder)), rng.choice(HARMS)
        hurting = partial(hurt, harm=harm, spot=rng.random(), bit=rng.randrange(8))
        yield Case(f"{name}, {state}: {harm} of {file}", partial(attack, name, state, folder, file, hurting))


@cache
def prepared(name: str, state: str, folder: Path) -> Path:
    """Return a folder with `own`, a run to harm, and `other`, the same with another seed."""
    job, other, base = JOBS[name], Job([*JOBS[name].words, "seed=2"]), folder / f"{name}-{state}"
    shutil.copytree(finished(name, folder), base / "own")
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


@cache
def targets(name: str, state: str, folder: Path) -> list[Path]:
    """Return the files that the command, or who opens the run, reads, relative to the folder; seals included."""
    job, base = JOBS[name], prepared(name, state, folder)
    with place_for("read", folder, base / "own") as place, place_for("links", folder) as links:
        files = [path for path in sorted(place.rglob("*")) if path.is_file() and not path.name.startswith(".lock")]
        for number, path in enumerate(files):
            os.utime(path, ns=(0, path.stat().st_mtime_ns))
            os.link(path, links / str(number))  # which stays when the file is replaced or removed
        again(job, place, state)
        read = [
            path.relative_to(place) for number, path in enumerate(files) if (links / str(number)).stat().st_atime_ns > 0
        ]
    assert read, "nothing was read: is this file system mounted with noatime?"
    return read


def again(job: Job, place: Path, state: str) -> None:
    """Do what is done with a run in a state."""
    if state == "opened":
        with at_home(place):
            load_hf(open_run(job.folder(place)).model)
    else:
        job.run(place)


def attack(name: str, state: str, folder: Path, file: Path, hurting: Callable[..., None]) -> str:
    """Harm a copy, and return what becomes of it."""
    job, base = JOBS[name], prepared(name, state, folder)
    truth = job.truth(finished(name, folder))
    with place_for("damage", folder, base / "own") as place:
        before = contents(place / file)
        hurting(place / file, counterpart(base / "other", file))
        if contents(place / file) == before:
            return UNTRIED
        return opened(job, place, truth) if state == "opened" else judge(job, place, truth)


def opened(job: Job, place: Path, truth: dict[str, str]) -> str:
    """Open a finished run, as export and bench do; a way on is to give its command again, or to restore the file."""
    try:
        again(job, place, "opened")
    except ConfigError as error:
        if len(str(error).splitlines()) > 3:
            raise
        return REFUSED
    found = job.truth(place) | {"record": truth["record"]}  # which nobody reads who opens a run
    return SAME if found == truth else f"{SILENT}: {differing(found, truth)}"


def contents(file: Path) -> list[bytes | None]:
    """Return what is in a file and in its seal; None where there is none."""
    return [path.read_bytes() if path.is_file() else None for path in (file, seal_of(file))]


def seal_of(file: Path) -> Path:
    """Return where the seal of a file is, if it has one."""
    return file.with_name(f".{file.name}.sha256")


def counterpart(other: Path, file: Path) -> Path | None:
    """Return the file of the other run that has the same place; None without one."""
    found = [path for path in sorted(other.rglob(file.name)) if path.parent.name == file.parent.name]
    return found[0] if found else None


def hurt(path: Path, other: Path | None, harm: str, spot: float, bit: int) -> None:
    """Do one harm to a file; `spot`, from 0 to 1, and `bit` say where. Of another run's files there may be none."""
    content = bytearray(path.read_bytes())
    size = len(content)
    if harm == "removed":
        path.unlink()
    elif harm == "longer":
        path.write_bytes(content + bytes([bit]) * (1 + int(100 * spot)))
    elif harm in (SWAPPED, WITH_SEAL):
        if other is not None:
            shutil.copy(other, path)
            if harm == WITH_SEAL and seal_of(other).is_file():
                shutil.copy(seal_of(other), seal_of(path))
    elif size:
        parts = {"header": (0, size // 50), "middle": (size // 50, size), "end": (size - 8, size)}
        first, last = parts.get(harm, (0, size))
        place = max(0, first + int(spot * (last - first)))
        if harm == "cut":
            del content[place:]
        elif harm == "zeros":
            content[place : place + BLOCK] = bytes(len(content[place : place + BLOCK]))
        else:
            content[place] ^= 1 << bit
        path.write_bytes(content)
