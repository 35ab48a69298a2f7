"""The server around the application: its socket, its signals, and an end that waits for answers but not for ever."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import uvicorn
from fastapi import FastAPI

from prunekit.config.errors import CRASHED
from prunekit.serving.address import listen
from prunekit.serving.app import build_app
from prunekit.serving.connections import Connections
from prunekit.serving.model import Served

# after the drain: first for clients to read that they are refused, then for the batch that is computed
LAST_WORDS_S, LAST_BATCH_S = 1.0, 2.0


class Server(uvicorn.Server):
    """uvicorn with an end in steps: accepted requests are answered, then refused, then cut off."""

    def __init__(self, app: FastAPI, connections: Connections, drain_s: float | int) -> None:
        config = uvicorn.Config(
            app,
            http=connections.protocol,  # type: ignore[arg-type]  # called as the class would be
            ws="none",
            proxy_headers=False,
            log_level="error",  # clients that send nonsense shall not fill the disk
            access_log=False,
        )
        super().__init__(config)
        self.app = app
        self.open_connections = connections
        self.drain_s = drain_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, drain, and end."""
        service, loop = self.app.state.service, asyncio.get_running_loop()
        service.close()
        steps = [
            loop.call_later(self.drain_s, service.give_up),
            loop.call_later(self.drain_s + LAST_WORDS_S, self.open_connections.abort),
        ]
        # a computation in a thread cannot be stopped: the process ends without it
        last = threading.Timer(self.drain_s + LAST_WORDS_S + LAST_BATCH_S, os._exit, [CRASHED])
        last.daemon = True
        last.start()
        await super().shutdown(sockets)
        last.cancel()
        for step in steps:
            step.cancel()


def serve(
    bound: socket.socket, what: str, models: Mapping[str, Served], given: Mapping[str, Any], tokens: Sequence[str]
) -> int:
    """Serve models until SIGTERM or Ctrl-C, then finish what was accepted. Return the number of answered requests."""
    connections = Connections(given["connections"], given["read_s"])
    app = build_app(models, given, tokens=tokens, connections=connections)
    server = Server(app, connections, given["drain_s"])
    # uvicorn raises the signal again when it is done, which must not kill this process
    signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
    print(f"serving {what} on {listen(bound)}", flush=True)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[bound])
    return sum(batcher.tally.outcomes["ok"] for batcher in app.state.service.batchers.values())
