"""Cut questions and long contexts into windows: each is the whole question and a part of the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from prunekit.data import spill
from prunekit.data.columns import Mapped
from prunekit.data.encoding import EncodedSplit, Encoder, Targets, TextTokeniser, fingerprint, lists
from prunekit.data.errors import DataError
from prunekit.data.ragged import Ragged
from prunekit.data.rows import Rows
from prunekit.data.spans import Answer


@dataclass(frozen=True)
class Questions:
    """What is asked of a split: questions, the context of each, its right answers, and what it is called."""

    texts: Sequence[str]
    contexts: Sequence[str]
    answers: Sequence[Answer]
    ids: Sequence[str]

    @classmethod
    def of(cls, rows: Rows[Answer]) -> Questions:
        """Return the questions of rows; those without ids are called by their numbers, from 1."""
        ids = Mapped(range(1, len(rows) + 1), str) if rows.ids is None else rows.ids
        return cls(rows.texts, [""] * len(rows) if rows.pairs is None else rows.pairs, rows.labels, ids)

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class SpanTargets(Targets):
    """Questions and the windows, a row each, in which they are read.

    `labels` are the first and last token of the question's first answer, or 0, 0, which is [CLS], where the window
    does not hold it whole. `starts` are the first character of each token in the context, and `ends` the one after its
    last, -1 outside the context; `examples` are the numbers of the windows' questions. `protect_question` protects
    everything before the context.
    """

    labels: Int[Tensor, "rows 2"]
    starts: Ragged
    ends: Ragged
    examples: Int[Tensor, "rows"]
    questions: Questions = field(repr=False, compare=False)
    protect_question: bool = False

    @property
    def judged(self) -> int:
        """How many questions there are."""
        return len(self.questions)

    @property
    def references(self) -> Sequence[str]:
        """The first right answer to each question; "" where it has none."""
        return Mapped(self.questions.answers, _first_text)

    def batch(self, rows: Int[Tensor, "batch"], inside: Bool[Tensor, "batch width"]) -> dict[str, Tensor]:
        """Return the labels, `spans` and `example`, and `protected` where the question is."""
        spans = torch.stack([self.starts.padded(rows, -1), self.ends.padded(rows, -1)], -1).int()
        batch = {"spans": spans, "example": self.examples[rows], "labels": self.labels[rows]}
        return batch | ({"protected": question_tokens(spans, inside)} if self.protect_question else {})

    def protected(self, offsets: Int[Tensor, "boundaries"]) -> Int[Tensor, "rows"]:
        """Return the number of tokens before the context, where they are protected."""
        if not self.protect_question:
            return super().protected(offsets)
        rows = range(len(self.starts))
        return torch.from_numpy(
            spill.filled((_before_context(self.starts.row(row)) for row in rows), np.int64, len(rows))
        )


def _first_text(answer: Answer) -> str:
    return next(iter(answer.texts), "")


def _first_start(answer: Answer) -> int:
    return next(iter(answer.starts), 0)


def _before_context(starts: Int[np.ndarray, "tokens"]) -> int:
    inside = starts >= 0
    return int(inside.argmax()) if inside.any() else len(starts)


def encode_windows(
    rows: Rows[Answer], encoder: Encoder, stride: int, *, protect_question: bool = False
) -> EncodedSplit:
    """Tokenise questions and contexts in windows that overlap by `stride` tokens, or read them from the cache.

    Nothing is cut.

    Raises:
        DataError: a tokenizer without offsets, or a question that leaves too little room for the context.
    """

    if not encoder.tokenizer.is_fast:
        raise DataError(
            f"{type(encoder.tokenizer).__name__} does not say where its tokens come from, as finding answers needs; "
            f"copy tokenizer.json beside it."
        )
    key = fingerprint(rows, encoder.tokenizer_hash, encoder.max_length, stride)
    asked = Questions.of(rows)
    given = {
        "question": asked.texts,
        "context": asked.contexts,
        "answer": Mapped(asked.answers, _first_text),
        "start": Mapped(asked.answers, _first_start),
        "place": Mapped(range(len(rows)), rows.at),
    }
    columns = encoder.encode(key, given, _WindowTokeniser(TextTokeniser.of(encoder), stride))
    parts = {name: [part.to_numpy() for part in columns[name]] for name in ("first", "last", "example")}
    first, last, examples = (spill.joined(part, np.int64) for part in parts.values())
    labels = spill.empty((len(first), 2), np.int64)
    for side, places in enumerate((first, last)):
        labels[:, side] = places
    return encoder.split(
        key,
        columns,
        SpanTargets(
            labels=torch.from_numpy(labels),
            starts=Ragged.of_lists(columns["starts"]),
            ends=Ragged.of_lists(columns["ends"]),
            examples=torch.from_numpy(examples),
            questions=asked,
            protect_question=protect_question,
        ),
    )


@dataclass(frozen=True)
class _WindowTokeniser:
    """Questions and contexts as windows that overlap by `stride` tokens."""

    texts: TextTokeniser
    stride: int

    def __call__(self, rows: Mapping[str, list[Any]], numbers: Sequence[int]) -> dict[str, Any]:
        """Return a row per window: its tokens, their characters, the answer's first and last token, the question."""
        self._check_room(rows)
        encoded = self.texts.tokenizer(
            rows["question"],
            rows["context"],
            truncation="only_second",
            max_length=self.texts.max_length,
            stride=self.stride,
            padding=False,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        windows, asked = encoded.encodings, encoded["overflow_to_sample_mapping"]
        spans = [_spans(window) for window in windows]
        given = zip(rows["answer"], rows["start"], strict=True)
        answer_of = [Answer((text,), (start,)) if text else Answer() for text, start in given]
        answers = [answer_tokens(answer_of[row], part) for row, part in zip(asked, spans, strict=True)]
        columns = {
            "ids": lists([window.ids for window in windows], np.int32),
            "starts": lists([part[:, 0].tolist() for part in spans], np.int32),
            "ends": lists([part[:, 1].tolist() for part in spans], np.int32),
            "first": pyarrow.array([first for first, _ in answers], pyarrow.int64()),
            "last": pyarrow.array([last for _, last in answers], pyarrow.int64()),
            "example": pyarrow.array([numbers[row] for row in asked], pyarrow.int64()),
        }
        if self.texts.has_segments:
            columns["segments"] = lists([window.type_ids for window in windows], np.int8)
        return columns

    def _check_room(self, rows: Mapping[str, list[Any]]) -> None:
        """Check that every question leaves room for more of its context than windows share.

        Raises:
            DataError: one does not.
        """
        tokenizer, max_length, stride = self.texts.tokenizer, self.texts.max_length, self.stride
        special = tokenizer.num_special_tokens_to_add(pair=True)
        alone = tokenizer(rows["question"], add_special_tokens=False, return_attention_mask=False, verbose=False)
        for place, ids in zip(rows["place"], alone["input_ids"], strict=True):
            room = max_length - special - len(ids)
            if room <= stride:
                raise DataError(
                    f"{place}: the question has {len(ids)} tokens, which leaves {max(room, 0)} of "
                    f"task.max_length={max_length} for the context; windows overlap by task.stride={stride} and need "
                    f"more.\nSet task.max_length to more than {special + len(ids) + stride}, lower task.stride, or "
                    f"shorten the question."
                )


def _spans(window: Any) -> Int[np.ndarray, "tokens 2"]:
    """Return the first character of each token of a window in the context, and the one after its last; else -1."""
    inside = np.asarray([part == 1 for part in window.sequence_ids])
    return np.where(inside[:, None], np.asarray(window.offsets, np.int32).reshape(-1, 2), -1).astype(np.int32)


def answer_tokens(answer: Answer, spans: Int[np.ndarray, "tokens 2"]) -> tuple[int, int]:
    """Return the first and last token of the first answer; 0, 0 where there is none, or not all in this window.

    White space around the answer is ignored, because it belongs to no token.
    """
    if not answer.texts:
        return 0, 0
    text = answer.texts[0]
    first = answer.starts[0] + len(text) - len(text.lstrip())
    last = answer.starts[0] + len(text.rstrip()) - 1
    # a token without characters, which byte-level vocabularies can produce, covers nothing
    real = spans[:, 1] > spans[:, 0]
    begins = np.flatnonzero(real & (spans[:, 0] <= first) & (first < spans[:, 1]))
    ends = np.flatnonzero(real & (spans[:, 0] <= last) & (last < spans[:, 1]))
    return (int(begins[0]), int(ends[-1])) if len(begins) and len(ends) else (0, 0)


def question_tokens(
    spans: Int[Tensor, "batch tokens 2"], real: Bool[Tensor, "batch tokens"]
) -> Bool[Tensor, "batch tokens"]:
    """Return the tokens before the context of each window: [CLS], the question, and what separates them."""
    return (spans[..., 0] >= 0).long().cumsum(-1).eq(0) & real
