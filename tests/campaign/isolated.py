"""Functions that run in a process of their own: with little memory and time, and watched for code that is executed."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunekit.config.errors import ConfigError

ROOM = 3 * 2**30  # bytes of memory beside what the process has
SECONDS = 60  # of CPU time
WALL_S = 600
NEVER = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
)


@dataclass(frozen=True)
class Told:
    """What a function came to: `kind` is returned, refused, raised, ended by a signal, or slow; and what ran."""

    kind: str
    what: str
    executed: list[str] = field(default_factory=list)


def isolated(function: Callable[[], Any], evil: str) -> Told:
    """Call a function in a forked process; `evil` is in the names of modules that must not be imported."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _tell(function, evil, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        content = stream.read()
    _, status = os.waitpid(pid, 0)
    if not content:
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if ended in (signal.SIGXCPU, signal.SIGALRM):
            return Told("slow", f"more than {SECONDS} s")
        return Told("ended", signal.Signals(ended).name if ended else f"exit code {os.waitstatus_to_exitcode(status)}")
    return Told(**json.loads(content))


def _tell(function: Callable[[], Any], evil: str, writing: int) -> None:
    """Call the function, write what it came to, and end the process."""
    executed: list[str] = []

    def heard(event: str, given: tuple[Any, ...]) -> None:
        if event in NEVER or (event == "import" and evil in str(given[0])):
            executed.append(f"{event} {str(given[:1])[:80]}")

    try:
        null = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(null, number)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
        spent = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(spent.ru_utime + spent.ru_stime) + SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(WALL_S)
        sys.addaudithook(heard)
        try:
            told = Told("returned", str(function()))
        except (ConfigError, FileNotFoundError) as error:
            told = Told("refused", str(error))
        except BaseException as error:
            told = Told("raised", "".join(traceback.format_exception(error))[-1500:])
        content = json.dumps({**vars(told), "executed": sorted(set(executed))})
        with os.fdopen(writing, "wb") as stream:
            stream.write(content.encode("utf-8", "backslashreplace"))
    finally:
        os._exit(0)
