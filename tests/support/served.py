"""A server with a stand-in for the model, and its client."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import asynccontextmanager, contextmanager

import httpx2

from prunekit.cli.settings import parse_settings
from prunekit.serving.address import bind, listen
from prunekit.serving.app import build_app
from prunekit.serving.connections import Connections
from prunekit.serving.model import ReadText, Served
from prunekit.serving.requests import RequestError
from prunekit.serving.server import Server


class StandIn:
    """A model that answers a text with its length, once `go` is set."""

    def __init__(self):
        self.go = threading.Event()
        self.go.set()
        self.busy = threading.Event()
        self.computed = []

    def read(self, texts):
        items = [ReadText(map(ord, "".join(text.parts))) for text in texts]
        for item, text in zip(items, texts, strict=True):
            item.place = text.place
        return items

    def compute(self, batch):
        words = ["".join(map(chr, item)) for item in batch]
        self.computed += words
        self.busy.set()
        assert self.go.wait(20)
        if "bad" in words:
            raise RuntimeError("no such instruction")
        return [
            RequestError(422, item.place, "finite numbers", "leave it out")
            if word == "infinite"
            else {"label": str(len(word)), "scores": {"score": float(len(word))}, "tokens": len(word)}
            for item, word in zip(batch, words, strict=True)
        ]


def settings(*words):
    return parse_settings("serve", list(words))


def one(model, **about):
    """A stand-in as the only model of a server."""
    return {"synthetic": Served("synthetic", model, {"task": "synthetic", "max_length": 512}, **about)}


@asynccontextmanager
async def serving(models, *words, tokens=()):
    """Yield a client of the application, and the application."""
    app = build_app(models, settings(*words), tokens=tokens)
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client, app


def predict(client, *texts, **more):
    return asyncio.create_task(client.post("/predict", json={"texts": list(texts), **more}))


async def hold(client, model):
    """Send a request that is being computed until `go` is set."""
    model.go.clear()
    first = predict(client, "held")
    assert await asyncio.to_thread(model.busy.wait, 20)
    return first


@contextmanager
def running(models, *words):
    """Yield a server that runs in a thread, which has ended after the block; `server.address` is where."""
    given = settings(*words)
    connections = Connections(given["connections"], given["read_s"])
    app = build_app(models, given, connections=connections)
    server = Server(app, connections, given["drain_s"])
    with bind("127.0.0.1", 0) as place:
        server.address, server.place, server.clients = listen(place), place.getsockname(), []
        server.thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        server.thread.start()
        try:
            yield server
        finally:
            server.should_exit = True
            for served in models.values():
                if isinstance(served.model, StandIn):
                    served.model.go.set()
            server.thread.join(20)
            for client in server.clients:
                client.close()
            assert not server.thread.is_alive()


def said(connection, seconds=10):
    """Everything that a server sends until it closes the connection."""
    connection.settimeout(seconds)
    answer = b""
    try:
        while chunk := connection.recv(65536):
            answer += chunk
    except ConnectionResetError:
        pass
    return answer


def opened(server, data=b""):
    """A connection to a running server, over which this was sent; it is closed with the server."""
    connection = socket.create_connection(server.place)
    server.clients.append(connection)
    connection.sendall(data)
    return connection
