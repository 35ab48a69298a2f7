"""Cut questions and long contexts into windows: each is the whole question and a part of the context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from prunekit.data.encoding import EncodedSplit, Encoder, StoredSplit, Targets, fingerprint, offsets_of
from prunekit.data.errors import DataError
from prunekit.data.rows import Rows
from prunekit.data.spans import Answer

CHUNK = 1024  # rows per tokenizer call, to limit the memory of offsets


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
        ids = rows.ids or [str(row + 1) for row in range(len(rows))]
        return cls(rows.texts, rows.pairs or [""] * len(rows), rows.labels, ids)

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class SpanTargets(Targets):
    """Questions and the windows, a row each, in which they are read.

    `labels` are the first and last token of the question's first answer, or 0, 0, which is [CLS], where the window
    does not hold it whole. `spans` are the first character of each token in the context and the one after its last,
    -1 outside the context; `examples` are the numbers of the windows' questions. `protect_question` protects
    everything before the context.
    """

    labels: Int[Tensor, "rows 2"]
    spans: Int[Tensor, "total 2"]
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
        return [next(iter(answer.texts), "") for answer in self.questions.answers]

    def batch(
        self, rows: Int[Tensor, "batch"], place: Int[Tensor, "batch width"], inside: Bool[Tensor, "batch width"]
    ) -> dict[str, Tensor]:
        """Return the labels, `spans` and `example`, and `protected` where the question is."""
        spans = self.spans[place].masked_fill(~inside[..., None], -1)
        batch = {"spans": spans, "example": self.examples[rows], "labels": self.labels[rows]}
        return batch | ({"protected": question_tokens(spans, inside)} if self.protect_question else {})

    def protected(self, offsets: Int[Tensor, "boundaries"]) -> Int[Tensor, "rows"]:
        """Return the number of tokens before the context, where they are protected."""
        if not self.protect_question:
            return super().protected(offsets)
        context = torch.nn.functional.pad((self.spans[:, 0] >= 0).long().cumsum(0), (1, 0))
        first = torch.searchsorted(context, context[offsets[:-1]] + 1) - 1
        return (first - offsets[:-1]).minimum(offsets.diff())


def encode_windows(
    rows: Rows[Answer], encoder: Encoder, stride: int, *, protect_question: bool = False
) -> EncodedSplit:
    """Tokenise questions and contexts in windows that overlap by `stride` tokens, or read them from the cache.

    Nothing is cut.

    Raises:
        DataError: a tokenizer without offsets, or a question that leaves too little room for the context.
    """

    def targets(tensors: Mapping[str, Tensor]) -> SpanTargets:
        return SpanTargets(
            tensors["labels"], tensors["spans"], tensors["examples"], Questions.of(rows), protect_question
        )

    key = fingerprint(rows, encoder.tokenizer_hash, encoder.max_length, stride)
    return encoder.split(key, lambda: _tokenise(rows, encoder, stride), targets)


def _tokenise(rows: Rows[Answer], encoder: Encoder, stride: int) -> StoredSplit:
    """Return all windows of all rows, end to end."""
    if not encoder.tokenizer.is_fast:
        raise DataError(
            f"{type(encoder.tokenizer).__name__} does not say where its tokens come from, as finding answers needs; "
            f"copy tokenizer.json beside it."
        )
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("ids", "spans", "segments")}
    labels: list[tuple[int, int]] = []
    examples: list[int] = []
    lengths: list[int] = []
    for number, window in _encode_windows(rows, encoder, stride):
        inside = np.asarray([part == 1 for part in window.sequence_ids])
        spans = np.where(inside[:, None], np.asarray(window.offsets, np.int32).reshape(-1, 2), -1)
        parts["ids"].append(np.asarray(window.ids, np.int32))
        parts["spans"].append(spans.astype(np.int32))
        parts["segments"].append(np.asarray(window.type_ids, np.int8))
        labels.append(answer_tokens(rows.labels[number], spans))
        examples.append(number)
        lengths.append(len(window.ids))
    tensors = {name: torch.from_numpy(np.concatenate(column)) for name, column in parts.items()}
    if not encoder.has_segments:
        del tensors["segments"]
    return StoredSplit(
        tensors
        | {
            "offsets": offsets_of(lengths),
            "labels": torch.tensor(labels, dtype=torch.int64).view(-1, 2),
            "examples": torch.tensor(examples, dtype=torch.int64),
        }
    )


def _encode_windows(rows: Rows[Answer], encoder: Encoder, stride: int) -> Iterator[tuple[int, Any]]:
    """Yield (row number, window), in order; a window is an Encoding of the tokenizers library."""
    tokenizer, max_length = encoder.tokenizer, encoder.max_length
    special = tokenizer.num_special_tokens_to_add(pair=True)
    asked = Questions.of(rows)
    for start in range(0, len(rows), CHUNK):
        questions, contexts = list(asked.texts[start : start + CHUNK]), list(asked.contexts[start : start + CHUNK])
        alone = tokenizer(questions, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for place, ids in enumerate(alone["input_ids"], start):
            room = max_length - special - len(ids)
            if room <= stride:
                raise DataError(
                    f"{rows.at(place)}: the question has {len(ids)} tokens, which leaves {max(room, 0)} of "
                    f"task.max_length={max_length} for the context; windows overlap by task.stride={stride} and need "
                    f"more.\nSet task.max_length to more than {special + len(ids) + stride}, lower task.stride, or "
                    f"shorten the question."
                )
        encoded = tokenizer(
            questions,
            contexts,
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            padding=False,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        for window, row in zip(encoded.encodings, encoded["overflow_to_sample_mapping"], strict=True):
            yield start + row, window


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
