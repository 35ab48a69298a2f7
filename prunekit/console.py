"""What a run prints: lines, one live status line, and how long things take."""

from __future__ import annotations

import logging
import shlex
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.live import Live
from rich.text import Text


def silence_libraries() -> None:
    """Silence library logging and known warnings, so that a run prints only its own output."""
    from transformers.utils import logging as transformers_logging  # half a second that most commands do without

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.*",
        ".*is smaller than the logging interval.*",
        ".*does not have many workers.*",
        ".*pip install sacremoses.*",  # Marian's tokenizer reads punctuation as it is without it: docs/translation.md
    ):
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def silence(*loggers: str, hide_warnings: bool = False) -> Iterator[None]:
    """Show only errors of these loggers ("" is the root), and no warnings if asked, within the block; then restore.

    With "transformers" its progress bars are hidden too.
    """
    with ExitStack() as restore:
        for logger in map(logging.getLogger, loggers):
            restore.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        if "transformers" in loggers:
            restore.enter_context(_bars_hidden())
        if hide_warnings:
            restore.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        yield


@contextmanager
def _bars_hidden() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging  # see `silence_libraries`

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


Item = TypeVar("Item")
CONSOLE = Console(highlight=False)
LIVE_SECONDS = 0.25  # between two refreshes of the live line
PLAIN_SECONDS = 10.0  # between two lines where nothing can be redrawn, as in a log file


def say(text: str) -> None:
    """Print a line, above the live line if there is one; it is never wrapped, so that a log keeps it whole."""
    CONSOLE.print(Text(text), soft_wrap=True)


class StatusLine:
    """One line that is redrawn on a terminal; elsewhere it is printed again, at most every `PLAIN_SECONDS`."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._next = time.monotonic() + (0.0 if CONSOLE.is_terminal else PLAIN_SECONDS)

    @property
    def due(self) -> bool:
        """Whether it is time for another update; asking is cheap."""
        return time.monotonic() >= self._next

    def update(self, parts: Sequence[str]) -> None:
        """Show the parts in this order; a terminal that is too narrow leaves out whole parts that do not fit."""
        if not CONSOLE.is_terminal:
            self._next = time.monotonic() + PLAIN_SECONDS
            say(SEPARATOR.join(parts))
            return
        self._next = time.monotonic() + LIVE_SECONDS
        if self._live is None:
            self._live = Live(console=CONSOLE, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(Text(fitted(parts, CONSOLE.width), no_wrap=True), refresh=True)

    def close(self) -> None:
        """Remove the live line."""
        if self._live is not None:
            self._live.stop()
            self._live = None


SEPARATOR = " | "


def fitted(parts: Sequence[str], width: int) -> str:
    """Return a line of the parts that fit into `width` columns, earlier ones first; the first part always."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + len(SEPARATOR) + len(part) <= width:
            line += SEPARATOR + part
    return line


def rate(count: float | int, seconds: float | int) -> str:
    """Return iterations per second; always these, so that two lines can be compared."""
    if count <= 0 or seconds <= 0:
        return "- it/s"
    return f"{count / seconds:.1f} it/s" if count >= seconds else f"{count / seconds:.2g} it/s"


def track(iterable: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items of an iterable with a status line, and print how long it took at the end, if there were any.

    `total` defaults to `len(iterable)` where there is one; without it there is no ETA.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    line, start, done = StatusLine(), time.monotonic(), 0
    try:
        for item in iterable:
            if line.due:
                line.update(_tracked(label, done, total, time.monotonic() - start))
            yield item
            done += 1
    finally:
        line.close()
    if total == 0:
        return
    seconds = time.monotonic() - start
    say(SEPARATOR.join([f"{label:<18}", str(done), rate(done, seconds), clock(seconds)]))


def _tracked(label: str, done: int, total: int | None, seconds: float) -> list[str]:
    if total is None:
        return [f"{label:<18}", str(done), rate(done, seconds)]
    share = f"{done}/{total}"
    left = [f"ETA {clock(seconds / done * (total - done))}"] if done else []
    return [f"{label:<18}", share, rate(done, seconds), *left]


def clock(seconds: float | int) -> str:
    """Return a time as 03:40 in minutes and seconds, from an hour on as 1:03:40."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def typed_path(path: Path | str) -> str:
    """Return a path as one types it in a shell, such that prunekit reads it as a path and not as a setting or flag."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith(("-", "~")) or "=" in text.partition("/")[0] else text)
