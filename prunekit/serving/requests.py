"""What a request may contain: everything wrong is refused here, with its reason, before a tokenizer sees it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

# `curl -d` calls everything a form
MEDIA_TYPES = ("application/json", "application/x-www-form-urlencoded")
ENCODINGS = ("float", "base64")
FORMS = {
    "text": '{"texts": ["a text", ...]}',
    "pair": '{"texts": [["a text", "its partner"], ...]}',
    "input": '{"input": ["a text", ...]}',
    "ranking": '{"query": "a text", "documents": ["a text", ...]}',
}
TOP = ("top_k", "top_n")  # how many of the best a ranking has: two names of one field, as clients send either


class RequestError(ValueError):
    """A request that cannot be answered: the HTTP status, what was given, what is allowed, and what to do."""

    def __init__(
        self, status: int, given: str, allowed: str, do: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(given)
        self.status = status
        self.body = {"error": {"given": given, "allowed": allowed, "do": do}}
        self.headers = dict(headers or {})


@dataclass(frozen=True)
class RequestLimits:
    """How large a request may be; characters are those of one text, of both texts if it is a pair."""

    kilobytes: int
    texts: int
    characters: int


@dataclass(frozen=True)
class Text:
    """A text of a request, or a pair of them; `place` is where it stood, as messages name it.

    `budget` is the one that the request chose, None where it chose none.
    """

    place: str
    parts: tuple[str, ...]
    budget: str | None = None

    def __len__(self) -> int:
        return sum(map(len, self.parts))


def check_headers(headers: Mapping[str, str], limits: RequestLimits) -> None:
    """Check what a request says about its body, before any of it is read.

    Raises:
        RequestError: a compressed body, another media type than JSON, or a body that is too large.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise RequestError(
            415, f"a body in the encoding {shortened(encoding)}", "a body as it is", "do not compress it"
        )
    media, *parameters = (part.strip().lower() for part in headers.get("content-type", MEDIA_TYPES[0]).split(";"))
    charset = [part.partition("=")[2].strip('"') for part in parameters if part.startswith("charset")]
    if (media not in MEDIA_TYPES and not media.endswith("+json")) or charset not in ([], ["utf-8"], ["utf8"]):
        given = shortened(headers["content-type"])
        raise RequestError(415, f"a body of the type {given}", "JSON in UTF-8", "send it as application/json")
    size = headers.get("content-length", "0")
    if size.isdecimal() and int(size[:20]) > 1024 * limits.kilobytes:
        raise too_large(limits)


def too_large(limits: RequestLimits) -> RequestError:
    """Return the refusal of a body that is too large."""
    most = f"{limits.kilobytes} KB"
    return RequestError(413, f"a body of more than {most}", most, "send several requests")


