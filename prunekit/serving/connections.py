"""Open connections: how many there may be, and how long each may take to send a request or to read its answer.

uvicorn waits for ever for the head and the body of a request. Here a connection has `read_s` for a whole request; where
there are too many connections, the one that has sent nothing whole for the longest makes room.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from prunekit.serving.requests import RequestError


class Connections:
    """The open connections of a server, the one that has been of no use for the longest first."""

    def __init__(self, most: int, read_s: float | int) -> None:
        self.most = most
        self.read_s = read_s
        self._open: dict[Connection, None] = {}

    def __len__(self) -> int:
        """Return how many are open."""
        return len(self._open)

    def protocol(self, *arguments: Any, **named: Any) -> Connection:
        """Return the protocol of a new connection; uvicorn calls this."""
        return Connection(self, *arguments, **named)

    def admit(self, new: Connection) -> None:
        """Add a connection; if there are too many, close one that awaits no answer, or else the new one."""
        if len(self._open) < self.most:
            self._open[new] = None
            return
        useless = next((connection for connection in self._open if not connection.awaits_answer), None)
        if useless is None:
            new.refuse(
                RequestError(503, f"{len(self)} open connections", f"{self.most} connections", "try again in a second")
            )
            return
        self.forget(useless)
        useless.transport.abort()
        self._open[new] = None

    def renew(self, connection: Connection) -> None:
        """Put a connection last, because a whole request or answer went over it."""
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None

    def abort(self) -> None:
        """Close all connections, whatever is still to be sent."""
        for connection in list(self._open):
            connection.transport.abort()

    def forget(self, connection: Connection) -> None:
        """Remove a connection that is closed."""
        self._open.pop(connection, None)


class Connection(H11Protocol):
    """One connection, with a timer that runs while it is the client's turn."""

    def __init__(self, connections: Connections, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.all_connections = connections
        self._timer: asyncio.TimerHandle | None = None

    @property
    def awaits_answer(self) -> bool:
        """Whether a whole request is here and its answer is not sent."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    @property
    def is_reading(self) -> bool:
        """Whether a request is not here as a whole, or none has begun and no timer of uvicorn's runs."""
        if self.conn.their_state is h11.IDLE:
            return self.timeout_keep_alive_task is None or self.has_part_of_head
        return self.conn.their_state is h11.SEND_BODY

    @property
    def has_part_of_head(self) -> bool:
        """Whether a request has begun whose head is not here as a whole."""
        return bool(self.conn.trailing_data[0])

    # -- what asyncio and uvicorn call -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self.all_connections.admit(self)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop()
        self.all_connections.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """Write on."""
        super().resume_writing()
        self._watch()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        super().timeout_keep_alive_handler()
        self._watch()

    def shutdown(self) -> None:
        """Close the connection, now or after the answer that is computed; what is not here as a whole is refused."""
        if self.awaits_answer or not self.is_reading:
            super().shutdown()
        else:
            self.refuse(RequestError(503, "half a request", "requests before the shutdown", "try again"))
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self.refuse(RequestError(400, msg, "HTTP/1.1", "see docs/serving.md"))

    # -- the client's turn -----------------------------------------------------------------------------

    def _watch(self) -> None:
        """Start the timer if it is the client's turn, and stop it if not."""
        if not (self.is_reading or self.transport.is_closing() or self.flow.write_paused):
            self._stop()
            self.all_connections.renew(self)
        elif self._timer is None:
            self._timer = self.loop.call_later(self.all_connections.read_s, self._expire)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        if self.transport.is_closing() or self.flow.write_paused:
            self.transport.abort()
        else:
            seconds = f"{self.all_connections.read_s:g} s"
            self.refuse(RequestError(408, f"no whole request within {seconds}", seconds, "send it at once"))
            self._watch()

    def refuse(self, error: RequestError) -> None:
        """Answer a request that is not here as a whole, and close the connection."""
        nothing_came = error.status == 408 and self.conn.their_state is h11.IDLE and not self.has_part_of_head
        if not nothing_came and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.body).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            headers.append((b"connection", b"close"))
            reason = STATUS_PHRASES[error.status]
            response = h11.Response(status_code=error.status, headers=headers, reason=reason)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the application shall not answer as well
            self.cycle.message_event.set()
        self.transport.close()
