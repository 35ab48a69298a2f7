"""One run, from its configuration to its result. Imports no torch: errors and stored results are reported at once."""

from __future__ import annotations

import gc
import pkgutil
from contextlib import suppress
from functools import partial
from typing import Any

from prunekit.config.errors import ConfigError
from prunekit.config.places import free_space
from prunekit.console import say
from prunekit.environment import command
from prunekit.files import seal_folder
from prunekit.models.sources import find_source
from prunekit.pipelines.inputs import RunInputs
from prunekit.runs.finished import finished_result
from prunekit.runs.folder import MODEL, BusyError, RunFolder, discard_resume_points
from prunekit.runs.identity import canonical, teacher_config
from prunekit.runs.kinds import RunKind, kind_of
from prunekit.runs.plan import Plan, plan_run
from prunekit.runs.result import AnyResult
from prunekit.runs.storage import FULL, cache_of, explain, storage_errors

# kind of run -> its pipeline and the function that prints its result, imported when one is needed: torch takes seconds
PIPELINES = {
    "tokens": ("prunekit.pipelines.tokens.pipeline:Pipeline", "prunekit.results.summary:print_result"),
    "translation": (
        "prunekit.pipelines.tokens.translation:TranslationPipeline",
        "prunekit.results.summary:print_result",
    ),
    "weights": ("prunekit.pipelines.weights.pipeline:WeightPipeline", "prunekit.results.weight_summary:print_result"),
}

TEACHER = "prunekit.results.summary:print_teacher"


def train(cfg: dict[str, Any]) -> int:
    """Train, evaluate and report one configuration; return the exit code, 0 done or 3 budget or goal missed.

    The configuration decides the folder. A finished run is not repeated (unless `force`), an interrupted one resumes.

    Raises:
        ConfigError: something in the configuration cannot work; nothing slow has started then.
    """
    return run(cfg).exit_code


def run(cfg: dict[str, Any], *, wait: bool = True, teacher_for: Plan | None = None) -> AnyResult:
    """Do what `train` does, and return the result.

    A teacher that is run for another run, whose plan is `teacher_for`, prints a line and no table.

    Raises:
        BusyError: another process runs this or trains its teacher, and `wait` is false.
    """
    kind = kind_of(cfg)
    cfg = canonical(cfg)
    spec = kind.spec(cfg)
    folder = RunFolder.of(cfg)
    if (stored := _stored(folder, cfg, teacher_for is not None)) is not None:
        return stored
    backbone = find_source(cfg)
    source = kind.source(spec)
    kind.check(cfg, backbone)
    data = kind.read(spec, source, cfg)  # before there is a folder, which a typo would leave behind
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in FULL and (full := explain(error)) is not None:
            raise full from error
        raise ConfigError(
            f"runs_dir={cfg['runs_dir']}: {folder.path} cannot be made ({error.strerror}; "
            f"{free_space(folder.path)}).\nAllowed: a folder that can be written.\nGive another runs_dir=..."
        ) from error
    teacher = None if wait else teacher_config(cfg)
    if teacher is not None and (holder := RunFolder.of(teacher).holder()) is not None:
        raise BusyError(f"the teacher in {RunFolder.of(teacher).path} is being trained by {holder}")
    from prunekit.training.hardware import single_process  # torch takes seconds, and the answers above need none

    with storage_errors(folder.path, cache_of(cfg)), single_process(), folder.lock(timeout=None if wait else 0):
        # another process may have finished it while this one waited
        if (stored := _stored(folder, cfg, teacher_for is not None)) is not None:
            return stored
        folder.prepare(cfg, command())
        try:
            plan = plan_run(cfg)
            if teacher_for is None:
                say(plan.text)
            train_dense = partial(run, wait=wait, teacher_for=plan)
            inputs = RunInputs(cfg, folder, spec, source, data, backbone, train_dense, after_fit(plan, teacher_for))
            result = pipeline_of(kind)(inputs).execute()
        finally:
            gc.collect()  # a trainer and its modules refer to each other, and a sweep's next run needs their memory
        folder.check_present()
        seal_folder(folder.path / MODEL, folder.hash)
        folder.write_result(result)
        # only now: a kill before the result is written must not cost the training
        _tidy(folder, cfg)
    show(kind, result, folder, stored=False, teacher=teacher_for is not None)
    return result


def _stored(folder: RunFolder, cfg: dict[str, Any], teacher: bool) -> AnyResult | None:
    if cfg["force"]:
        return None
    result = finished_result(folder)
    if result is not None:
        with suppress(OSError):  # what is read only may still be looked at
            _tidy(folder, cfg)
        show(kind_of(cfg), result, folder, stored=True, teacher=teacher)
    return result


def _tidy(folder: RunFolder, cfg: dict[str, Any]) -> None:
    """Remove what a finished run does not need, also what a kill after its result left."""
    discard_resume_points(folder.checkpoints, keep_best=cfg["trainer"].get("keep_checkpoints", False))
    folder.remove_leftovers()


def after_fit(plan: Plan, teacher_for: Plan | None) -> float | None:
    """Return the seconds from the end of a run's training to the end of all; a teacher is followed by its pupil."""
    parts = [plan.after_fit] if teacher_for is None else [plan.after_fit, teacher_for.after_teacher]
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def pipeline_of(kind: RunKind) -> Any:
    """Import and return the pipeline class of a kind of run."""
    return pkgutil.resolve_name(PIPELINES[kind.name][0])


def show(kind: RunKind, result: AnyResult, folder: RunFolder, *, stored: bool, teacher: bool = False) -> None:
    """Print the result of a run, or a line of a teacher's; `stored` says that it was there already."""
    printer = TEACHER if teacher else PIPELINES[kind.name][1]
    pkgutil.resolve_name(printer)(result, folder.path, stored=stored)
