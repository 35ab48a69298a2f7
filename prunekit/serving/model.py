"""A run's model as the server uses it: reads texts, computes batches of them, and says what it can do."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from prunekit.bench.inputs import to_engine_inputs
from prunekit.bench.protocol import Encoded
from prunekit.config.errors import ConfigError, first_line
from prunekit.console import silence_libraries
from prunekit.data.encoding import load_tokenizer
from prunekit.data.vocabulary import is_tokenless
from prunekit.models.answers import OneVector, answers_of
from prunekit.runs.finished import FinishedRun
from prunekit.runtime.forward import Result
from prunekit.runtime.loading import load
from prunekit.runtime.ranking import activation_of_scores
from prunekit.serving.beginnings import beginning, divides_at_blanks
from prunekit.serving.requests import RequestError, Text, empty

CHARACTERS = 8  # of a text, per token that it may have, are read first: in most languages these are more tokens


class ReadText(Encoded):
    """The token ids of a text of a request."""

    place: str = ""
    budget: str | None = None


class Model:
    """A packed engine with its tokenizer: tokenises texts and answers batches of them."""

    def __init__(self, engine: Any, tokenizer: Any, *, max_length: int, cut: bool) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.cut = cut
        # of an unknown word there was something to read
        self.special = set() if tokenizer is None else set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        # one that never cuts: threads may share a tokenizer as long as none changes how it cuts
        self.whole = copy.deepcopy(tokenizer)
        self.reads_beginnings = divides_at_blanks(tokenizer)

    def read(self, texts: Sequence[Text]) -> list[ReadText]:
        """Return the token ids of each text, as in training. Of a long text no more is read than these need.

        Raises:
            RequestError: a text is too long, or has no token besides the special ones.
        """
        if not self.reads_beginnings or any(len(text.parts) > 1 for text in texts):  # which half is cut depends on both
            return self._read(texts, self._encode([text.parts for text in texts]))
        enough, characters = self.max_length + (not self.cut), CHARACTERS * self.max_length
        while True:
            begun = [(beginning(text.parts[0], characters),) for text in texts]
            encoded = self._encode(begun)
            lengths = zip(begun, texts, encoded["input_ids"], strict=True)
            if all(parts == text.parts or len(ids) >= enough for parts, text, ids in lengths):
                return self._read(texts, encoded)
            characters *= 4

    def _encode(self, texts: Sequence[Sequence[str]]) -> Mapping[str, Any]:
        columns = [list(column) for column in zip(*texts, strict=True)]
        cutting = {"truncation": True, "max_length": self.max_length} if self.cut else {}
        encoded: Mapping[str, Any] = self.tokenizer(*columns, return_attention_mask=False, verbose=False, **cutting)
        return encoded

    def _read(self, texts: Sequence[Text], encoded: Mapping[str, Any]) -> list[ReadText]:
        types = encoded.get("token_type_ids")
        items = []
        for number, (text, ids) in enumerate(zip(texts, encoded["input_ids"], strict=True)):
            self._check(text, ids)
            items.append(ReadText(ids))
            items[-1].place, items[-1].budget = text.place, text.budget
            if types is not None and any(types[number]):
                items[-1].types = types[number]
        return items

    def _check(self, text: Text, ids: Sequence[int]) -> None:
        if len(ids) > self.max_length:
            raise RequestError(
                422,
                f"{text.place} has {len(ids)} tokens or more",
                f"{self.max_length} tokens",
                "shorten it, or start the server with cut=true",
            )
        for half, part in enumerate(text.parts):
            begun = beginning(part, CHARACTERS)
            if is_tokenless(begun, self.whole) and (begun is part or is_tokenless(part, self.whole)):
                raise empty(f"{text.place}[{half}]" if len(text.parts) > 1 else text.place)
        if self.special.issuperset(ids):
            raise empty(text.place)

    def compute(self, batch: Sequence[ReadText]) -> list[dict[str, Any] | RequestError]:
        """Compute the answer to each text, as one packed batch; an error where an answer has no finite number.

        Texts for which different budgets were chosen are batches of their own.
        """
        places: dict[str | None, list[int]] = {}
        for place, text in enumerate(batch):
            places.setdefault(text.budget, []).append(place)
        answers: dict[int, dict[str, Any] | RequestError] = {}
        for budget, own in places.items():
            answers |= zip(own, self._compute([batch[place] for place in own], budget), strict=True)
        return [answers[place] for place in range(len(batch))]

    def _compute(self, batch: Sequence[ReadText], budget: str | None) -> list[dict[str, Any] | RequestError]:
        chosen = {} if budget is None else {"budget": budget}
        result = self.engine(to_engine_inputs(batch), **chosen)
        answers = answers_of(self.engine.config)
        if isinstance(answers, OneVector):
            return self._vectors(batch, result)
        names = [self.engine.config.id2label[number] for number in range(result.logits.shape[-1])]
        shares = answers.probabilities(result.logits.double())
        scores = result.logits if shares is None else shares
        labels = answers.labels(result.logits) or [None] * len(batch)
        key = "labels" if answers.several else "label"
        kept = result.trace.tokens_out.T.long().tolist()
        finite = torch.isfinite(result.logits).all(-1).tolist()
        return [
            {key: label, "scores": dict(zip(names, row, strict=True)), "tokens": len(ids), "kept": counts}
            if is_finite
            else _not_finite(ids)
            for label, row, ids, counts, is_finite in zip(labels, scores.tolist(), batch, kept, finite, strict=True)
        ]

    def _vectors(self, batch: Sequence[ReadText], result: Result) -> list[dict[str, Any] | RequestError]:
        """Return the vector of each text; an error where it has no finite numbers."""
        kept = result.trace.tokens_out.T.long().tolist()
        finite = torch.isfinite(result.logits).all(-1).tolist()
        return [
            {"embedding": vector, "tokens": len(ids), "kept": counts} if is_finite else _not_finite(ids)
            for vector, ids, counts, is_finite in zip(result.logits.tolist(), batch, kept, finite, strict=True)
        ]


def _not_finite(ids: ReadText) -> RequestError:
    given = f"{ids.place}, for which the model computes no finite number"
    return RequestError(422, given, "texts like those of the training", "leave it out, or serve the model as fp32")


@dataclass(frozen=True)
class Served:
    """A model with its name in requests, what it is, and what it can do."""

    name: str
    model: Any  # reads and computes, as Model does
    about: Mapping[str, Any]
    pairs: bool = False  # its texts are pairs
    ranks: bool = False  # of a pair it says how well the second text fits the first
    budgets: tuple[str, ...] = ()  # that a request may choose from
    embeds: bool = False  # of a text it gives a vector
    activation: nn.Module = field(default_factory=nn.Identity)  # of the scores of a ranking

    def activate(self, scores: Sequence[float]) -> list[float]:
        """Return the scores of a ranking after the activation that the model's folder names."""
        found: list[float] = self.activation(torch.tensor(scores, dtype=torch.float64)).tolist()
        return found


