"""Questions and long contexts into windows: each is the whole question and a part of the context, with its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from prunekit.data.rows import Rows
from prunekit.data.spans import Answer
from prunekit.data.spec import DataError

CHUNK = 1024  # rows per call of the tokenizer: offsets are many


def windows(rows: Rows, tokenizer: Any, max_length: int, stride: int) -> dict[str, Any]:
    """All windows of all rows: `ids`, `offsets`, `labels` and, for models that have them, `segments`, end to end.

    `spans` are the first character of each token in the context and the one behind its last, -1 outside the context;
    `examples` says of which row a window is. `labels` are the first and last token of the row's first answer, or
    0, 0, which is [CLS], where the window does not hold it whole.

    Raises:
        DataError: a tokenizer without offsets, or a question that leaves too little room for the context.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} does not say where its tokens come from, as finding answers needs; "
            f"copy tokenizer.json beside it."
        )
    typed = "token_type_ids" in tokenizer.model_input_names
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("ids", "spans", "segments")}
    labels: list[tuple[int, int]] = []
    examples: list[int] = []
    lengths: list[int] = []
    for number, window in _encoded(rows, tokenizer, max_length, stride):
        inside = np.asarray([part == 1 for part in window.sequence_ids])
        spans = np.where(inside[:, None], np.asarray(window.offsets, np.int32).reshape(-1, 2), -1)
        parts["ids"].append(np.asarray(window.ids, np.int32))
        parts["spans"].append(spans.astype(np.int32))
        parts["segments"].append(np.asarray(window.type_ids, np.int8))
        answer: Any = rows.labels[number]
        labels.append(answer_tokens(answer, spans))
        examples.append(number)
        lengths.append(len(window.ids))
    found = {name: torch.from_numpy(np.concatenate(column)) for name, column in parts.items()}
    if not typed:
        del found["segments"]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return found | {
        "offsets": torch.from_numpy(offsets),
        "labels": torch.tensor(labels, dtype=torch.int64).view(-1, 2),
        "examples": torch.tensor(examples, dtype=torch.int64),
    }


def _encoded(rows: Rows, tokenizer: Any, max_length: int, stride: int) -> Iterator[tuple[int, Any]]:
    """The windows of each row in their order, as tokenizers' Encoding."""
    assert rows.pairs is not None
    special = tokenizer.num_special_tokens_to_add(pair=True)
    for start in range(0, len(rows), CHUNK):
        questions, contexts = list(rows.texts[start : start + CHUNK]), list(rows.pairs[start : start + CHUNK])
        alone = tokenizer(questions, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for place, ids in enumerate(alone["input_ids"], start):
            room = max_length - special - len(ids)
            if room <= stride:
                raise DataError(
                    f"{rows.at(place)}: the question has {len(ids)} tokens, which leaves {max(room, 0)} of "
                    f"task.max_length={max_length} for the context; windows overlap by task.stride={stride} and need "
                    f"more.\nSet task.max_length to more than {special + len(ids) + stride}, or task.stride lower, or "
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
    """The first and last token of the first answer; 0, 0 where there is none, or not all of it in this window.

    White space around the answer belongs to no token and does not count.
    """
    if not answer.texts:
        return 0, 0
    text = answer.texts[0]
    first = answer.starts[0] + len(text) - len(text.lstrip())
    last = answer.starts[0] + len(text.rstrip()) - 1
    # a token without characters, as byte-level vocabularies may make, holds nothing
    real = spans[:, 1] > spans[:, 0]
    begins = np.flatnonzero(real & (spans[:, 0] <= first) & (first < spans[:, 1]))
    ends = np.flatnonzero(real & (spans[:, 0] <= last) & (last < spans[:, 1]))
    return (int(begins[0]), int(ends[-1])) if len(begins) and len(ends) else (0, 0)


def question_tokens(
    spans: Int[Tensor, "batch tokens 2"], real: Bool[Tensor, "batch tokens"]
) -> Bool[Tensor, "batch tokens"]:
    """What stands before the context in each window: [CLS], the question, and what separates them."""
    return (spans[..., 0] >= 0).long().cumsum(-1).eq(0) & real
