"""Tokenise each split once into a ragged table, cached on disk under a fingerprint of everything that affects it."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunekit.data.errors import DataError
from prunekit.data.rows import Rows

# part of every fingerprint: raise it when the code below changes what it computes
VERSION = "1"
CHUNK = 4096  # texts per call of the tokenizer
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")  # one of which a tokenizer is made from

Batch = Mapping[str, Tensor]  # of a split: what the model reads, `labels`, `index`, and what the task's kind adds


@dataclass(frozen=True)
class Padding:
    """The numbers that fill a batch after a row's end."""

    token: int = 0
    segment: int = 0


class Targets(ABC):
    """What the rows of a split are judged by. Each kind of task has a form of its own, a subclass."""

    @property
    @abstractmethod
    def judged(self) -> int:
        """How many predictions are judged: rows, or what was there before a row was read in several windows."""

    @property
    def references(self) -> Sequence[str]:
        """The right text for everything that is judged; empty where no text is predicted."""
        return ()

    @abstractmethod
    def batch(
        self, rows: Int[Tensor, "batch"], place: Int[Tensor, "batch width"], inside: Bool[Tensor, "batch width"]
    ) -> dict[str, Tensor]:
        """Return `labels` of these rows, and what else their batch holds.

        `place` says where each token is in the split's `ids`, `inside` which tokens are not padding.
        """

    def protected(self, offsets: Int[Tensor, "boundaries"]) -> Int[Tensor, "rows"]:
        """Return the number of protected tokens of each row; `offsets` are those of the split. [CLS] by default."""
        return torch.ones(len(offsets) - 1, dtype=torch.int64)


@dataclass(frozen=True)
class LabelTargets(Targets):
    """A label per row: a class number, or a value where there are no classes to `names`."""

    labels: Shaped[Tensor, "rows *outputs"]
    names: Sequence[str] = ()

    @property
    def judged(self) -> int:
        """How many rows there are."""
        return len(self.labels)

    def batch(
        self, rows: Int[Tensor, "batch"], place: Int[Tensor, "batch width"], inside: Bool[Tensor, "batch width"]
    ) -> dict[str, Tensor]:
        """Return the labels."""
        return {"labels": self.labels[rows]}


@dataclass(frozen=True)
class EncodedSplit:
    """The token ids of all rows, end to end; row i is `ids[offsets[i]:offsets[i + 1]]`.

    `targets` is what depends on the kind of task. `segments` are token types, None for models that have none;
    `truncated` counts rows cut at the longest length allowed.
    """

    ids: Int[Tensor, "total"]
    offsets: Int[Tensor, "boundaries"]
    targets: Targets
    fingerprint: str
    segments: Int[Tensor, "total"] | None = None
    truncated: int = 0
    padding: Padding = Padding()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int[Tensor, "rows"]:
        """Tokens of each row, special ones included."""
        return self.offsets.diff()

    @property
    def judged(self) -> int:
        """How many predictions are judged: rows, or what was there before a row was read in several windows."""
        return self.targets.judged

    @property
    def protected(self) -> Int[Tensor, "rows"]:
        """How many tokens of each row are protected."""
        return self.targets.protected(self.offsets)

    def row(self, number: int) -> list[int]:
        """Return the token ids of one row."""
        return self.ids[int(self.offsets[number]) : int(self.offsets[number + 1])].tolist()

    def batch(self, rows: Int[Tensor, "batch"]) -> dict[str, Tensor]:
        """Return the rows of these numbers, padded to the longest of them; `index` holds the numbers."""
        start = self.offsets[rows]
        length = self.offsets[rows + 1] - start
        column = torch.arange(int(length.max()))
        inside = column < length[:, None]
        place = (start[:, None] + column).clamp(max=len(self.ids) - 1)
        batch = {
            "input_ids": self.ids[place].long().masked_fill(~inside, self.padding.token),
            "attention_mask": inside.long(),
        }
        if self.segments is not None:
            batch["token_type_ids"] = self.segments[place].long().masked_fill(~inside, self.padding.segment)
        return batch | self.targets.batch(rows, place, inside) | {"index": rows.clone()}


