"""The test texts of a run, stored for reports: every prediction, and how long each token of some texts was kept.

One compressed file per run, examples.npz, bounded by `ROWS` predictions and `TOKENS` tokens; read without torch and
without pickle.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.files import atomic_write_bytes

NAME = "examples.npz"
SCHEMA = 1
ROWS = 20_000  # predictions stored
ANSWER = 80  # characters of an answer that are stored
TOKENS = 131_072  # tokens stored with their scores, over all texts
# a score is stored as 1..255: eighths of an octave around 1, which is uniform attention; 0 = already dropped
STEPS, MIDDLE = 8, 128


@dataclass(frozen=True)
class Examples:
    """Numbers per test row, then the tokens of the rows in `index`, end to end from `offsets`.

    `labels`, `predicted` and `dense` (the dense model's prediction) are class numbers, or values under regression;
    `counts` are the tokens that entered the feed-forward half of each layer. `depth` is the number of layers that a
    token passed whole, `scores` the attention it received at each layer, as `encode_scores` stores it.
    """

    labels: np.ndarray  # [rows]
    predicted: np.ndarray  # [rows]
    dense: np.ndarray  # [rows]
    lengths: np.ndarray  # [rows]
    counts: np.ndarray  # [rows, layers]
    index: np.ndarray  # [texts]
    offsets: np.ndarray  # [texts + 1]
    ids: np.ndarray  # [tokens]
    depth: np.ndarray  # [tokens]
    scores: np.ndarray  # [tokens, layers]
    piece_ids: np.ndarray  # [types], sorted
    pieces: np.ndarray  # [types], text of each token type
    special: np.ndarray  # [types], 1 for [CLS] and the like
    classes: tuple[str, ...]  # names of the classes; none under regression
    # of question answering: a right answer, the dense model's, the pruned one's; a row is then a window, its answers
    # those to its question, and its class that of the answer: wrong, an answer or no answer
    answers: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.str_))  # [rows or 0, 3]

    @property
    def layers(self) -> int:
        """Number of layers of the backbone."""
        return int(self.counts.shape[1])

    @property
    def classification(self) -> bool:
        """Whether predictions are classes."""
        return bool(self.classes)

    def outputs(self, row: int) -> tuple[str | float, str | float, str | float]:
        """Return the right answer to a test row, the dense model's and the pruned one's, in words where there are."""
        if len(self.answers):
            right, dense, pruned = (str(text) or self.classes[-1] for text in self.answers[row])
            return right, dense, pruned
        columns = (self.labels[row], self.dense[row], self.predicted[row])
        if self.classification:
            right, dense, pruned = (self.classes[int(value)] for value in columns)
            return right, dense, pruned
        first, second, third = (round(float(value), 4) for value in columns)
        return first, second, third

    def first_texts(self, texts: int) -> Examples:
        """Return the same examples with the tokens of the first texts only."""
        stop = int(self.offsets[texts])
        short: dict[str, Any] = {"ids": self.ids[:stop], "depth": self.depth[:stop], "scores": self.scores[:stop]}
        return replace(self, index=self.index[:texts], offsets=self.offsets[: texts + 1], **short)

    def text(self, number: int) -> slice:
        """Return the positions of the tokens of the text at this place of `index`."""
        return slice(int(self.offsets[number]), int(self.offsets[number + 1]))


def encode_scores(scores: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Store scores, 0 and more, as a byte each, within 4.5 %; 0 where the token was already dropped."""
    octaves = np.log2(np.maximum(scores.astype(np.float32), 1e-6))
    return np.where(alive, np.clip(np.rint(octaves * STEPS) + MIDDLE, 1, 255), 0).astype(np.uint8)


def decode_scores(codes: np.ndarray) -> np.ndarray:
    """Return the scores that `encode_scores` stored; 0 where the token was already dropped."""
    return np.where(codes == 0, 0.0, 2.0 ** ((codes.astype(np.float32) - MIDDLE) / STEPS))


def rows_within(lengths: Sequence[int], most: int) -> int:
    """Count how many first rows of these lengths hold at most `TOKENS` tokens; at most `most`."""
    inside = int((np.cumsum(lengths) <= TOKENS).sum())
    return min(inside, most)


def save(found: Examples, folder: Path) -> None:
    """Write the file into a run's folder."""
    arrays: dict[str, Any] = {one.name: getattr(found, one.name) for one in fields(found)}
    arrays["classes"] = np.array(json.dumps({"schema": SCHEMA, "classes": list(found.classes)}))
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    atomic_write_bytes(folder / NAME, stream.getvalue())


def load(folder: Path) -> Examples | None:
    """Read the file of a run's folder; None where there is none.

    Raises:
        ValueError: it cannot be read, or another version wrote it.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            about = json.loads(str(stored["classes"]))
            arrays = {one.name: stored[one.name] for one in fields(Examples) if one.name in stored}
    except (OSError, KeyError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__})") from error
    if about["schema"] != SCHEMA:
        raise ValueError(f"{path} has schema {about['schema']}, this prunekit reads {SCHEMA}")
    arrays.pop("classes")
    return Examples(**arrays, classes=tuple(about["classes"]))
