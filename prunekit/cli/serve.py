"""`prunekit serve`: answer requests over HTTP with the models of finished runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunekit.cli.settings import asks_for_help, parse_settings, print_help
from prunekit.config.errors import DONE, ConfigError
from prunekit.runs.finished import open_labelling
from prunekit.runtime.extras import MissingPackageError, need
from prunekit.serving.address import bind

MOST_CHARACTERS = 1_000_000  # of a file of tokens


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM or Ctrl-C, then finish what was accepted. Return 0.

    The port is opened when every model is loaded and has answered, so a server that can be reached works.

    Raises:
        ConfigError: a setting, a run, a model or an address with which this is not possible.
    """
    if asks_for_help(arguments):
        return print_help("serve")
    given = parse_settings("serve", arguments)
    check_sizes(given)
    tokens = read_tokens(given["tokens"])
    runs = [
        open_labelling(path, ", which this server does not support", "Use prunekit.load(folder) for it.", vectors=True)
        for path in given["run"] or [None]
    ]
    try:
        for package in ("fastapi", "uvicorn"):
            need(package, "prunekit serve")
    except MissingPackageError as error:
        raise ConfigError(str(error)) from error
    with bind(given["host"], given["port"]) as bound:
        # torch takes seconds to import: settings, runs and the address are checked before
        from prunekit.serving.model import load_all
        from prunekit.serving.server import serve

        what = ", ".join(str(run.path) for run in runs)
        answered = serve(bound, what, load_all(runs, given), given, tokens)
    print(f"answered {answered} requests", flush=True)
    return DONE


def check_sizes(given: Mapping[str, Any]) -> None:
    """Check that the largest request fits into the queue. Raises ConfigError."""
    if given["request_texts"] > given["queue"]:
        raise ConfigError(
            f"request_texts={given['request_texts']}, but queue={given['queue']}: such a request would never fit.\n"
            f"Allowed: request_texts up to {given['queue']}.\nGive a smaller number, or a longer queue."
        )


def read_tokens(path: str | None) -> list[str]:
    """Return the tokens in a file, one a line; none without a file.

    Raises:
        ConfigError: the file cannot be read, or holds no token, or one that no header could carry.
    """
    if path is None:
        return []
    try:
        with Path(os.path.expanduser(path)).open(encoding="ascii") as stream:
            text = stream.read(MOST_CHARACTERS + 1)  # a device may never end
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        tokens, problem = [], f"cannot be read ({reason})"
    else:
        is_long = len(text) > MOST_CHARACTERS
        tokens, problem = [] if is_long else text.split(), "is too long" if is_long else "holds no token"
    if not tokens:
        raise ConfigError(
            f"tokens={path} {problem}.\nAllowed: a file with one token in a line.\n"
            "Make one: python -c 'import secrets; print(secrets.token_urlsafe())' > tokens.txt"
        )
    return tokens
