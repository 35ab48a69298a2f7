"""Errors of configuration and the exit codes of commands."""

from __future__ import annotations

import sys
from typing import Any

DONE, CRASHED, MISSED, BAD_CONFIG, INTERRUPTED = 0, 1, 3, 4, 130
FROM_BEST_TO_WORST = (DONE, MISSED, BAD_CONFIG, CRASHED)  # of a sweep's jobs


class ConfigError(ValueError):
    """A configuration that cannot run; the message says what was given, what is allowed and what to do."""

    exit_code = BAD_CONFIG

    def tell(self) -> int:
        """Prints its three lines to stderr, and returns the exit code of the command that it ends."""
        print("\n".join(str(self).splitlines()[:3]), file=sys.stderr)
        return self.exit_code


def shown(value: Any) -> str:
    """A value as one types it on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return str(value)