def parse_object(body: bytes, fields: Iterable[str], form: str) -> dict[str, Any]:
    """Return the JSON object of a body, which has some of these fields and no other.

    Raises:
        RequestError: the body is something else, or names a field twice.
    """
    try:
        # json would take UTF-16 and UTF-32 as well, by a guess
        given = json.loads(body.decode("utf-8"), object_pairs_hook=_once)
    except RequestError:
        raise
    except UnicodeDecodeError as error:
        reason = f"the body is not JSON (byte {error.start} is not UTF-8)"
        raise RequestError(400, reason, f"{form} in UTF-8", "send such a body") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON ({shortened(error)})", form, "send such a body") from error
    if not isinstance(given, dict):
        raise RequestError(422, f"the body is {json_type(given)}", form, "send such a body")
    if unknown := sorted(set(given) - set(fields)):
        raise RequestError(
            422, f"the fields {shortened(', '.join(unknown))}", f"only {', '.join(fields)}", "leave the others out"
        )
    return given


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, of which json itself would keep the last of equal fields."""
    given = dict(pairs)
    if len(given) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(422, f"the field {shortened(twice)} twice", "every field once", "leave one of them out")
    return given


def texts_of(
    given: Mapping[str, Any], limits: RequestLimits, *, pairs: bool, budgets: Sequence[str] = ()
) -> list[Text]:
    """Return the texts of a request of labels: `texts` holds strings, or lists of two if the task has pairs.

    `budgets` are those that the model serves, of which `budget` may name one.

    Raises:
        RequestError: it holds something else, too many or too long texts, or another budget.
    """
    entries = _list(given, "texts", limits, FORMS["pair" if pairs else "text"])
    texts = [_text(entry, f"texts[{number}]", limits, pair=pairs) for number, entry in enumerate(entries)]
    budget = given.get("budget")
    if budget is not None and budget not in budgets:
        known = ", ".join(budgets) or "no budget: the model was trained for one"
        raise RequestError(422, f"the budget {shortened(json.dumps(budget))}", known, "name one of these, or none")
    return [replace(text, budget=budget) for text in texts]


def inputs_of(given: Mapping[str, Any], limits: RequestLimits) -> list[Text]:
    """Return the texts of a request of vectors in OpenAI's form: `input` is a string, or a list of them.

    Raises:
        RequestError: it holds something else, or too many or too long texts.
    """
    whole = given.get("input")
    if isinstance(whole, str):
        return [_text(whole, "input", limits)]
    entries = _list(given, "input", limits, FORMS["input"])
    return [_text(entry, f"input[{number}]", limits) for number, entry in enumerate(entries)]


def encoding_of(given: Mapping[str, Any]) -> str:
    """Return how a request in OpenAI's form wants its vectors: as "float", a list of numbers, or as "base64".

    Raises:
        RequestError: it wants something else.
    """
    form = given.get("encoding_format", "float")
    if form not in ENCODINGS:
        said = f"encoding_format is {shortened(json.dumps(form))}"
        raise RequestError(422, said, " or ".join(ENCODINGS), "leave it out")
    return str(form)


def ranking_of(given: Mapping[str, Any], limits: RequestLimits) -> tuple[list[Text], int]:
    """Return the pairs of a request of a ranking, each the query and a document, and how many of the best it asks for.

    Raises:
        RequestError: query, documents or top_k is something else, or there is too much of them.
    """
    if "query" not in given:
        raise RequestError(422, "no field query", FORMS["ranking"], "send such a body")
    documents = _list(given, "documents", limits, FORMS["ranking"])
    query = _text(given["query"], "query", limits).parts[0]
    asked = [name for name in TOP if name in given]
    if len(asked) > 1:
        raise RequestError(422, f"the fields {' and '.join(asked)}", "one of them", "leave the other out")
    best = given[asked[0]] if asked else len(documents)
    if isinstance(best, bool) or not isinstance(best, int) or best < 1:
        raise RequestError(422, f"{asked[0]} is {shortened(json.dumps(best))}", "a whole number from 1", "leave it out")
    parts = [_text(entry, f"documents[{number}]", limits).parts[0] for number, entry in enumerate(documents)]
    texts = [Text(f"documents[{number}]", (query, part)) for number, part in enumerate(parts)]
    for text in texts:
        _check_size(text, limits)
    return texts, best


def _list(given: Mapping[str, Any], field: str, limits: RequestLimits, form: str) -> list[Any]:
    if field not in given:
        raise RequestError(422, f"no field {field}", form, "send such a body")
    entries = given[field]
    if not isinstance(entries, list):
        raise RequestError(422, f"{field} is {json_type(entries)}", form, "put the texts into a list")
    if not 1 <= len(entries) <= limits.texts:
        raise RequestError(422, f"{len(entries)} {field}", f"1 to {limits.texts} per request", "send several requests")
    return entries


def _text(entry: Any, place: str, limits: RequestLimits, *, pair: bool = False) -> Text:
    if pair:
        if not isinstance(entry, list) or len(entry) != 2:
            given = f"{place} is {json_type(entry)}" + (f" of {len(entry)}" if isinstance(entry, list) else "")
            raise RequestError(422, given, "a list of two strings", "give both texts of the pair")
        halves = [_text(half, f"{place}[{number}]", limits) for number, half in enumerate(entry)]
        text = Text(place, tuple(half.parts[0] for half in halves))
        _check_size(text, limits)
        return text
    if not isinstance(entry, str):
        raise RequestError(422, f"{place} is {json_type(entry)}", "a string", "send the text itself")
    text = Text(place, (entry,))
    _check_size(text, limits)
    if not entry.strip():
        raise empty(place)
    try:
        entry.encode()
    except UnicodeEncodeError as error:
        given = f"{place} has half a surrogate pair ({error.reason})"
        raise RequestError(422, given, "Unicode", "send whole pairs") from error
    return text


def empty(place: str) -> RequestError:
    """Return the refusal of a text without content."""
    return RequestError(422, f"{place} is empty", "a text of at least one token", "leave it out")


def _check_size(text: Text, limits: RequestLimits) -> None:
    if len(text) > limits.characters:
        given = f"{text.place} has {len(text)} characters"
        raise RequestError(
            422, given, f"{limits.characters} characters", "shorten it, or start the server with a larger text_chars"
        )


def json_type(value: Any) -> str:
    """Return JSON's name for the type of a value, with its article."""
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


def shortened(value: object) -> str:
    """Return a value as text of at most 80 characters, on one line."""
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