def load_model(run: FinishedRun, given: Mapping[str, Any]) -> Model:
    """Load the run's model and warm it up, so that everything built at first use exists.

    Raises:
        ConfigError: a damaged model, inconsistent lengths, a model that the packed engine does not support or that
            computes no finite numbers.
    """
    silence_libraries()
    try:
        engine = load(run.model, engine="packed", dtype=given["dtype"], threads=given["threads"])
        tokenizer = engine.tokenizer or load_tokenizer(run.model)  # which says that there is none
    except Exception as error:  # the libraries that read damaged files raise whatever they meet
        raise _not_served(run, f"{type(error).__name__}: {first_line(error)}") from error
    longest = given["max_length"] or min(run.spec.max_length, engine.most_tokens)
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
    model = Model(engine, tokenizer, max_length=longest, cut=given["cut"])
    try:
        engine.warm(min(given["batch_tokens"], 1024))  # so that few requests wait for a compiler
        first = Text("a first text", ("warm", "up") if _reads_pairs(run) else ("warm up",))
        answers = [
            answer
            for texts in ([first], [first] * min(2, given["batch_texts"]))
            for answer in model.compute(model.read(texts))
        ]
    except Exception as error:  # as above
        raise _not_served(run, f"{type(error).__name__}: {first_line(error)}") from error
    for answer in answers:
        if isinstance(answer, RequestError):
            raise _not_served(run, str(answer))
    return model


def _reads_pairs(run: FinishedRun) -> bool:
    """Return whether a run's model reads two texts at a time; an embedder that learned from pairs reads one."""
    return run.spec.text_pair is not None and not run.spec.kind.gives_vectors


def _not_served(run: FinishedRun, reason: str) -> ConfigError:
    return ConfigError(
        f"run={run.path} cannot be served ({reason}).\nAllowed: the run of a whole model of finite weights.\n"
        "Train it again, with the command in its config.yaml's folder, or give another run."
    )


def load_all(runs: Sequence[FinishedRun], given: Mapping[str, Any]) -> dict[str, Served]:
    """Load the models of several runs, each under its task's name, which the run's hash follows where it is not unique.

    Raises:
        ConfigError: as of `load_model`, or the same run twice.
    """
    tasks = [run.result.task for run in runs]
    served: dict[str, Served] = {}
    for run, task in zip(runs, tasks, strict=True):
        name = task if tasks.count(task) == 1 else f"{task}-{run.result.hash}"
        if name in served:
            raise ConfigError(f"run={run.path} is given twice.\nAllowed: every run once.\nLeave one of them out.")
        model = load_model(run, given)
        about: dict[str, Any] = {"task": task, "method": run.result.method, "hash": run.result.hash}
        about |= {"dtype": given["dtype"], "max_length": model.max_length}
        pairs = _reads_pairs(run)
        ranks = pairs and model.engine.config.num_labels == 1
        budgets, activation = model.engine.budgets, activation_of_scores(model.engine.config)
        about |= {"budgets": list(budgets)} if budgets else {}
        embeds = run.spec.kind.gives_vectors
        served[name] = Served(name, model, about, pairs, ranks, budgets, embeds, activation)
    return served
