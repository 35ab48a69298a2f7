"""Processes of `python train.py` that are killed at a chosen moment, and note what they were doing.

A moment is a share of what a whole run takes: of its CPU time, which does not depend on what else the machine does, or
of the changes that it makes to files, before one of which the process then kills itself.
"""

from __future__ import annotations

import functools
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from support.processes import start_process

from campaign.small_runs import as_small_runs

POLL_S = 0.002
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}
START, WRITING = "starting", "writing a file"
# what is done in which function
STAGES = {
    "preparing": [
        "prunekit.pipelines.tokens.pipeline:prepare",
        "prunekit.pipelines.weights.pipeline:load_model",
        "prunekit.pipelines.weights.pipeline:draw_calibration",
    ],
    "training": ["prunekit.pipelines.tokens.pipeline:fit"],
    "evaluating": [
        "lightning.pytorch.loops:_EvaluationLoop.run",
        "prunekit.pipelines.tokens.pipeline:evaluate_models",
        "prunekit.pipelines.tokens.pipeline:evaluate_other_splits",
        "prunekit.pipelines.weights.pipeline:evaluate_dense",
        "prunekit.pipelines.weights.pipeline:evaluate",
    ],
    "measuring statistics": ["prunekit.pipelines.weights.pipeline:StatisticsStore.collect"],
    "masking": [
        "prunekit.pipelines.weights.pipeline:allocate",
        "prunekit.pipelines.weights.pipeline:mask_by_sweep",
        "prunekit.pipelines.weights.pipeline:mask_by_score",
        "prunekit.pipelines.weights.pipeline:repair",
    ],
    "saving": [
        "prunekit.pipelines.tokens.pipeline:write_artifacts",
        "prunekit.pipelines.tokens.pipeline:save_model",
        "prunekit.pipelines.tokens.pipeline:describe_model",
        "prunekit.pipelines.weights.pipeline:save_model",
    ],
}
NAMES = [START, *STAGES, WRITING]


@dataclass(frozen=True)
class Moment:
    """When a process is killed: at so many CPU seconds, or before so many changes of files."""

    kind: Literal["cpu", "files"]
    at: float


@dataclass(frozen=True)
class Life:
    """What became of a process: its exit code, negative after a signal, and what it was doing when it ended."""

    code: int
    doing: str
    cpu: float
    files: int

    @property
    def was_killed(self) -> bool:
        """Whether it was killed while it ran."""
        return self.code == -signal.SIGKILL


class Living:
    """A process that runs, and that `look` kills when its moment has come."""

    def __init__(self, words: Sequence[str], place: Path, moment: Moment | None) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self.moment, self.place = moment, place
        self.marks = place / f".marks-{time.monotonic_ns()}"
        self.marks.write_bytes(bytes(16))
        at_change = int(moment.at) if moment is not None and moment.kind == "files" else 0
        arguments = ([*map(str, words)], str(place), dict(os.environ), str(self.marks), at_change)
        self.process: Any = start_process(_live, *arguments)
        self.cpu = 0.0

    def look(self) -> bool:
        """Kill the process if its moment has come; return whether it still runs."""
        with suppress(OSError):  # it has just ended
            self.cpu = _cpu_seconds(self.process.pid)
        if not self.process.is_alive():
            return False
        if self.moment is not None and self.moment.kind == "cpu" and self.cpu >= self.moment.at:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
            self.process.join()
            return False
        return True

    def end(self) -> Life:
        """Return what became of a process that no longer runs."""
        self.process.join()
        content = self.marks.read_bytes()
        self.marks.unlink()
        return Life(self.process.exitcode, NAMES[content[0]], self.cpu, int.from_bytes(content[8:16], "little"))


def live(*processes: tuple[Sequence[str], Path, Moment | None]) -> list[Life]:
    """Run processes at the same time until all have ended."""
    running = [Living(*given) for given in processes]
    try:
        while sum(one.look() for one in running):
            time.sleep(POLL_S)
        return [one.end() for one in running]
    finally:
        for one in running:
            if one.process.is_alive():
                one.process.kill()
                one.process.join()


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its threads: what clock_getcpuclockid gives on Linux."""
    return time.clock_gettime((~pid << 3) | 2)


# -- in the process ----------------------------------------------------------------------------------


def _live(words: list[str], place: str, environment: dict[str, str], marks: str, at_change: int) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(place)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(marks, "r+b") as stream:
        noted = mmap.mmap(stream.fileno(), 16)
    log = os.open(os.path.join(place, "log.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream_number in (1, 2):
        os.dup2(log, stream_number)
    _note_stages(noted)
    _count_changes(noted, place, at_change)
    from prunekit.cli.main import main
    from prunekit.runs import sweep

    sweep.POLL_SECONDS = 0.02
    sys.argv = ["train.py", *words]
    with as_small_runs():
        main(words)


def _note_stages(noted: mmap.mmap) -> None:
    """Have the process note the stage that it is in, as a number in `NAMES`."""
    from prunekit import files

    @contextmanager
    def within(number: int) -> Iterator[None]:
        outer, noted[0] = noted[0], number
        try:
            yield
        finally:
            noted[0] = outer

    def wrapped(function: Callable[..., Any], number: int) -> Callable[..., Any]:
        @functools.wraps(function)
        def noting(*args: Any, **kwargs: Any) -> Any:
            with within(number):
                return function(*args, **kwargs)

        return noting

    for stage, places in STAGES.items():
        for place in places:
            module, _, dotted = place.partition(":")
            owner: Any = sys.modules.get(module) or __import__(module, fromlist=["_"])
            *outer, name = dotted.split(".")
            for part in outer:
                owner = getattr(owner, part)
            setattr(owner, name, wrapped(getattr(owner, name), NAMES.index(stage)))
    write = files._written_beside

    @contextmanager
    def writing(path: Path) -> Iterator[Path]:
        with within(NAMES.index(WRITING)), write(path) as beside:
            yield beside

    files._written_beside = writing


def _count_changes(noted: mmap.mmap, place: str, last: int) -> None:
    """Count the changes of files below a folder, and kill the process before the last one; never with 0."""
    count = 0

    def heard(event: str, given: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            writes = isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not writes:
                return
        elif event not in CHANGES:
            return
        if not given or not isinstance(given[0], str | os.PathLike) or not os.fspath(given[0]).startswith(place):
            return
        count += 1
        noted[8:16] = count.to_bytes(8, "little")
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(heard)
