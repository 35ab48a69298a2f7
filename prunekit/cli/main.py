"""The command line: `prunekit train method=top ...`, which is `python train.py method=top ...`.

Exit codes: 0 done, 3 target missed, 4 bad configuration, 130 interrupted and resumable, 1 a crash, with its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import pkgutil
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
from prunekit.cli.settings import HELP as HELP_WORDS
from prunekit.cli.settings import asks_for_help, summary
from prunekit.config.composition import configuration, explain, spelled_out
from prunekit.config.errors import CRASHED, DONE, FROM_BEST_TO_WORST, INTERRUPTED, ConfigError
from prunekit.config.keys import options
from prunekit.config.search_path import conf_dir, prepare
from prunekit.config.verbatim import quote_texts
from prunekit.runs.storage import storage_errors

# verb -> function(arguments) -> exit code; a module is imported when its verb is typed
VERBS = {
    "train": "prunekit.cli.main:train",
    "prune": "prunekit.cli.prune:main",
    "evaluate": "prunekit.cli.evaluate:main",
    "table": "prunekit.cli.table:main",
    "report": "prunekit.cli.report:main",
    "dashboard": "prunekit.cli.dashboard:main",
    "export": "prunekit.cli.export:main",
    "bench": "prunekit.cli.bench:main",
    "data": "prunekit.cli.data:main",
    "predict": "prunekit.cli.predict:main",
    "import": "prunekit.cli.imports:main",
    "push": "prunekit.cli.push:main",
    "new": "prunekit.cli.new:main",
    "serve": "prunekit.cli.serve:main",
}

HELP = """prunekit: train, compare and deploy pruned Transformers.

  prunekit VERB [key=value ...]                       `python train.py ...` is `prunekit train ...`
  prunekit VERB --help                                explains every setting of a verb

{verbs}

Settings without a verb are those of train. Exit codes: {codes}."""

TRAIN = "fine-tune a dense model and prune it."
TRAIN_HELP = """prunekit train: {summary}

  python train.py                                     ToP on BBC News with MiniLM, 3x fewer FLOPs
  python train.py method=top task=cola budget=0.4     another task, keep 40 % of the FLOPs
  python train.py experiment=top_cola                 a published recipe
  python train.py -m seed=1,2,3                       one run per value; --dry says what would run
  python train.py --cfg job                           print the configuration, run nothing
  python train.py --config-dir my_conf task=mine      my_conf/task/mine.yaml, a file of your own; the same for any group

Groups, as group=option:

{groups}

Every key, as key=value, is printed by --cfg job and explained in conf/; Hydra's own flags by --hydra-help.
Exit codes: {codes}."""
CODES = "0 done, 3 budget or goal missed, 4 bad configuration, 130 interrupted (the same command resumes)"


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows no "±" shows "?" instead of a traceback
            stream.reconfigure(errors="replace")
    try:
        with storage_errors():
            raise SystemExit(_run_verb(arguments))
    except ConfigError as error:
        raise SystemExit(error.tell()) from None
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the last checkpoint.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def _run_verb(arguments: Sequence[str]) -> int:
    if not arguments or (arguments[0] in HELP_WORDS and (len(arguments) == 1 or asks_for_help(arguments[1:]))):
        print(_help())
        return DONE
    if arguments[0] == "help":
        arguments = [arguments[1], "--help"]
    verb, rest = (arguments[0], arguments[1:]) if _is_word(arguments[0]) else ("train", arguments)
    if verb not in VERBS:
        near = difflib.get_close_matches(verb.lower(), VERBS, n=1)
        advice = f"Did you mean {near[0]}?" if near else "Settings are written as key=value."
        raise ConfigError(f"{verb} is not a command.\nAllowed: {', '.join(VERBS)}.\n{advice}")
    if list(rest) == ["--version"]:
        print(f"prunekit {__version__}")
        return DONE
    code: int = pkgutil.resolve_name(VERBS[verb])(list(rest))
    return code


def _is_word(argument: str) -> bool:
    """Return whether an argument is neither a setting nor a flag: then it is to be a verb."""
    return "=" not in argument and not argument.startswith(("-", "~", "+"))


def _help() -> str:
    lines = [f"  {verb:10} {TRAIN if verb == 'train' else summary(verb)}" for verb in VERBS]
    return HELP.format(verbs="\n".join(lines), codes=CODES)


def train(arguments: Sequence[str]) -> int:
    """Compose the configuration with Hydra and run it, or one job per value with -m.

    Return the exit code, that of the worst job. Raise ConfigError before anything has started.
    """
    dry = "--dry" in arguments
    flags, overrides = _split([argument for argument in arguments if argument != "--dry"])
    overrides = quote_texts(spelled_out(overrides), swept=bool({"-m", "--multirun"} & set(flags)))
    if dry:  # a single run is a sweep of one job
        flags, overrides = [*flags, "--multirun"], [*overrides, "hydra.sweeper.dry=true"]
    if {"-m", "--multirun"} & set(flags):
        overrides = _force_swept_keys(overrides)
    if asks_for_help([*flags, *overrides]):
        groups = "\n".join(f"{group}: {', '.join(names)}" for group, names in options().items())
        print(TRAIN_HELP.format(summary=TRAIN, groups=groups, codes=CODES))
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


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return flags with their values, and settings; both may be typed in any order. Raise ConfigError."""
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


def _force_swept_keys(overrides: Sequence[str]) -> list[str]:
    """Return settings in which keys of a swept group are set by force: method=random,first method.train=false.

    Hydra composes a sweep once with its defaults before the jobs, and the default option may not have the key. Each job
    is checked by itself, so a key that its option does not have is still refused.
    """
    swept = {key for key, _, value in (given.partition("=") for given in overrides) if "," in value and "." not in key}
    return [f"++{given}" if given.partition(".")[0] in swept else given for given in overrides]


def job(config: Any) -> float:
    """Run one configuration, in the process that Hydra's launcher chose; in a sweep an error stops this job alone."""
    context = HydraConfig.get()
    if context.mode == RunMode.RUN:
        raise SystemExit(_run_once(config))
    from prunekit.pipelines.job import job as job_of_sweep  # its log needs transformers, and --help does not

    return job_of_sweep(config)


def _run_once(config: Any) -> int:
    try:
        from prunekit.pipelines.run import train as run  # not at the top: --help and --cfg job run nothing

        with storage_errors():
            return run(configuration(config, HydraConfig.get()))
    except ConfigError as error:
        return error.tell()
    except Exception:
        traceback.print_exc()
        return CRASHED


class SweepExitCode(Callback):
    """Hydra callback that ends a sweep with the exit code of its worst job, whichever launcher and process ran it."""

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Read the exit code that the sweep, or else each job, left in its folder."""
        folder = Path(OmegaConf.select(config, "hydra.sweep.dir"))
        if not folder.is_dir():  # a preview
            raise SystemExit(DONE)
        codes = [int(file.read_text()) for file in folder.rglob("exit_code")]
        raise SystemExit(max(codes, key=FROM_BEST_TO_WORST.index, default=CRASHED))
