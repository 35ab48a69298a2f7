"""One job of a sweep: run its configuration, log what it prints, and never stop the sweep."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from prunekit.config.composition import configuration
from prunekit.config.errors import BAD_CONFIG, CRASHED, DONE, ConfigError
from prunekit.files import atomic_write_text
from prunekit.pipelines.run import run
from prunekit.runs.board import Board
from prunekit.runs.finished import finished_result
from prunekit.runs.folder import BusyError, RunFolder
from prunekit.runs.identity import canonical, teacher_config
from prunekit.runs.result import AnyResult
from prunekit.runs.storage import explain
from prunekit.runs.sweep import TEACHER_ONLY

WORST = -1.0  # objective of a job that has no score or missed its budget; no metric is lower


def job(config: Any) -> float:
    """Run one job of a sweep and return its objective. An error is logged and does not stop other jobs.

    The objective is the score on the validation split, or `WORST` if the budget is missed or there is no score.
    """
    context = HydraConfig.get()
    place = Path(context.runtime.output_dir)
    patient = "GridSweeper" not in str(context.sweeper._target_)  # a search needs an answer, a grid comes back later
    board = Board.read(place.parent)
    code, objective = DONE, WORST
    try:
        cfg = canonical(configuration(config, context))
    except ConfigError as error:
        code = BAD_CONFIG
        board.announce_failure(" ".join(context.overrides.task), str(error), None)
    else:
        teacher = teacher_config(cfg) if os.environ.get(TEACHER_ONLY) else None
        code, objective = _attempt(teacher or cfg, board, patient)
    with suppress(OSError):  # a full disk: the sweep itself says so at its end
        atomic_write_text(place / "exit_code", f"{code}\n")
    return objective


def _attempt(cfg: dict[str, Any], board: Board, patient: bool) -> tuple[int, float]:
    folder, name = RunFolder.of(cfg), board.name(cfg)
    try:
        if not cfg["force"] and (stored := finished_result(folder)) is not None:
            return stored.exit_code, objective_of(stored)
        if not patient and folder.holder() is not None:
            return DONE, WORST
        board.announce_start(name, folder)
        start = time.monotonic()
        with _logged(folder):
            result = run(cfg, wait=patient)
        board.announce_end(name, result, time.monotonic() - start)
        return result.exit_code, objective_of(result)
    except BusyError:
        return DONE, WORST  # another process runs it, and will report the outcome
    except ConfigError as error:
        code, message = error.exit_code, str(error)
    except Exception as error:
        explained = explain(error, folder.path)
        code, message = CRASHED, str(explained or f"{type(error).__name__}: {error}")
    with suppress(OSError):  # the disk is full: the line below is all that can be said
        folder.write_failure(code, message)
    board.announce_failure(name, message, folder)
    return code, WORST


@contextmanager
def _logged(folder: RunFolder) -> Iterator[None]:
    """Write everything printed, and any traceback, to the log of the run."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.log.open("a", encoding="utf-8", buffering=1) as log:
        print(f"---- {time.strftime('%Y-%m-%d %H:%M:%S')}, process {os.getpid()}", file=log)
        with redirect_stdout(log), redirect_stderr(log):
            try:
                yield
            except BusyError:
                raise
            except ConfigError as error:
                print(error)
                raise
            except Exception:
                traceback.print_exc()
                raise


def objective_of(result: AnyResult) -> float:
    """Return what a search maximises: the validation score, or `WORST` where the budget is missed."""
    return float(result.score.validation) if result.exit_code == DONE else WORST
