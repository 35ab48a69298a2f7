"""The HTTP application: endpoints, how a request reaches a model's queue, and how errors are answered."""

from __future__ import annotations

import asyncio
import hmac
import json
import struct
import sys
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from prunekit.runtime.batching import (
    Batcher,
    BatcherClosedError,
    BatchFailedError,
    CallTooLongError,
    Limits,
    QueueFullError,
    RequestTimeoutError,
)
from prunekit.serving import metrics
from prunekit.serving.model import Served
from prunekit.serving.requests import (
    FORMS,
    TOP,
    RequestError,
    RequestLimits,
    Text,
    check_headers,
    encoding_of,
    inputs_of,
    parse_object,
    ranking_of,
    shortened,
    texts_of,
    too_large,
)

CLIENT_CLOSED_REQUEST = 499  # what proxies log for a client that disconnected; nobody receives it
TOKEN_CHARACTERS = 64  # of a text, for each token that it may have: a longer text is refused unread


class Answer(JSONResponse):
    """JSON that can always be written: a character that is none, as half a surrogate pair, is escaped."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class Service:
    """The models of a server behind their queues."""

    def __init__(self, models: Mapping[str, Served], given: Mapping[str, Any]) -> None:
        self.models = models
        self.given = given
        self.started = time.monotonic()
        self.refused = 0  # requests that never reached a batcher, which counts the others
        limits = limits_of(given)
        # one for all models: together they use no more threads than one alone
        self.executor = ThreadPoolExecutor(given["workers"], "computing")
        self.batchers = {
            name: Batcher(served.model.read, served.model.compute, limits, self.executor)
            for name, served in models.items()
        }

    @property
    def is_alive(self) -> bool:
        """Whether new requests will be answered."""
        return all(batcher.is_alive for batcher in self.batchers.values())

    @property
    def closing(self) -> bool:
        """Whether the server is shutting down."""
        return any(batcher.closing for batcher in self.batchers.values())

    def close(self) -> None:
        """Refuse new requests, and answer the accepted ones."""
        for batcher in self.batchers.values():
            batcher.close()

    def give_up(self) -> None:
        """Refuse the accepted requests too."""
        for batcher in self.batchers.values():
            batcher.give_up()

    def chosen(self, given: Mapping[str, Any]) -> Served:
        """Return the model that a request names, which it may leave out where there is one.

        Raises:
            RequestError: it names none of them.
        """
        allowed = ", ".join(self.models)
        if "model" not in given and len(self.models) == 1:
            return next(iter(self.models.values()))
        name = given.get("model")
        if not isinstance(name, str) or name not in self.models:
            said = "no field model" if "model" not in given else f"the model {shortened(json.dumps(name))}"
            raise RequestError(422, said, allowed, f'add "model": "{next(iter(self.models))}"')
        return self.models[name]

    def limits_of(self, served: Served) -> RequestLimits:
        """Return how large a request to a model may be."""
        characters = self.given["text_chars"] or TOKEN_CHARACTERS * served.about.get("max_length", 512)
        return RequestLimits(self.given["request_kb"], self.given["request_texts"], characters)

    async def read(self, request: Request, fields: Collection[str], form: str) -> dict[str, Any]:
        """Read the object that a request sends. Raises RequestError, as early as possible."""
        limits = RequestLimits(self.given["request_kb"], self.given["request_texts"], 0)
        check_headers(request.headers, limits)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > 1024 * limits.kilobytes:
                raise too_large(limits)
        return parse_object(bytes(body), fields, form)

    async def answer(self, request: Request, served: Served, texts: Sequence[Text]) -> list[Any]:
        """Return the model's answers, while the client stays connected. One connection is one owner of the queue."""
        submitted = self.batchers[served.name].submit(texts, owner=request.scope.get("client"))
        answers: list[Any] = await wait_while_connected(request, submitted)
        return answers


def limits_of(given: Mapping[str, Any]) -> Limits:
    """Return the limits of a queue that the settings ask for."""
    return Limits(
        given["batch_texts"],
        given["batch_tokens"],
        given["batch_wait_ms"] / 1000,
        given["queue"],
        given["timeout_s"],
        call_tokens=given["request_tokens"],
        readers=given["readers"],
        lanes=given["workers"],
        batch_s=given["batch_ms"] / 1000,
    )


