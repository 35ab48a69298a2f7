"""Errors of configuration, how errors and values are shown, and the exit codes of commands."""

from __future__ import annotations

import sys
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


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 160 characters; the error's type where it has no message."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160]


def shown(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return str(value)
