"""The command line: `prunekit train method=top ...`, which is `python train.py method=top ...`.

Exit codes: 0 done, 3 target missed, 4 bad configuration, 130 interrupted and resumable, 1 a crash, with its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import OmegaConf

from prunekit import __version__
from prunekit.config.composition import explain
from prunekit.config.errors import CRASHED, DONE, FROM_BEST_TO_WORST, INTERRUPTED, ConfigError
from prunekit.config.keys import options
from prunekit.config.search_path import conf_dir, prepare

# verb -> function(arguments) -> exit code; a module is imported when its verb is typed
VERBS = {
    "train": "prunekit.cli.main:train",
    "table": "prunekit.cli.table:main",
    "report": "prunekit.cli.report:main",
    "dashboard": "prunekit.cli.dashboard:main",
    "export": "prunekit.cli.export:main",
    "bench": "prunekit.cli.bench:main",
}

HELP = """prunekit: train, compare and deploy pruned Transformers.

  python train.py                                     ToP on BBC News with MiniLM, 3x fewer FLOPs
  python train.py method=top task=cola budget=0.4     another task, keep 40 % of the FLOPs
  python train.py experiment=top_cola                 a published recipe
  python train.py -m seed=1,2,3                       one run per value; --dry says what would run
  python train.py --cfg job                           print the configuration, run nothing

Groups, as group=option:

{groups}

Every key, as key=value, is printed by --cfg job and explained in conf/; Hydra's own flags by --hydra-help.
Exit codes: 0 done, 3 budget or goal missed, 4 bad configuration, 130 interrupted (the same command resumes)."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its code; without a verb it is `train`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments == ["--version"]:
            print(f"prunekit {__version__}")
            raise SystemExit(DONE)
        verb = arguments.pop(0) if arguments and arguments[0].isidentifier() else "train"
        if verb not in VERBS:
            near = difflib.get_close_matches(verb, VERBS, n=1)
            advice = f"Did you mean {near[0]}?" if near else "Settings are written as key=value."
            raise ConfigError(f"{verb} is not a command.\nAllowed: {', '.join(VERBS)}.\n{advice}")
        module, _, function = VERBS[verb].partition(":")
        raise SystemExit(getattr(importlib.import_module(module), function)(arguments))
    except ConfigError as error:
        raise SystemExit(error.tell()) from None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def train(arguments: Sequence[str]) -> int:
    """Composes the configuration with Hydra and runs it, or one job per value with -m.

    Returns the exit code, that of the worst job. Raises ConfigError before anything has started.
    """
    dry = "--dry" in arguments
    flags, overrides = _sorted([argument for argument in arguments if argument != "--dry"])
    if dry:  # a single run is a sweep of one job
        flags, overrides = [*flags, "--multirun"], [*overrides, "hydra.sweeper.dry=true"]
    if {"-m", "--multirun"} & set(flags):
        overrides = _of_swept_groups(overrides)
    if {"-h", "--help"} & set(flags):
        print(HELP.format(groups="\n".join(f"{group}: {', '.join(names)}" for group, names in options().items())))
        return DONE
    prepare(overrides)
    sys.argv = [sys.argv[0], *flags, *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra raises what it would print; `explain` says it shorter
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else CRASHED
    except Exception as error:
        explained = explain(error, overrides)
        if explained is None:
            raise
        raise explained from error
    return DONE


def _sorted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags with their values, and settings; both may be typed in any order. Raises ConfigError."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            overrides = list(get_args_parser().parse_intermixed_args(arguments).overrides)
    except SystemExit:
        problem = complaint.getvalue().strip().rpartition("error: ")[2] or "the arguments cannot be read"
        raise ConfigError(
            f"{problem}.\nAllowed: key=value, and the flags of --hydra-help.\nSettings have no dashes: seed=2."
        ) from None
    # from the end, because a flag's value may read like a setting and stands before the rest
    flags: list[str] = []
    left = list(overrides)
    for argument in reversed(arguments):
        if left and argument == left[-1]:
            left.pop()
        else:
            flags.insert(0, argument)
    return flags, overrides


def _of_swept_groups(overrides: Sequence[str]) -> list[str]:
    """Settings in which a key of a swept group is set by force: method=random,first method.train=false.

    Hydra composes a sweep once with its defaults before the jobs, and the default option may not have the key. Each job
    is checked by itself, so a key that its option does not have is still refused.
    """
    swept = {key for key, _, value in (given.partition("=") for given in overrides) if "," in value and "." not in key}
    return [f"++{given}" if given.partition(".")[0] in swept else given for given in overrides]


def job(config: Any) -> float:
    """One run, in the process that Hydra's launcher chose; in a sweep an error stops nothing but itself."""
    context = HydraConfig.get()
    if context.mode == RunMode.RUN:
        raise SystemExit(_attempt(config))
    from prunekit.pipelines.job import job as job_of_sweep

    return job_of_sweep(config)


def _attempt(config: Any) -> int:
    try:
        from prunekit.config.composition import configuration
        from prunekit.pipelines.run import train as run

        return run(configuration(config, HydraConfig.get()))
    except ConfigError as error:
        return error.tell()
    except Exception:
        traceback.print_exc()
        return CRASHED


class SweepExitCode(Callback):
    """Ends a sweep with the exit code of its worst job, whichever launcher and process ran it."""

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Reads the exit code that the sweep, or else each job, left in its folder."""
        folder = Path(OmegaConf.select(config, "hydra.sweep.dir"))
        if not folder.is_dir():  # a preview
            raise SystemExit(DONE)
        codes = [int(file.read_text()) for file in folder.rglob("exit_code")]
        raise SystemExit(max(codes, key=FROM_BEST_TO_WORST.index, default=CRASHED))
