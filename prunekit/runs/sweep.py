"""A sweep that can be killed and repeated: it runs what is missing, shares runs with other processes, lists failures.

Its state is in the run folders: result.json marks a finished run, failed.json one that failed, a lock one that some
process is running. So the same command may be killed, repeated, or started twice at the same time. Imports nothing
heavy: the parent of a hundred jobs starts at once.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prunekit.config.composition import configuration
from prunekit.config.errors import BAD_CONFIG, CRASHED, DONE, FROM_BEST_TO_WORST, MISSED, ConfigError
from prunekit.config.identity import is_dense
from prunekit.console import clock, typed_path
from prunekit.files import atomic_write_text
from prunekit.runs.board import Board, _tell, title
from prunekit.runs.estimate import Estimator
from prunekit.runs.finished import finished_result
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import canonical, teacher_config
from prunekit.runs.inputs import cache_of_problems
from prunekit.runs.result import AnyResult

MOST_LAUNCHES = 3  # of one job; then it is listed as failed, although its folder does not say why
POLL_SECONDS = 5.0  # between two checks of runs that other processes are running
TEACHER_ONLY = "PRUNEKIT_TEACHER_ONLY"  # set for a job that is to train its teacher only


def _version(path: Path) -> tuple[int, int] | None:
    """Return what differs between two files of a name, one written over the other; None without a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


# -- all jobs, in the process that was started -------------------------------------------------------


@dataclass
class Planned:
    """A job of the grid: its configuration, or why it cannot run."""

    overrides: list[str]
    cfg: dict[str, Any] | None
    problem: str | None = None

    @cached_property
    def folder(self) -> RunFolder:
        """The folder of its result."""
        assert self.cfg is not None
        return RunFolder.of(self.cfg)

    @cached_property
    def teacher(self) -> RunFolder | None:
        """The folder of its teacher; None where it needs none."""
        assert self.cfg is not None
        cfg = teacher_config(self.cfg)
        return None if cfg is None else RunFolder.of(cfg)


IN_TITLE = ("task", "method", "backbone", "budget", "seed")


def settings_of(overrides: Sequence[str]) -> dict[str, str]:
    """Return the values that a job's overrides set, by key; Hydra's own and deletions are left out."""
    pairs = (given.lstrip("+").partition("=") for given in overrides if "=" in given)
    return {key: value for key, _, value in pairs if not key.startswith(("hydra.", "~"))}


