"""`python train.py` in a process of its own, which can be killed, without paying for its imports each time.

The processes are forked from a server that has imported torch, Lightning and the pipelines; everything after the
imports, kills included, is as in a process that was started from a shell.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from functools import cache
from multiprocessing import forkserver
from unittest import mock

WARMED = "support.warmed"
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([WARMED])


def start_process(target, *args):
    """Start a process that calls a function, forked from the server."""
    _start_server()
    process = CONTEXT.Process(target=_call, args=(target, *args))
    process.start()
    return process


@cache
def _start_server():
    """Let the server find what it imports: it has no sys.path of ours, and is silent about what it does not find."""
    with mock.patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join(sys.path)}):
        forkserver.ensure_running()


def _call(target, *args):
    assert WARMED in sys.modules, "the server imported nothing"
    target(*args)


class Training:
    """A running `python train.py`; its exit code is negative where a signal ended it. What it prints goes to `log`."""

    def __init__(self, arguments, folder, log=os.devnull):
        self._process = start_process(_train, [*map(str, arguments)], str(folder), str(log), dict(os.environ))

    def is_running(self):
        return self._process.is_alive()

    def send(self, number):
        os.kill(self._process.pid, number)

    def wait(self, timeout=300):
        self._process.join(timeout)
        assert not self.is_running(), f"the run still goes on after {timeout} s"
        return self._process.exitcode

    def kill_when(self, ready, timeout=240):
        """Kill the run at the moment `ready` first holds; at its end where it never does."""
        deadline = time.monotonic() + timeout
        while self.is_running() and not ready():
            assert time.monotonic() < deadline, "the run never came to the point where it is to be killed"
            time.sleep(0.02)
        if self.is_running():
            self.send(signal.SIGKILL)
            with suppress(ProcessLookupError):  # its data workers would notice in five seconds only
                os.killpg(self._process.pid, signal.SIGKILL)
        return self.wait()


def _train(arguments, folder, log, environment):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(printed, stream)
    from prunekit.cli.main import main

    sys.argv = ["train.py", *arguments]
    main(arguments)
