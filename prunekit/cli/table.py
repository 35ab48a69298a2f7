"""`prunekit table`: compare finished runs in the terminal, or as Markdown, LaTeX or CSV."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from prunekit.cli.selection import parse_conditions, select_runs
from prunekit.cli.settings import asks_for_help, parse_settings, print_help
from prunekit.config.errors import DONE
from prunekit.report.formats import WRITERS
from prunekit.report.rows import collect, one_per_seed, save, with_teachers
from prunekit.report.table import build, default_rows


def main(arguments: Sequence[str]) -> int:
    """Print the table to stdout, and what was left out to stderr. Return 0.

    Raises:
        ConfigError: a setting that is not allowed, or nothing to show.
    """
    if asks_for_help(arguments):
        return print_help("table")
    given = parse_settings("table", arguments)
    conditions = parse_conditions(given)
    found = collect(given["paths"])
    for problem in found.problems:
        print(f"left out: {problem}", file=sys.stderr)
    if found.unfinished:
        many = "s" * (len(found.unfinished) > 1)
        print(f"not finished: {len(found.unfinished)} run{many}, as {found.unfinished[0]}", file=sys.stderr)
    runs = select_runs(found, given)
    if given["save"] is not None:
        save(with_teachers(one_per_seed(runs))[0], Path(given["save"]))
        print(f"saved: {given['save']}", file=sys.stderr)
    table = build(
        runs,
        given["rows"] or default_rows(runs, given["cols"]),
        given["cols"],
        given["metric"],
        best=given["best"],
        order=conditions,
        test=given["test"],
    )
    for problem in table.problems:
        print(f"note: {problem}", file=sys.stderr)
    print(WRITERS[given["format"]](table, given["spread"]), end="")
    return DONE
