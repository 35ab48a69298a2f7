"""Errors of configuration, how errors and values are shown, and the exit codes of commands."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from typing import Any

DONE, CRASHED, MISSED, BAD_CONFIG, INTERRUPTED = 0, 1, 3, 4, 130
FROM_BEST_TO_WORST = (DONE, MISSED, BAD_CONFIG, CRASHED)  # of a sweep's jobs


class ConfigError(ValueError):
    """A configuration that cannot run; the message says what was given, what is allowed and what to do."""

    exit_code = BAD_CONFIG

    def tell(self) -> int:
        """Print the three lines to stderr and return the exit code of the command that the error ends."""
        print("\n".join(str(self).splitlines()[:3]), file=sys.stderr)
        return self.exit_code


SHOWN = 80  # characters of a value in a message
LISTED = 8  # names in a message
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # one of a pair of surrogates: no Unicode, and no file can hold it


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 160 characters; the error's type where it has no message."""
    text = str(error).strip() or type(error).__name__
    return shorten(text.splitlines()[0], 2 * SHOWN)


def shown(value: Any) -> str:
    """Return a value as it is typed on the command line, for a message: on one line of at most 80 characters."""
    return shorten(typed(value))


def typed(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(typed, value))}]"
    return _written(str, value)


def quoted(value: Any) -> str:
    """Return a value of a file as Python writes it, for a message: on one line of at most 80 characters."""
    return shorten(_written(repr, value[: 2 * SHOWN] if isinstance(value, str | bytes) else value))


def listed(names: Iterable[Any], most: int = LISTED) -> str:
    """Return the first names for a message, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(shorten(typed(name), SHOWN // 2) for name in every[:most]) + more


def shorten(text: str, most: int = SHOWN) -> str:
    """Return a text on one line of at most so many characters; what cannot be printed is written as an escape."""
    line = "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in text[: most + 1])
    return line if len(line) <= most else f"{line[: most - 3]}..."


def shell_words(setting: str, value: str) -> str:
    """Return what to type in a shell to give a text, whatever is in it."""
    quote = "'" if '"' in value and "'" not in value else '"'
    return shlex.quote(f"{setting}={quote}{value}{quote}")


def _written(how: Callable[[Any], str], value: Any) -> str:
    try:
        return how(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return f"a number of {digits(value):,} digits" if isinstance(value, int) else f"a {type(value).__name__}"
    except RecursionError:
        return f"a {type(value).__name__} that is nested too deep"


def digits(number: int) -> int:
    """Return about how many decimal digits a whole number has, however long it is."""
    return int(abs(number).bit_length() * math.log10(2)) + 1
