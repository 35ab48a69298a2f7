"""What a run leaves for reports about its test texts: every prediction, and which tokens of some texts stayed how long.

One compressed file per run, examples.npz, bounded by `ROWS` predictions and `TOKENS` tokens; read without torch and
without pickle.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.files import atomic_write_bytes

NAME = "examples.npz"
SCHEMA = 1
ROWS = 20_000  # predictions stored
TOKENS = 131_072  # tokens stored with their scores, over all texts

# a score is stored as 1..255: eighths of an octave around 1, which is the attention of a uniform spread; 0 = was gone
STEPS, MIDDLE = 8, 128


@dataclass(frozen=True)
class Examples:
    """Numbers per test row, then the tokens of `index`, whose rows lie end to end from `offsets`.

    `labels`, `predicted` and `dense` (the dense model's prediction) are class numbers, or values under regression;
    `counts` are the tokens that entered the feed-forward half of each layer. `depth` is the number of layers that a
    token passed whole, `scores` what it received at each layer, coded by `coded`.
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

    @property
    def layers(self) -> int:
        """Layers of the backbone."""
        return int(self.counts.shape[1])

    @property
    def classification(self) -> bool:
        """Whether predictions are classes."""
        return bool(self.classes)

    def first(self, texts: int) -> Examples:
        """The same with the tokens of the first texts only."""
        stop = int(self.offsets[texts])
        short: dict[str, Any] = {"ids": self.ids[:stop], "depth": self.depth[:stop], "scores": self.scores[:stop]}
        return replace(self, index=self.index[:texts], offsets=self.offsets[: texts + 1], **short)

    def text(self, number: int) -> slice:
        """Where the tokens of the text at this place of `index` lie."""
        return slice(int(self.offsets[number]), int(self.offsets[number + 1]))


def coded(scores: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Scores, 0 and more, as a byte each, within 4.5 %; 0 where the token was gone."""
    octaves = np.log2(np.maximum(scores.astype(np.float32), 1e-6))
    return np.where(alive, np.clip(np.rint(octaves * STEPS) + MIDDLE, 1, 255), 0).astype(np.uint8)


def decoded(codes: np.ndarray) -> np.ndarray:
    """Scores from their codes; 0 where the token was gone."""
    return np.where(codes == 0, 0.0, 2.0 ** ((codes.astype(np.float32) - MIDDLE) / STEPS))


def rows_within(lengths: Sequence[int], most: int) -> int:
    """How many first rows of these lengths hold at most `TOKENS` tokens, and are at most `most`."""
    inside = int((np.cumsum(lengths) <= TOKENS).sum())
    return min(inside, most)


def save(found: Examples, folder: Path) -> None:
    """Writes the file into a run's folder."""
    arrays: dict[str, Any] = {field.name: getattr(found, field.name) for field in fields(found)}
    arrays["classes"] = np.array(json.dumps({"schema": SCHEMA, "classes": list(found.classes)}))
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    atomic_write_bytes(folder / NAME, stream.getvalue())


def load(folder: Path) -> Examples | None:
    """The file of a run's folder, None where there is none.

    Raises:
        ValueError: it cannot be read, or another version wrote it.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            about = json.loads(str(stored["classes"]))
            arrays = {field.name: stored[field.name] for field in fields(Examples) if field.name in stored}
    except (OSError, KeyError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__})") from error
    if about["schema"] != SCHEMA:
        raise ValueError(f"{path} has schema {about['schema']}, this prunekit reads {SCHEMA}")
    arrays.pop("classes")
    return Examples(**arrays, classes=tuple(about["classes"]))
