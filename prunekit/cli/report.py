"""`prunekit report`: compare finished runs on an HTML page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from prunekit.cli.table import Parser, conditions, no_match, nothing_finished
from prunekit.config.errors import ConfigError
from prunekit.files import atomic_write_text
from prunekit.report.html import page
from prunekit.report.page_data import study
from prunekit.report.rows import Found, collect, matching


def parser() -> Parser:
    """What the command takes."""
    found = Parser("prunekit report", description="Finished runs as one HTML file that needs nothing but a browser.")
    found.add_argument("paths", nargs="*", metavar="PATH", help="run folders or results files; runs")
    found.add_argument("--where", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
                       help="only these runs: task=cola,sst2 budget=2x trainer.lr=1e-4; * and ? match")  # fmt: skip
    found.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="report.html")
    found.add_argument("--title", default="Pruning report", help="what stands at the top")
    found.add_argument("--examples", type=int, default=500, metavar="N", help="texts in the token explorer; 500")
    return found


def main(arguments: Sequence[str]) -> int:
    """The command `prunekit report`; says where the page is, and what could not be read, on stderr.

    Returns 0. Raises ConfigError where there is nothing to show.
    """
    given = parser().parse_args(list(arguments))
    if given.examples < 0:
        raise ConfigError(
            f"--examples {given.examples} is no number of texts.\nAllowed: 0 and more.\nLeave it out for 500."
        )
    wanted = conditions(given.where)
    found = collect(given.paths or ["runs"])
    if not found.rows:
        raise nothing_finished(given.paths)
    runs = [dict(run) for run in matching(found.rows, wanted)]
    if not runs:
        raise no_match(given.where)
    numbers = study(Found(runs, found.problems, found.unfinished), given.title, given.examples)
    for problem in numbers["problems"]:
        print(f"note: {problem}", file=sys.stderr)
    text = page(numbers)
    try:
        atomic_write_text(given.out, text)
    except OSError as error:
        raise ConfigError(
            f"--out {given.out} cannot be written ({error.strerror}).\nAllowed: a file in a folder that can be written."
            "\nGive another --out."
        ) from error
    print(f"{given.out}: {len(runs)} runs, {len(text.encode()) / 1e6:.1f} MB")
    return 0