def load_tokenizer(source: str | Path) -> Any:
    """Load the tokenizer of a backbone, a folder or a hub id.

    Raises:
        DataError: the folder has none.
    """
    from transformers import AutoTokenizer  # takes seconds, and a cached split is read without it

    folder = Path(source)
    if folder.is_dir() and not any(any(folder.glob(name)) for name in VOCABULARIES):
        # transformers would make one that knows no word, without a warning
        raise DataError(
            f"{folder} has no tokenizer: none of {', '.join(VOCABULARIES)}; copy tokenizer.json and "
            f"tokenizer_config.json there, or write it with tokenizer.save_pretrained."
        )
    try:
        return AutoTokenizer.from_pretrained(source)
    except Exception as error:  # transformers lets any error of a broken file through
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise DataError(
            f"{source} has no tokenizer that can be loaded ({reason}); "
            f"copy tokenizer.json and tokenizer_config.json there."
        ) from error


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hex digest of what a tokenizer does to a text, whatever its defaults for padding and truncation."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content = repr(sorted(tokenizer.get_vocab().items()))
    else:
        backend.no_truncation()
        backend.no_padding()
        content = backend.to_str()
    settings = [type(tokenizer).__name__, tokenizer.model_input_names, tokenizer.pad_token_id, tokenizer.padding_side]
    return hashlib.sha256(f"{settings}{content}".encode()).hexdigest()


def fingerprint(rows: Rows[Any], tokenizer_hash: str, max_length: int, stride: int | None = None) -> str:
    """Return a hex digest of everything that the encoding of these rows depends on, labels included.

    `stride` is the overlap of windows, None where rows are not read in windows.
    """
    overlap = "" if stride is None else f" {stride}"
    head = f"{VERSION} {tokenizer_hash} {max_length} {len(rows)} {rows.pairs is None}{overlap}\n"
    digest = hashlib.sha256(head.encode())
    for text in [*rows.texts, *(rows.pairs or ())]:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little"))  # so that moving a border between two texts shows
        digest.update(raw)
    for label in rows.labels:
        digest.update(repr(label).encode() + b"\n")
    return digest.hexdigest()


@dataclass(frozen=True)
class StoredSplit:
    """A split as its cache file holds it: `ids`, `offsets`, `labels`, `segments` of models that have them, and what a
    kind of task adds; `truncated` as in EncodedSplit.
    """

    tensors: Mapping[str, Tensor]
    truncated: int = 0


@dataclass(frozen=True)
class Encoder:
    """A tokenizer, the longest length allowed, and the folder in which encoded splits are cached; None caches nothing.

    Raises:
        DataError: `max_length` is more than the model reads.
    """

    tokenizer: Any
    max_length: int
    cache: Path | None = None

    def __post_init__(self) -> None:
        longest = self.tokenizer.model_max_length
        if self.max_length > longest:
            raise DataError(
                f"task.max_length={self.max_length}, but this backbone reads at most {longest} tokens; "
                f"set task.max_length={longest} or less."
            )

    @cached_property
    def tokenizer_hash(self) -> str:
        """`tokenizer_fingerprint` of the tokenizer."""
        return tokenizer_fingerprint(self.tokenizer)

    @property
    def has_segments(self) -> bool:
        """Whether the model has token types."""
        return "token_type_ids" in self.tokenizer.model_input_names

    def split(
        self, key: str, tokenise: Callable[[], StoredSplit], targets: Callable[[Mapping[str, Tensor]], Targets]
    ) -> EncodedSplit:
        """Return the split with the fingerprint `key`, from the cache where it is there, else from `tokenise`.

        `targets` makes the targets from the tensors.
        """
        path = None if self.cache is None else self.cache / f"{key[:32]}.safetensors"
        stored = _load(path, key) if path is not None else None
        if stored is None:
            stored = tokenise()
            if path is not None:
                _save(stored, key, path)
        return EncodedSplit(
            ids=stored.tensors["ids"],
            offsets=stored.tensors["offsets"],
            targets=targets(stored.tensors),
            fingerprint=key,
            segments=stored.tensors.get("segments"),
            truncated=stored.truncated,
            padding=Padding(self.tokenizer.pad_token_id, self.tokenizer.pad_token_type_id),
        )


