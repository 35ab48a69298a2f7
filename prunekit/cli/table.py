"""`prunekit table`: compare finished runs in the terminal, or as Markdown, CSV or LaTeX."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from prunekit.config.errors import ConfigError
from prunekit.report.formats import WRITERS
from prunekit.report.measures import MEASURES
from prunekit.report.rows import (
    FIELDS,
    collect,
    matching,
    one_per_seed,
    save,
    with_teachers,
)
from prunekit.report.table import build, default_rows

FORMATS = ("markdown", "latex", "csv")
SPREADS = ("ci", "sd", "none")
TESTS = ("seeds", "examples")


class Parser(argparse.ArgumentParser):
    """argparse whose complaints end as every other wrong input."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        usage = " ".join(self.format_usage().split()).removeprefix("usage: ")
        raise ConfigError(f"{self.prog}: {message}.\nAllowed: {usage}\n{self.prog} --help explains each.")


def names(text: str) -> list[str]:
    """A comma-separated list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def conditions(given: Sequence[str], flag: str = "--where") -> dict[str, list[str]]:
    """`task=cola,sst2` as {"task": ["cola", "sst2"]}. Raises ConfigError for another form."""
    found: dict[str, list[str]] = {}
    for text in given:
        name, equals, values = text.partition("=")
        if not equals or not names(values):
            raise ConfigError(
                f"{flag} {text} is no condition.\nAllowed: name=value, or name=value,value.\n"
                f"Write it as {flag} task=cola,sst2 budget=2x."
            )
        found[name] = names(values)
    return found


def parser() -> Parser:
    """What the command takes."""
    found = Parser("prunekit table", description="Finished runs as one table over seeds.")
    found.add_argument("paths", nargs="*", default=None, metavar="PATH", help="run folders or results files; runs")
    found.add_argument("--where", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
                       help="only these runs: task=cola,sst2 budget=2x trainer.lr=1e-4; * and ? match")  # fmt: skip
    found.add_argument("--rows", type=names, metavar="NAMES", help="fields of a line; budget,method")
    found.add_argument("--cols", type=names, default=["task"], metavar="NAMES", help="fields of a column; task")
    found.add_argument("--metric", type=names, default=["score"], metavar="NAMES",
                       help=f"{', '.join(MEASURES)}, speedup_b1, speedup_b32_padded, or a metric as f1")  # fmt: skip
    found.add_argument("--spread", choices=SPREADS, default="ci", help="95 %% interval, standard deviation or nothing")
    found.add_argument("--best", action="store_true", help="of several configurations the best on validation")
    found.add_argument(
        "--test", choices=TESTS, default="seeds", help="what * is tested over; examples need run folders"
    )
    found.add_argument("--format", choices=FORMATS, default="markdown", help="markdown, latex or csv")
    found.add_argument("--save", type=Path, metavar="FILE", help="write the chosen runs into one JSON file")
    return found


def main(arguments: Sequence[str]) -> int:
    """The command `prunekit table`; the table goes to stdout, what was left out to stderr.

    Returns 0. Raises ConfigError where there is nothing to show.
    """
    given = parser().parse_args(list(arguments))
    wanted = conditions(given.where)
    found = collect(given.paths or ["runs"])
    for problem in found.problems:
        print(f"left out: {problem}", file=sys.stderr)
    if found.unfinished:
        many = "s" * (len(found.unfinished) > 1)
        print(f"not finished: {len(found.unfinished)} run{many}, as {found.unfinished[0]}", file=sys.stderr)
    if not found.rows:
        raise nothing_finished(given.paths)
    runs = matching(found.rows, wanted)
    if not runs:
        raise no_match(given.where)
    if given.save:
        save(with_teachers(one_per_seed(runs))[0], given.save)
        print(f"saved: {given.save}", file=sys.stderr)
    rows = given.rows or default_rows(runs, given.cols)
    table = build(runs, rows, given.cols, given.metric, best=given.best, order=wanted, test=given.test)
    for problem in table.problems:
        print(f"note: {problem}", file=sys.stderr)
    print(WRITERS[given.format](table, given.spread), end="")
    return 0


def nothing_finished(paths: Sequence[str]) -> ConfigError:
    """Nothing was found to show."""
    return ConfigError(
        f"{', '.join(map(str, paths or ['runs']))} holds no finished run.\n"
        "Allowed: folders of runs, and files written by prunekit table --save.\nTrain first, as python train.py."
    )


def no_match(where: Sequence[str]) -> ConfigError:
    """The conditions exclude each other."""
    return ConfigError(
        f"--where {' '.join(where)}: no run meets all of it.\n"
        f"Allowed: any of {', '.join(FIELDS)} and the configuration's keys.\nLeave one condition out."
    )
