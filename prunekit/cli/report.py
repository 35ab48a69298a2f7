"""`prunekit report`: compare finished runs on an HTML page."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from prunekit.cli.selection import select_runs
from prunekit.cli.settings import asks_for_help, parse_settings, print_help
from prunekit.config.errors import DONE, ConfigError
from prunekit.files import atomic_write_text
from prunekit.report.html import page
from prunekit.report.page_data import study
from prunekit.report.rows import Collection, collect


def main(arguments: Sequence[str]) -> int:
    """Write the page, print its path to stdout and what could not be read to stderr. Return 0.

    Raises:
        ConfigError: a setting that is not allowed, nothing to show, or a file that cannot be written.
    """
    if asks_for_help(arguments):
        return print_help("report")
    given = parse_settings("report", arguments)
    found = collect(given["paths"])
    runs = select_runs(found, given)
    numbers = study(Collection(runs, found.problems, found.unfinished), given["title"], given["examples"])
    for problem in numbers["problems"]:
        print(f"note: {problem}", file=sys.stderr)
    text, out = page(numbers), given["out"]
    try:
        atomic_write_text(out, text)
    except OSError as error:
        raise ConfigError(
            f"out={out} cannot be written ({error.strerror}).\nAllowed: a file in a folder that can be written."
            "\nGive another file."
        ) from error
    print(f"{out}: {len(runs)} runs, {len(text.encode()) / 1e6:.1f} MB")
    return DONE