def swept_keys(jobs: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys whose values differ between jobs, in the order given, but for those that every title has."""
    keys = list(dict.fromkeys(key for job in jobs for key in job if key not in IN_TITLE))
    return [key for key in keys if len({job.get(key) for job in jobs}) > 1]


def closing_lines(jobs: Sequence[Planned], names: Mapping[str, str], swept: Sequence[str]) -> list[str]:
    """Return the best run of each task and budget, and what to type next; nothing where no run is finished.

    The best has the highest validation score among the runs that met their budget; dense runs are no candidates where
    others are.
    """
    finished = [(job.folder, result) for job in jobs if (result := finished_result(job.folder)) is not None]
    if not finished:
        return []
    pruned = [pair for pair in finished if not is_dense(pair[1].method)] or finished
    groups: dict[tuple[str, str], list[tuple[RunFolder, AnyResult]]] = {}
    for folder, result in pruned:
        if result.exit_code == DONE:
            groups.setdefault((result.task, folder.path.parts[-2]), []).append((folder, result))
    lines = []
    for (task, budget), runs in sorted(groups.items()):
        folder, best = max(runs, key=lambda pair: pair[1].score.validation)
        score = f"{best.score.metric} {100 * best.score.pruned:.2f}, {best.budget.reached:.2f}x"
        among = f"best of {len(runs)} by validation" if len(runs) > 1 else "the only run"
        lines.append(f"best       {task} {budget}: {names[str(folder.path)]}   {score} ({among})   {folder.path}")
    runs_dir = typed_path(finished[0][0].path.parents[4])
    keys = [key for key in swept if "." in key]
    rows = f" rows={','.join(['method', 'budget', *keys])}" if keys else ""
    return [*lines, f"next       prunekit table {runs_dir}{rows}", f"           prunekit report {runs_dir}"]


class Sweep:
    """A grid of configurations; `compose` turns a list of overrides into Hydra's configuration."""

    def __init__(self, jobs: Sequence[list[str]], compose: Callable[[list[str]], Any], folder: Path) -> None:
        self.folder = folder
        self.asked = len(jobs)
        planned = [self._planned(list(job), compose) for job in jobs]
        if planned and all(job.problem is not None for job in planned):
            raise ConfigError(planned[0].problem or "")
        self.broken = [job for job in planned if job.problem is not None]
        # jobs that differ only in what has no effect, as a budget for dense, are one run
        self.jobs = list({job.folder.path: job for job in planned if job.problem is None}.values())
        # what was there already, by what it is: clocks are set back, and differ between machines
        folders = [folder for job in self.jobs for folder in (job.folder, job.teacher) if folder is not None]
        self._failed_before = {one.path: one.failure_id() for one in folders}
        self._results_before = {one.path: _version(one.path / "result.json") for one in folders}
        self._given_up: dict[Path, dict[str, Any]] = {}

    @cached_property
    def swept(self) -> list[str]:
        """The settings whose values tell jobs apart, besides those that every title has."""
        return swept_keys([settings_of(job.overrides) for job in self.jobs])

    @cached_property
    def names(self) -> dict[str, str]:
        """What each run is called, by its folder."""
        return {str(job.folder.path): self._name(job) for job in self.jobs}

    def _name(self, job: Planned) -> str:
        assert job.cfg is not None
        given = settings_of(job.overrides)
        return title(job.cfg, {key: given[key] for key in self.swept if key in given})

    def _planned(self, overrides: list[str], compose: Callable[[list[str]], Any]) -> Planned:
        try:
            config = compose(overrides)
            return Planned(overrides, canonical(configuration(config, config.hydra)))
        except ConfigError as error:
            return Planned(overrides, None, str(error))

    # -- state, as the run folders record it ------------------------------------------------------------

    def _done(self, folder: RunFolder, force: bool = False) -> bool:
        if finished_result(folder) is None:
            return False
        return not force or _version(folder.path / "result.json") != self._results_before.get(folder.path)

    def _failure(self, job: Planned) -> dict[str, Any] | None:
        """The failure of a job or its teacher since this sweep began; None without one."""
        if job.folder.path in self._given_up:
            return self._given_up[job.folder.path]
        if (own := job.folder.failure(self._failed_before[job.folder.path])) is not None:
            return own
        if job.teacher is None:
            return None
        if (teachers := job.teacher.failure(self._failed_before[job.teacher.path])) is not None:
            return teachers | {"message": f"its teacher failed: {teachers['message']}"}
        return None

    def _missing(self) -> list[Planned]:
        assert all(job.cfg is not None for job in self.jobs)
        return [job for job in self.jobs if not self._done(job.folder, bool((job.cfg or {})["force"]))]

    def _teachers(self, missing: Sequence[Planned]) -> dict[Path, Planned]:
        """The teachers still to be trained, each with a job that needs it."""
        found: dict[Path, Planned] = {}
        for job in missing:
            if job.teacher is not None and not self._done(job.teacher):
                found.setdefault(job.teacher.path, job)
        return found

    # -- running ---------------------------------------------------------------------------------------

    def run(self, launch: Callable[[list[list[str]], int], None]) -> None:
        """Launch what is missing until every job is done or has failed once, and write the worst exit code.

        `launch` takes lists of overrides and the number of the first one. Teachers run first, each once; a job that
        another process is running is left to it and checked again later.
        """
        missing = self._missing()
        teachers = self._teachers(missing)
        seconds = self._announce(missing, teachers)
        known = [value for value in seconds.values() if value is not None]
        usual = sum(known) / len(known) if known else 1.0
        runs = tuple((path, usual if value is None else value) for path, value in seconds.items())
        before = frozenset(found for found in self._failed_before.values() if found is not None)
        Board(time.time(), runs, before, self.names).write(self.folder)
        launched, waiting = 0, False
        launches: Counter[tuple[str, ...]] = Counter()
        while open_jobs := [job for job in self._missing() if self._failure(job) is None]:
            batch = self._ready(open_jobs)
            worn = [given for given in batch if launches[tuple(given)] >= MOST_LAUNCHES]
            if worn:
                for job in open_jobs:
                    if any(given[: len(job.overrides)] == job.overrides for given in worn):
                        self._give_up(job)
            elif batch:
                launches.update(map(tuple, batch))
                launch(batch, launched)
                launched += len(batch)
                waiting = False
            else:
                if not waiting:
                    _tell(f"waiting for {self._holders(open_jobs)}")
                    waiting = True
                time.sleep(POLL_SECONDS)
        self._conclude()

    def _give_up(self, job: Planned) -> None:
        """Record as failed a job that was launched and ended without a trace in its folder."""
        message = (
            f"was launched {MOST_LAUNCHES} times and left neither a result nor an error in {job.folder.path}: its "
            "process was killed, its disk is full, or its configuration differs where it runs (as with ${now:...} in "
            "runs_dir)"
        )
        self._given_up[job.folder.path] = {"exit_code": CRASHED, "message": message, "log": str(job.folder.log)}
        with suppress(OSError):  # it is listed all the same
            job.folder.path.mkdir(parents=True, exist_ok=True)
            job.folder.write_failure(CRASHED, message)

    def _ready(self, open_jobs: Sequence[Planned]) -> list[list[str]]:
        """The overrides of the jobs to launch now: teachers that no process trains, otherwise jobs with a teacher."""
        teachers = self._teachers(open_jobs)
        own = {job.folder.path: job for job in open_jobs}
        batch = []
        for path, job in teachers.items():
            if RunFolder(path, "").holder() is None:
                # a teacher that is itself a run of the grid is run as such
                only = f"+hydra.job.env_set.{TEACHER_ONLY}=1"
                batch.append(own[path].overrides if path in own else [*job.overrides, only])
        if batch:
            return batch
        free = (job for job in open_jobs if job.teacher is None or job.teacher.path not in teachers)
        return [job.overrides for job in free if job.folder.holder() is None]

    def _holders(self, jobs: Sequence[Planned]) -> str:
        folders = {job.folder.path: job.folder for job in jobs}
        folders |= {job.teacher.path: job.teacher for job in jobs if job.teacher is not None}
        holders = Counter(holder for folder in folders.values() if (holder := folder.holder()) is not None)
        return ", ".join(holders) or "another process"

    # -- reports ---------------------------------------------------------------------------------------

    def preview(self) -> None:
        """Report what a sweep would do, and do nothing but read and check what the missing runs are given.

        Raises:
            ConfigError: none of them can run.
        """
        missing = self._missing()
        self._announce(missing, self._teachers(missing))
        find_problem = cache_of_problems()
        problems = {self._name(job): find_problem(job.cfg or {}) for job in missing}
        refused = {name: problem for name, problem in problems.items() if problem is not None}
        if refused and len(refused) == len(problems):
            raise ConfigError(next(iter(refused.values())))
        for name, problem in refused.items():
            _tell(f"cannot run {name}: {problem.splitlines()[0]}")

    def _announce(self, missing: Sequence[Planned], teachers: dict[Path, Planned]) -> dict[Path, float | None]:
        """Report how much there is to do; return the seconds that each run will take, None where they are unknown."""
        doubles = self.asked - len(self.jobs) - len(self.broken)
        configs = {job.folder.path: job.cfg or {} for job in missing}
        extra = {path: teacher_config(job.cfg or {}) or {} for path, job in teachers.items() if path not in configs}
        parts = [f"{len(self.jobs)} runs" + f" ({doubles} of {self.asked} jobs are doubles)" * bool(doubles)]
        parts += [f"{len(self.jobs) - len(missing)} done before", f"{len(missing)} to run"]
        parts += [f"{len(extra)} teacher{'s' * (len(extra) > 1)} to train"] if extra else []
        parts += [f"{len(self.broken)} that cannot run"] if self.broken else []
        _tell(f"sweep      {', '.join(parts)}")
        if not missing:
            return {}
        # a runs_dir has its own runs to estimate from, and a sweep has one runs_dir
        estimator = Estimator((missing[0].cfg or {})["runs_dir"])
        found = {path: estimator.estimate(cfg) for path, cfg in [*extra.items(), *configs.items()]}
        sizes = [size for cfg in [*extra.values(), *configs.values()] if (size := estimator.size(cfg)) is not None]
        known = [one for one in found.values() if one is not None]
        if known:
            low, middle, high = (sum(getattr(one, name) for one in known) for name in ("low", "seconds", "high"))
            disk = f" and {sum(sizes) / len(sizes) * len(found) / 1e9:.2g} GB" if sizes else ""
            _tell(f"estimate   about {clock(middle)} ({clock(low)} to {clock(high)}) in one process{disk}")
            for by, count in Counter(one.by for one in known).most_common():
                _tell(f"           {count} {'run' if count == 1 else 'runs'} by {by}")
        if len(known) < len(found):
            lacking = len(found) - len(known)
            which = "no estimate yet" if not known else f"and {lacking} runs without an estimate yet"
            _tell(f"estimate   {which}: no comparable run has finished")
        return {path: None if one is None else one.seconds for path, one in found.items()}

    def _conclude(self) -> None:
        """Report what failed and what missed its budget; write the list and the worst exit code into the folder."""
        rows: list[dict[str, Any]] = [
            {"job": " ".join(job.overrides), "exit_code": BAD_CONFIG, "message": job.problem} for job in self.broken
        ]
        for job in self.jobs:
            row: dict[str, Any] = {"job": self._name(job), "overrides": job.overrides, "folder": str(job.folder.path)}
            if (failure := self._failure(job)) is not None:
                rows.append(row | {key: failure[key] for key in ("exit_code", "message", "log")})
            else:
                result = finished_result(job.folder)
                rows.append(row | {"exit_code": CRASHED if result is None else result.exit_code})
        codes = [int(str(row["exit_code"])) for row in rows]
        counted = Counter(codes)
        words = {DONE: "done", MISSED: "missed their budget", BAD_CONFIG: "cannot run", CRASHED: "crashed"}
        _tell(f"sweep      {', '.join(f'{counted[code]} {words[code]}' for code in words if counted[code])}")
        for row in rows:
            if row["exit_code"] == MISSED:
                _tell(f"missed     {row['job']}   {row['folder']}")
        for row in rows:
            if row["exit_code"] in (BAD_CONFIG, CRASHED):
                said = str(row.get("message") or "").splitlines()[:1]
                where = f"   log: {row['log']}" if "log" in row else ""
                _tell(f"failed     {row['job']}   {''.join(said)[:160]}{where}")
        for line in closing_lines(self.jobs, self.names, self.swept):
            _tell(line)
        text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
        atomic_write_text(self.folder / "summary.json", text)
        worst = max(codes, key=FROM_BEST_TO_WORST.index, default=DONE)
        atomic_write_text(self.folder / "exit_code", f"{worst}\n")
        for leftover in self.folder.glob("*/exit_code"):  # a job that found its run busy could not know the final code
            leftover.unlink()
        if any(row["exit_code"] == CRASHED for row in rows):
            print("the same command runs what is missing once more.", file=sys.stderr)