def build_app(
    models: Mapping[str, Served],
    given: Mapping[str, Any],
    *,
    tokens: Sequence[str] = (),
    connections: Sized = (),
) -> FastAPI:
    """Build the application; `given` are the settings, `tokens` those that clients need, if there are any."""
    service = Service(models, given)

    @asynccontextmanager
    async def run_batchers(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for batcher in service.batchers.values():  # on exit each finishes its queue
                await stack.enter_async_context(batcher)
            yield
        service.executor.shutdown(wait=False)

    # no documentation pages, which load scripts from other sites; no redirects, which believe the Host header
    app = FastAPI(
        title="prunekit", lifespan=run_batchers, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    app.state.service = service
    routers = [_guarded_routes(service, tokens, connections), _open_routes(service)]
    for router in routers:
        app.include_router(router)
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    endpoints = ", ".join(f"{method} {route.path}" for route in routes for method in sorted(route.methods or ()))
    _add_error_handlers(app, service, endpoints)
    return app


def _open_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> Answer:
        alive = service.is_alive or service.closing
        return Answer({"status": "ok" if alive else "not computing"}, 200 if alive else 503)

    @router.get("/ready")
    async def ready() -> Answer:
        state = "ready" if service.is_alive else "going down" if service.closing else "not computing"
        return Answer({"status": state}, 200 if service.is_alive else 503)

    return router


def _guarded_routes(service: Service, tokens: Sequence[str], connections: Sized) -> APIRouter:
    async def check_token(request: Request) -> None:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        # every token is compared, and each in constant time: how long it takes tells nothing
        known = [hmac.compare_digest(token.strip().encode("utf-8", "replace"), one.encode()) for one in tokens]
        if tokens and not (kind.lower() == "bearer" and any(known)):
            service.refused += 1
            raise RequestError(
                401,
                "no token that this server knows",
                "Authorization: Bearer <token>",
                "ask who runs it for a token",
                {"WWW-Authenticate": "Bearer"},
            )

    router = APIRouter(dependencies=[Depends(check_token)])

    @router.post("/predict")
    async def predict(request: Request) -> Answer:
        with count_refused(service):
            single = next(iter(service.models.values()))
            form = FORMS["pair" if single.pairs and len(service.models) == 1 else "text"]
            body = await service.read(request, ("texts", "model", "budget"), form)
            served = service.chosen(body)
            if served.embeds:
                raise _unable(service, served, "gives vectors: POST /embed", lambda other: not other.embeds)
            texts = texts_of(body, service.limits_of(served), pairs=served.pairs, budgets=served.budgets)
        return Answer({"predictions": await service.answer(request, served, texts)})

    @router.get("/models")
    async def models() -> Answer:
        return Answer({"models": {name: dict(served.about) for name, served in service.models.items()}})

    @router.get("/stats")
    async def stats() -> Answer:
        found = {
            name: {"waiting": batcher.waiting, **batcher.tally.summary()} for name, batcher in service.batchers.items()
        }
        up_s = time.monotonic() - service.started
        return Answer({"up_s": up_s, "refused": service.refused, "models": found})

    @router.get("/metrics")
    async def prometheus() -> PlainTextResponse:
        up_s = time.monotonic() - service.started
        text = metrics.exposition(service.batchers, service.refused, len(connections), up_s)
        return PlainTextResponse(text, media_type=metrics.CONTENT_TYPE)

    if any(served.ranks for served in service.models.values()):
        _add_rerank(router, service)
    if any(served.embeds for served in service.models.values()):
        _add_embed(router, service)
    return router


def _add_rerank(router: APIRouter, service: Service) -> None:
    @router.post("/rerank")
    async def rerank(request: Request) -> Answer:
        with count_refused(service):
            body = await service.read(request, ("query", "documents", *TOP, "model"), FORMS["ranking"])
            served = service.chosen(body)
            if not served.ranks:
                can = ", ".join(name for name, other in service.models.items() if other.ranks)
                raise RequestError(422, f"the model {served.name}, which scores no pairs", can, "name one of these")
            texts, best = ranking_of(body, service.limits_of(served))
        answers = await service.answer(request, served, texts)
        scores = served.activate([next(iter(answer["scores"].values())) for answer in answers])
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        return Answer({"results": [{"index": place, "relevance_score": scores[place]} for place in order[:best]]})


def _add_embed(router: APIRouter, service: Service) -> None:
    def embedding(body: Mapping[str, Any]) -> Served:
        served = service.chosen(body)
        if not served.embeds:
            raise _unable(service, served, "gives no vectors", lambda other: other.embeds)
        return served

    @router.post("/embed")
    async def embed(request: Request) -> Answer:
        with count_refused(service):
            body = await service.read(request, ("texts", "model"), FORMS["text"])
            served = embedding(body)
            texts = texts_of(body, service.limits_of(served), pairs=False)
        answers = await service.answer(request, served, texts)
        return Answer({"embeddings": [answer["embedding"] for answer in answers]})

    @router.post("/v1/embeddings")
    async def embed_as_openai(request: Request) -> Answer:
        with count_refused(service):
            body = await service.read(request, ("input", "model", "encoding_format", "user"), FORMS["input"])
            served = embedding(body)
            form, texts = encoding_of(body), inputs_of(body, service.limits_of(served))
        answers = await service.answer(request, served, texts)
        tokens = sum(answer["tokens"] for answer in answers)
        rows = [
            {"object": "embedding", "index": place, "embedding": encoded(answer["embedding"], form)}
            for place, answer in enumerate(answers)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return Answer({"object": "list", "data": rows, "model": served.name, "usage": usage})


def encoded(vector: Sequence[float], form: str) -> Any:
    """Return a vector as a list, or as the base64 of its float32 numbers, little end first."""
    return list(vector) if form == "float" else b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


def _unable(service: Service, served: Served, why: str, is_able: Callable[[Served], bool]) -> RequestError:
    can = ", ".join(name for name, other in service.models.items() if is_able(other)) or "none of this server"
    return RequestError(422, f"the model {served.name}, which {why}", can, "name one of these")


@contextmanager
def count_refused(service: Service) -> Iterator[None]:
    """Count a request that is refused before it reaches a queue."""
    try:
        yield
    except RequestError:
        service.refused += 1
        raise


def _add_error_handlers(app: FastAPI, service: Service, endpoints: str) -> None:
    def told(error: RequestError) -> Answer:
        return Answer(error.body, error.status, error.headers)

    @app.exception_handler(RequestError)
    async def on_request_error(request: Request, error: RequestError) -> Answer:
        return told(error)

    @app.exception_handler(CallTooLongError)
    async def on_long(request: Request, error: CallTooLongError) -> Answer:
        return told(RequestError(422, str(error), f"{error.allowed} tokens per request", "send several requests"))

    @app.exception_handler(QueueFullError)
    async def on_full(request: Request, error: QueueFullError) -> Answer:
        do, headers = f"try again in {error.retry_s} s", {"Retry-After": str(error.retry_s)}
        return told(RequestError(503, str(error), f"{error.allowed} waiting texts", do, headers))

    @app.exception_handler(BatcherClosedError)
    async def on_closed(request: Request, error: BatcherClosedError) -> Answer:
        allowed, do = "requests before the shutdown", "try again when it is back"
        return told(RequestError(503, str(error), allowed, do, {"Retry-After": "5"}))

    @app.exception_handler(RequestTimeoutError)
    async def on_timeout(request: Request, error: RequestTimeoutError) -> Answer:
        allowed = f"{service.given['timeout_s']:g} s, the server's timeout_s"
        return told(RequestError(504, str(error), allowed, "send fewer texts, or try later"))

    @app.exception_handler(BatchFailedError)
    async def on_failed(request: Request, error: BatchFailedError) -> Answer:
        print(f"a batch failed: {error}", file=sys.stderr, flush=True)
        return told(RequestError(500, "the computation failed", "nothing else to try", "read the server's stderr"))

    @app.exception_handler(ClientDisconnect)
    async def on_disconnect(request: Request, error: ClientDisconnect) -> Answer:
        return Answer({}, CLIENT_CLOSED_REQUEST)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Answer:
        # not request.url, which parses what the client says is its host
        given = f"{request.method} {shortened(request.scope['path'])}: {error.detail}"
        headers = dict(error.headers or {})
        return told(RequestError(error.status_code, given, endpoints, "use one of these", headers))


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
