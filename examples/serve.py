"""Serves a run's model over HTTP: requests that arrive together are computed as one packed batch.

    python examples/serve.py run=runs/<task>/<method>/<backbone>/<budget>/s<seed>-<hash> port=8000
    curl -s localhost:8000/predict -d '{"texts": ["The match ended in a draw."]}'

Which settings there are says serve.yaml; what is asked and answered, docs/serving.md. The queue and the batches are in
prunekit/runtime/batching.py; here are the model, what a request may be, and the answers.
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
GONE = 499  # what proxies log for a client that left; nobody reads it


class Refused(ValueError):  # noqa: N818 - says what it is about
    """A request that cannot be answered: its HTTP status, what was given, what is allowed, what to do."""

    def __init__(self, status: int, given: str, allowed: str, do: str) -> None:
        super().__init__(given)
        self.status = status
        self.body = {"error": {"given": given, "allowed": allowed, "do": do}}


# -- what a request may be -----------------------------------------------------------------------------------


def texts_of(body: bytes, *, most: int, pairs: bool) -> list[Any]:
    """The texts of a request's body, {"texts": [...]}: strings, or tuples of two where the task has pairs.

    Raises:
        Refused: the body is something else, or has an empty text or more than `most`.
    """
    form = '{"texts": [["a text", "its partner"], ...]}' if pairs else '{"texts": ["a text", ...]}'
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON ({error})", form, "send such a body") from error
    if not isinstance(given, dict):
        raise Refused(422, f"the body is {kind(given)}", form, "send such a body")
    if unknown := sorted(set(given) - {"texts"}):
        raise Refused(422, f"the fields {', '.join(unknown)[:200]}", "texts alone", "leave the others out")
    if "texts" not in given:
        raise Refused(422, "no field texts", form, "send such a body")
    texts = given["texts"]
    if not isinstance(texts, list):
        raise Refused(422, f"texts is {kind(texts)}", form, "put the texts into a list")
    if not 1 <= len(texts) <= most:
        raise Refused(422, f"{len(texts)} texts", f"1 to {most} in a request", "send several requests")
    return [_text(entry, f"texts[{number}]", pairs) for number, entry in enumerate(texts)]


def _text(entry: Any, place: str, pair: bool) -> Any:
    if pair:
        if not isinstance(entry, list) or len(entry) != 2:
            given = f"{place} is {kind(entry)}" + (f" of {len(entry)}" if isinstance(entry, list) else "")
            raise Refused(422, given, "a list of two strings", "give both texts of the pair")
        return tuple(_text(one, f"{place}[{number}]", False) for number, one in enumerate(entry))
    if not isinstance(entry, str):
        raise Refused(422, f"{place} is {kind(entry)}", "a string", "send the text itself")
    if not entry.strip():
        raise Refused(422, f"{place} is empty", "a text of one character and more", "leave it out")
    try:
        entry.encode()
    except UnicodeEncodeError as error:
        raise Refused(422, f"{place} has half a character ({error.reason})", "Unicode", "send whole pairs") from error
    return entry


def kind(value: Any) -> str:
    """What JSON calls a value."""
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


async def body_of(request: Request, most_kb: int) -> bytes:
    """A request's body. Raises Refused as soon as it is too large."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > 1024 * most_kb:
            raise Refused(413, f"a body of more than {most_kb} KB", f"{most_kb} KB", "send several requests")
    return body


# -- the model -----------------------------------------------------------------------------------------------


