"""Serve a run's model over HTTP; requests that arrive together are computed as one packed batch.

    python examples/serve.py run=runs/<task>/<method>/<backbone>/<budget>/s<seed>-<hash> port=8000
    curl -s localhost:8000/predict -d '{"texts": ["The match ended in a draw."]}'

serve.yaml explains the settings, docs/serving.md the requests and answers. The queue and the batching are in
prunekit/runtime/batching.py; this file has the model, the validation of requests, and the HTTP endpoints.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script
from prunekit.config.errors import BAD_CONFIG, DONE, ConfigError
from prunekit.runs.finished import FinishedRun, open_run
from prunekit.runtime.batching import (
    Batcher,
    BatcherClosedError,
    BatchFailedError,
    Limits,
    QueueFullError,
    RequestTimeoutError,
)

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
except ImportError as error:
    print(
        f"examples/serve.py needs FastAPI and uvicorn ({error}).\n"
        "Allowed: the extra [serve] of prunekit.\npip install 'prunekit[serve]'",
        file=sys.stderr,
    )
    raise SystemExit(BAD_CONFIG) from None

SETTINGS = Path(__file__).with_suffix(".yaml")
CLIENT_CLOSED_REQUEST = 499  # what proxies log for a client that disconnected; nobody receives it


class RequestError(ValueError):
    """A request that cannot be answered: the HTTP status, what was given, what is allowed, and what to do."""

    def __init__(self, status: int, given: str, allowed: str, do: str) -> None:
        super().__init__(given)
        self.status = status
        self.body = {"error": {"given": given, "allowed": allowed, "do": do}}


# -- requests ------------------------------------------------------------------------------------------------


def parse_texts(body: bytes, *, most: int, pairs: bool) -> list[Any]:
    """Return the texts of a request's body, {"texts": [...]}: strings, or tuples of two if the task has pairs.

    Raises:
        RequestError: the body is something else, or has an empty text or more than `most` texts.
    """
    form = '{"texts": [["a text", "its partner"], ...]}' if pairs else '{"texts": ["a text", ...]}'
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON ({error})", form, "send such a body") from error
    if not isinstance(given, dict):
        raise RequestError(422, f"the body is {json_type(given)}", form, "send such a body")
    if unknown := sorted(set(given) - {"texts"}):
        raise RequestError(422, f"the fields {', '.join(unknown)[:200]}", "only texts", "leave the others out")
    if "texts" not in given:
        raise RequestError(422, "no field texts", form, "send such a body")
    texts = given["texts"]
    if not isinstance(texts, list):
        raise RequestError(422, f"texts is {json_type(texts)}", form, "put the texts into a list")
    if not 1 <= len(texts) <= most:
        raise RequestError(422, f"{len(texts)} texts", f"1 to {most} per request", "send several requests")
    return [_check_text(entry, f"texts[{number}]", pairs) for number, entry in enumerate(texts)]


def _check_text(entry: Any, place: str, pair: bool) -> Any:
    if pair:
        if not isinstance(entry, list) or len(entry) != 2:
            given = f"{place} is {json_type(entry)}" + (f" of {len(entry)}" if isinstance(entry, list) else "")
            raise RequestError(422, given, "a list of two strings", "give both texts of the pair")
        return tuple(_check_text(text, f"{place}[{number}]", False) for number, text in enumerate(entry))
    if not isinstance(entry, str):
        raise RequestError(422, f"{place} is {json_type(entry)}", "a string", "send the text itself")
    if not entry.strip():
        raise RequestError(422, f"{place} is empty", "a text of at least one character", "leave it out")
    try:
        entry.encode()
    except UnicodeEncodeError as error:
        given = f"{place} has half a surrogate pair ({error.reason})"
        raise RequestError(422, given, "Unicode", "send whole pairs") from error
    return entry


def json_type(value: Any) -> str:
    """Return JSON's name for the type of a value, with its article."""
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