def encode_texts(rows: Rows[Any], encoder: Encoder, names: Sequence[str] = ()) -> EncodedSplit:
    """Tokenise texts with a label each, or read what an earlier call with the same rows and encoder left in the cache.

    `names` are the classes; without them labels are values.
    """

    def tokenise() -> StoredSplit:
        stored = tokenise_texts(rows, encoder)
        labels = list(rows.labels)
        number = torch.float32 if labels and isinstance(labels[0], float) else torch.int64
        return StoredSplit({**stored.tensors, "labels": torch.tensor(labels, dtype=number)}, stored.truncated)

    key = fingerprint(rows, encoder.tokenizer_hash, encoder.max_length)
    return encoder.split(key, tokenise, lambda tensors: LabelTargets(tensors["labels"], names))


def tokenise_texts(rows: Rows[Any], encoder: Encoder) -> StoredSplit:
    """Tokenise texts, or pairs of them, cut at the longest length; their labels are not looked at."""
    ids: list[np.ndarray] = []
    segments: list[np.ndarray] = []
    lengths: list[int] = []
    truncated = 0
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        texts, pairs = list(rows.texts[part]), None if rows.pairs is None else list(rows.pairs[part])
        encoded = _call(encoder.tokenizer, texts, pairs)
        long = [row for row, tokens in enumerate(encoded["input_ids"]) if len(tokens) > encoder.max_length]
        if long:
            truncated += len(long)
            again = _call(
                encoder.tokenizer,
                [texts[row] for row in long],
                None if pairs is None else [pairs[row] for row in long],
                truncation=True,
                max_length=encoder.max_length,
            )
            for name, values in again.items():
                for row, value in zip(long, values, strict=True):
                    encoded[name][row] = value
        lengths += [len(tokens) for tokens in encoded["input_ids"]]
        ids += [np.asarray(tokens, np.int32) for tokens in encoded["input_ids"]]
        if encoder.has_segments:
            segments += [np.asarray(types, np.int8) for types in encoded["token_type_ids"]]
    tensors = {"ids": torch.from_numpy(np.concatenate(ids)), "offsets": offsets_of(lengths)}
    if encoder.has_segments:
        tensors["segments"] = torch.from_numpy(np.concatenate(segments))
    return StoredSplit(tensors, truncated)


def offsets_of(lengths: Sequence[int]) -> Int[Tensor, "boundaries"]:
    """Return where rows of these lengths begin when they are laid end to end, and where the last one ends."""
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))


def _call(tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, **cut: Any) -> dict[str, list[Any]]:
    # verbose=False: a text longer than the model reads is cut and counted here, no warning is due
    return dict(tokenizer(texts, pairs, padding=False, return_attention_mask=False, verbose=False, **cut))


def _save(stored: StoredSplit, key: str, path: Path) -> None:
    """Write atomically; a cache that cannot be written is done without."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    try:
        save_file(dict(stored.tensors), scratch, {"fingerprint": key, "truncated": str(stored.truncated)})
        scratch.replace(path)
    except (OSError, SafetensorError):
        scratch.unlink(missing_ok=True)


def _load(path: Path, key: str) -> StoredSplit | None:
    """Return what `_save` wrote for this fingerprint; None when there is nothing usable."""
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as stream:
            about = stream.metadata()
        is_usable = about["fingerprint"] == key and {"ids", "offsets", "labels"} <= tensors.keys()
        return StoredSplit(tensors, int(about["truncated"])) if is_usable else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