class Model:
    """A packed engine with its tokenizer: reads texts, answers batches of them."""

    def __init__(self, engine: Any, tokenizer: Any, *, max_length: int, cut: bool) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.cut = cut

    def read(self, texts: Sequence[Any]) -> list[Any]:
        """The token ids of each text, as training read them. Raises Refused for one that is too long."""
        from prunekit.bench.protocol import Encoded  # torch takes seconds: settings are checked first

        columns = [list(column) for column in zip(*texts, strict=True)] if isinstance(texts[0], tuple) else [texts]
        shorter = {"truncation": True, "max_length": self.max_length} if self.cut else {}
        found = self.tokenizer(*columns, return_attention_mask=False, verbose=False, **shorter)
        types = found.get("token_type_ids")
        items = []
        for number, ids in enumerate(found["input_ids"]):
            if len(ids) > self.max_length:
                raise Refused(
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
        """The answer for each text of a packed batch."""
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
    """The run's model, which has computed something already: what is built at first use is there.

    Raises:
        ConfigError: lengths that do not go together, or a model that the packed engine does not run.
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
    engine.warm(min(given["batch_tokens"], 1024))  # few requests shall wait for a compiler
    model = Model(engine, load_tokenizer(run.model), max_length=longest, cut=given["cut"])
    first: Any = ("warm", "up") if run.spec.text_pair else "warm up"
    for texts in ([first], [first] * min(2, given["batch_texts"])):
        model.compute(model.read(texts))
    return model


def limits_of(given: Mapping[str, Any]) -> Limits:
    """The limits that the settings ask for. Raises ConfigError where no request could ever get in."""
    if given["request_texts"] > given["queue"]:
        raise ConfigError(
            f"request_texts={given['request_texts']}, but queue={given['queue']}: such a request would never get in.\n"
            f"Allowed: request_texts up to {given['queue']}.\nGive less of it, or a longer queue."
        )
    return Limits(
        given["batch_texts"], given["batch_tokens"], given["batch_wait_ms"] / 1000, given["queue"], given["timeout_s"]
    )


# -- HTTP ----------------------------------------------------------------------------------------------------


def build_app(model: Model, given: Mapping[str, Any], about: Mapping[str, Any], *, pairs: bool = False) -> FastAPI:
    """The application; `given` are the settings, `about` is what GET /healthz says."""
    batcher = Batcher(model.read, model.compute, limits_of(given))
    refused: Counter[str] = Counter()  # requests that never came to the batcher, which counts the others
    started = time.monotonic()

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        async with batcher:  # leaving it finishes the queue
            yield

    # no pages of documentation: they load scripts from elsewhere
    app = FastAPI(title="prunekit", lifespan=running, docs_url=None, redoc_url=None)
    app.state.batcher = batcher

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        try:
            texts = texts_of(await body_of(request, given["request_kb"]), most=given["request_texts"], pairs=pairs)
        except Refused:
            refused["refused"] += 1
            raise
        return JSONResponse({"predictions": await unless_gone(request, batcher.submit(texts))})

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        state = "ok" if batcher.alive else "going down" if batcher.closing else "not computing"
        return JSONResponse({"status": state, **about}, 200 if batcher.alive else 503)

    @app.get("/stats")
    async def stats() -> JSONResponse:
        found = batcher.tally.summary()
        found["requests"] = dict(Counter(found["requests"]) + refused)
        return JSONResponse({"up_s": time.monotonic() - started, "waiting": batcher.waiting, **found})

    @app.exception_handler(Refused)
    async def on_refused(request: Request, error: Refused) -> JSONResponse:
        return JSONResponse(error.body, error.status)

    @app.exception_handler(QueueFullError)
    async def on_full(request: Request, error: QueueFullError) -> JSONResponse:
        do = f"come again in {error.retry_s} s"
        said = Refused(503, str(error), f"{error.allowed} texts that wait", do)
        return JSONResponse(said.body, 503, {"Retry-After": str(error.retry_s)})

    @app.exception_handler(BatcherClosedError)
    async def on_closed(request: Request, error: BatcherClosedError) -> JSONResponse:
        said = Refused(503, str(error), "requests before it went down", "come again when it is back")
        return JSONResponse(said.body, 503, {"Retry-After": "5"})

    @app.exception_handler(RequestTimeoutError)
    async def on_late(request: Request, error: RequestTimeoutError) -> JSONResponse:
        allowed = f"{given['timeout_s']:g} s, the server's timeout_s"
        said = Refused(504, str(error), allowed, "send fewer texts, or later")
        return JSONResponse(said.body, 504)

    @app.exception_handler(BatchFailedError)
    async def on_failed(request: Request, error: BatchFailedError) -> JSONResponse:
        print(f"a batch failed: {error}", file=sys.stderr, flush=True)
        said = Refused(500, "the computation failed", "nothing else to try", "see what the server wrote to stderr")
        return JSONResponse(said.body, 500)

    @app.exception_handler(ClientDisconnect)
    async def on_gone(request: Request, error: ClientDisconnect) -> JSONResponse:
        return JSONResponse({}, GONE)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        given = f"{request.method} {request.url.path}: {error.detail}"
        said = Refused(error.status_code, given, "POST /predict, GET /healthz, GET /stats", "ask for one of these")
        return JSONResponse(said.body, error.status_code, error.headers)

    return app


async def unless_gone(request: Request, answer: Awaitable[Any]) -> Any:
    """An awaited answer, given up when the client leaves before it is there. Raises ClientDisconnect then."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    wanted, gone = asyncio.ensure_future(answer), asyncio.ensure_future(left())
    try:
        await asyncio.wait({wanted, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not wanted.done():
            raise ClientDisconnect
        return wanted.result()
    finally:
        for task in (wanted, gone):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


def listening(host: str, port: int) -> socket.socket:
    """A socket at an address. Raises ConfigError where there is none to be had."""
    try:
        place = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        # connections inherit it; without, an answer's body waits 40 ms for the client to confirm its head
        place.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return place
    except OSError as error:
        raise ConfigError(
            f"host={host} port={port} cannot be listened on ({error.strerror or error}).\n"
            "Allowed: an address of this machine and a port that is free.\nGive another port, or port=0 for any."
        ) from error


def main(arguments: Sequence[str]) -> int:
    """Serves until SIGTERM or Ctrl-C, then finishes what is in the queue. Returns 0.

    Raises:
        ConfigError: a setting, a run or an address that cannot be.
    """
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    limits_of(given)
    run = open_run(given["run"])
    if not run.spec.kind.labels_texts:
        raise ConfigError(
            f"run={given['run']} {run.spec.kind.does}; this server does not.\n"
            "Allowed: a run of classification or regression.\nUse prunekit.load(folder) for it."
        )
    place = listening(given["host"], given["port"])  # before the model, which takes seconds
    with place:
        model = load(run, given)
        about = {"task": run.result.task, "method": run.result.method, "hash": run.result.hash}
        about |= {"dtype": given["dtype"], "max_length": model.max_length}
        app = build_app(model, given, about, pairs=run.spec.text_pair is not None)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        # uvicorn raises the signal again when it is done, and that is not to kill us
        signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
        host = f"[{given['host']}]" if ":" in given["host"] else given["host"]
        print(f"serving {run.path} on http://{host}:{place.getsockname()[1]}", flush=True)
        with suppress(KeyboardInterrupt):
            server.run(sockets=[place])
    print(f"answered {app.state.batcher.tally.outcomes['ok']} requests", flush=True)
    return DONE


if __name__ == "__main__":
    run_script(main)