async def read_body(request: Request, most_kb: int) -> bytes:
    """Read a request's body. Raises RequestError as soon as it is too large."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > 1024 * most_kb:
            raise RequestError(413, f"a body of more than {most_kb} KB", f"{most_kb} KB", "send several requests")
    return body


# -- the model -----------------------------------------------------------------------------------------------


class Model:
    """A packed engine with its tokenizer: tokenises texts and answers batches of them."""

    def __init__(self, engine: Any, tokenizer: Any, *, max_length: int, cut: bool) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.cut = cut

    def read(self, texts: Sequence[Any]) -> list[Any]:
        """Return the token ids of each text, as in training. Raises RequestError for a text that is too long."""
        from prunekit.bench.protocol import Encoded  # torch takes seconds: settings are checked first

        columns = [list(column) for column in zip(*texts, strict=True)] if isinstance(texts[0], tuple) else [texts]
        cutting = {"truncation": True, "max_length": self.max_length} if self.cut else {}
        encoded = self.tokenizer(*columns, return_attention_mask=False, verbose=False, **cutting)
        types = encoded.get("token_type_ids")
        items = []
        for number, ids in enumerate(encoded["input_ids"]):
            if len(ids) > self.max_length:
                raise RequestError(
                    422,
                    f"texts[{number}] has {len(ids)} tokens",
                    f"{self.max_length} tokens",
                    "shorten it, or start the server with cut=true",
                )
            items.append(Encoded(ids))
            if types is not None and any(types[number]):
                items[-1].types = types[number]
        return items

    def compute(self, batch: Sequence[Any]) -> list[dict[str, Any]]:
        """Compute the answer to each text, as one packed batch."""
        from prunekit.bench.inputs import to_engine_inputs  # as above

        result = self.engine(to_engine_inputs(batch))
        names = [self.engine.config.id2label[number] for number in range(result.logits.shape[-1])]
        scores = result.logits.double().softmax(-1) if result.labels is not None else result.logits
        labels = result.labels or [None] * len(batch)
        kept = result.trace.tokens_out.T.long().tolist()
        return [
            {"label": label, "scores": dict(zip(names, row, strict=True)), "tokens": len(ids), "kept": counts}
            for label, row, ids, counts in zip(labels, scores.tolist(), batch, kept, strict=True)
        ]


def load(run: FinishedRun, given: Mapping[str, Any]) -> Model:
    """Load the run's model and warm it up, so that everything built at first use exists.

    Raises:
        ConfigError: inconsistent lengths, or a model that the packed engine does not support.
    """
    # torch takes seconds to import: settings, run and address are checked before
    import prunekit
    from prunekit.console import silence_libraries
    from prunekit.data.encoding import load_tokenizer

    silence_libraries()
    try:
        engine = prunekit.load(run.model, engine="packed", dtype=given["dtype"], threads=given["threads"])
    except ValueError as error:
        raise ConfigError(f"run={run.path} cannot be served: {error}") from error
    longest = given["max_length"] or run.spec.max_length
    if longest > engine.most_tokens:
        raise ConfigError(
            f"max_length={longest}, but this model reads {engine.most_tokens} tokens.\n"
            f"Allowed: 8 to {engine.most_tokens}.\nGive less, or leave it out."
        )
    if given["batch_tokens"] < longest:
        raise ConfigError(
            f"batch_tokens={given['batch_tokens']} has no room for one text of max_length={longest}.\n"
            f"Allowed: {longest} and more.\nGive more, or a shorter max_length."
        )
    engine.warm(min(given["batch_tokens"], 1024))  # so that few requests wait for a compiler
    model = Model(engine, load_tokenizer(run.model), max_length=longest, cut=given["cut"])
    first: Any = ("warm", "up") if run.spec.text_pair else "warm up"
    for texts in ([first], [first] * min(2, given["batch_texts"])):
        model.compute(model.read(texts))
    return model


def limits_of(given: Mapping[str, Any]) -> Limits:
    """Return the limits that the settings ask for. Raises ConfigError if the queue is shorter than a request."""
    if given["request_texts"] > given["queue"]:
        raise ConfigError(
            f"request_texts={given['request_texts']}, but queue={given['queue']}: such a request would never fit.\n"
            f"Allowed: request_texts up to {given['queue']}.\nGive a smaller number, or a longer queue."
        )
    return Limits(
        given["batch_texts"], given["batch_tokens"], given["batch_wait_ms"] / 1000, given["queue"], given["timeout_s"]
    )


# -- HTTP ----------------------------------------------------------------------------------------------------


def build_app(model: Model, given: Mapping[str, Any], about: Mapping[str, Any], *, pairs: bool = False) -> FastAPI:
    """Build the application; `given` are the settings, `about` is what GET /healthz reports besides the status."""
    batcher = Batcher(model.read, model.compute, limits_of(given))
    refused: Counter[str] = Counter()  # requests that never reached the batcher, which counts the others
    started = time.monotonic()

    @asynccontextmanager
    async def run_batcher(app: FastAPI) -> AsyncIterator[None]:
        async with batcher:  # on exit it finishes the queue
            yield

    # no documentation pages: they load scripts from other sites
    app = FastAPI(title="prunekit", lifespan=run_batcher, docs_url=None, redoc_url=None)
    app.state.batcher = batcher

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        try:
            body = await read_body(request, given["request_kb"])
            texts = parse_texts(body, most=given["request_texts"], pairs=pairs)
        except RequestError:
            refused["refused"] += 1
            raise
        return JSONResponse({"predictions": await wait_while_connected(request, batcher.submit(texts))})

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        state = "ok" if batcher.is_alive else "going down" if batcher.closing else "not computing"
        return JSONResponse({"status": state, **about}, 200 if batcher.is_alive else 503)

    @app.get("/stats")
    async def stats() -> JSONResponse:
        summary = batcher.tally.summary()
        summary["requests"] = dict(Counter(summary["requests"]) + refused)
        return JSONResponse({"up_s": time.monotonic() - started, "waiting": batcher.waiting, **summary})

    @app.exception_handler(RequestError)
    async def on_request_error(request: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(error.body, error.status)

    @app.exception_handler(QueueFullError)
    async def on_full(request: Request, error: QueueFullError) -> JSONResponse:
        do = f"try again in {error.retry_s} s"
        answer = RequestError(503, str(error), f"{error.allowed} waiting texts", do)
        return JSONResponse(answer.body, 503, {"Retry-After": str(error.retry_s)})

    @app.exception_handler(BatcherClosedError)
    async def on_closed(request: Request, error: BatcherClosedError) -> JSONResponse:
        answer = RequestError(503, str(error), "requests before the shutdown", "try again when it is back")
        return JSONResponse(answer.body, 503, {"Retry-After": "5"})

    @app.exception_handler(RequestTimeoutError)
    async def on_timeout(request: Request, error: RequestTimeoutError) -> JSONResponse:
        allowed = f"{given['timeout_s']:g} s, the server's timeout_s"
        answer = RequestError(504, str(error), allowed, "send fewer texts, or try later")
        return JSONResponse(answer.body, 504)

    @app.exception_handler(BatchFailedError)
    async def on_failed(request: Request, error: BatchFailedError) -> JSONResponse:
        print(f"a batch failed: {error}", file=sys.stderr, flush=True)
        answer = RequestError(500, "the computation failed", "nothing else to try", "read the server's stderr")
        return JSONResponse(answer.body, 500)

    @app.exception_handler(ClientDisconnect)
    async def on_disconnect(request: Request, error: ClientDisconnect) -> JSONResponse:
        return JSONResponse({}, CLIENT_CLOSED_REQUEST)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        given = f"{request.method} {request.url.path}: {error.detail}"
        answer = RequestError(error.status_code, given, "POST /predict, GET /healthz, GET /stats", "use one of these")
        return JSONResponse(answer.body, error.status_code, error.headers)

    return app


async def wait_while_connected(request: Request, answer: Awaitable[Any]) -> Any:
    """Await an answer, but cancel it and raise ClientDisconnect if the client disconnects first."""

    async def wait_for_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answering, disconnect = asyncio.ensure_future(answer), asyncio.ensure_future(wait_for_disconnect())
    try:
        await asyncio.wait({answering, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientDisconnect
        return answering.result()
    finally:
        for task in (answering, disconnect):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address. Raises ConfigError if that is not possible."""
    try:
        opened = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        # inherited by connections; without it, a response's body waits 40 ms for the client to acknowledge its head
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return opened
    except OSError as error:
        raise ConfigError(
            f"cannot listen on host={host} port={port} ({error.strerror or error}).\n"
            "Allowed: an address of this machine and a free port.\nGive another port, or port=0 for any."
        ) from error


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM or Ctrl-C, then finish what is in the queue. Returns 0.

    Raises:
        ConfigError: an invalid setting, run or address.
    """
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    limits_of(given)
    run = open_run(given["run"])
    if not run.spec.kind.labels_texts:
        raise ConfigError(
            f"run={given['run']} {run.spec.kind.does}, which this server does not support.\n"
            "Allowed: a run of classification or regression.\nUse prunekit.load(folder) for it."
        )
    listener = open_socket(given["host"], given["port"])  # before loading the model, which takes seconds
    with listener:
        model = load(run, given)
        about = {"task": run.result.task, "method": run.result.method, "hash": run.result.hash}
        about |= {"dtype": given["dtype"], "max_length": model.max_length}
        app = build_app(model, given, about, pairs=run.spec.text_pair is not None)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        # uvicorn raises the signal again when it is done, which must not kill this process
        signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
        host = f"[{given['host']}]" if ":" in given["host"] else given["host"]
        print(f"serving {run.path} on http://{host}:{listener.getsockname()[1]}", flush=True)
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    print(f"answered {app.state.batcher.tally.outcomes['ok']} requests", flush=True)
    return DONE


if __name__ == "__main__":
    run_script(main)
