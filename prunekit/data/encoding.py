"""Tokenise each split once, with Dataset.map, into a file named by a fingerprint of everything that affects it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from datasets import Dataset
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from prunekit.data import spill
from prunekit.data.errors import DataError
from prunekit.data.folders import special_file
from prunekit.data.ragged import Ragged
from prunekit.data.rows import Rows
from prunekit.data.store import datasets_quiet, discard_damaged, in_memory, is_writable, seal_all
from prunekit.files import remove_sealed

# of columns of some rows, with the rows' numbers, to columns of what they are encoded to, as Arrow arrays
Tokenise = Callable[[Mapping[str, list[Any]], list[int]], Mapping[str, Any]]

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

    @property
    def cut(self) -> Mapping[str, int]:
        """Numbers of what is judged and not read, besides that of the rows that are cut; by default none."""
        return {}

    @abstractmethod
    def batch(self, rows: Int[Tensor, "batch"], inside: Bool[Tensor, "batch width"]) -> dict[str, Tensor]:
        """Return `labels` of these rows, and what else their batch holds; `inside` are tokens that are not padding."""

    def answered(self, outputs: Float[Tensor, "rows outputs"]) -> Targets:
        """Return these targets with the outputs of the model that was given, where they are learned."""
        raise NotImplementedError(f"{type(self).__name__} are not learned from a model")

    def protected(self, offsets: Int[Tensor, "boundaries"]) -> Int[Tensor, "rows"]:
        """Return the number of protected tokens of each row; `offsets` are those of the split. [CLS] by default."""
        return torch.ones(len(offsets) - 1, dtype=torch.int64)


@dataclass(frozen=True)
class LabelTargets(Targets):
    """A label per row: a class number, or a value where there are no classes to `names`; or whether it has each.

    Of pairs, rows with the same number in `queries` have the same first text; None where nobody asks for it.
    """

    labels: Shaped[Tensor, "rows *outputs"]
    names: Sequence[str] = ()
    queries: Int[Tensor, "rows"] | None = None

    @property
    def judged(self) -> int:
        """How many rows there are."""
        return len(self.labels)

    def batch(self, rows: Int[Tensor, "batch"], inside: Bool[Tensor, "batch width"]) -> dict[str, Tensor]:
        """Return the labels."""
        return {"labels": self.labels[rows]}

    def answered(self, outputs: Float[Tensor, "rows outputs"]) -> LabelTargets:
        """Return targets whose labels are these outputs."""
        return replace(self, labels=outputs)


@dataclass(frozen=True)
class VectorTargets(Targets):
    """The vectors of an embedder that was given, from when it has read the texts.

    Rows 2i and 2i + 1 are the pair whose score is `scores[i]`; None where texts are no pairs, or have no scores.
    """

    texts: int
    scores: Float[Tensor, "pairs"] | None = None
    vectors: Float[Tensor, "rows size"] | None = None

    @property
    def judged(self) -> int:
        """How many texts there are."""
        return self.texts

    def batch(self, rows: Int[Tensor, "batch"], inside: Bool[Tensor, "batch width"]) -> dict[str, Tensor]:
        """Return the vectors as `labels` [batch, size]; of no numbers where they are not known."""
        return {"labels": torch.zeros(len(rows), 0) if self.vectors is None else self.vectors[rows]}

    def answered(self, outputs: Float[Tensor, "rows size"]) -> VectorTargets:
        """Return targets with these vectors."""
        return replace(self, vectors=outputs)


@dataclass(frozen=True)
class EncodedSplit:
    """The token ids of all rows.

    `targets` is what depends on the kind of task. `segments` are token types, None for models that have none;
    `truncated` counts rows cut at the longest length allowed.
    """

    tokens: Ragged
    targets: Targets
    fingerprint: str
    segments: Ragged | None = None
    truncated: int = 0
    padding: Padding = Padding()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def offsets(self) -> Int[Tensor, "boundaries"]:
        """Where each row's tokens begin when they are laid end to end, and where the last row's end."""
        return self.tokens.offsets

    @property
    def lengths(self) -> Int[Tensor, "rows"]:
        """Tokens of each row, special ones included."""
        return self.tokens.lengths

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
        ids: list[int] = self.tokens.row(number).tolist()
        return ids

    def batch(self, rows: Int[Tensor, "batch"]) -> dict[str, Tensor]:
        """Return the rows of these numbers, padded to the longest of them; `index` holds the numbers."""
        ids = self.tokens.padded(rows, self.padding.token)
        length = self.offsets[rows + 1] - self.offsets[rows]
        inside = torch.arange(ids.shape[1]) < length[:, None]
        batch = {"input_ids": ids, "attention_mask": inside.long()}
        if self.segments is not None:
            same = self.padding.segment == 0 and self.segments.is_zero  # as where there are no second texts
            batch["token_type_ids"] = (
                torch.zeros_like(ids) if same else self.segments.padded(rows, self.padding.segment)
            )
        return batch | self.targets.batch(rows, inside) | {"index": rows.clone()}


def load_tokenizer(source: str | Path, config: Any = None) -> Any:
    """Load the tokenizer of a backbone, a folder or a hub id; `config` is that of its model, where it has none there.

    Raises:
        DataError: the folder has none.
    """
    from transformers import AutoTokenizer  # takes seconds, and a cached split is read without it

    folder = Path(source)
    if (special := special_file(folder)) is not None:
        raise DataError(f"{special} is a pipe, a socket or a device, and no file; remove it, or give another folder.")
    if folder.is_dir() and not any(any(folder.glob(name)) for name in VOCABULARIES):
        # transformers would make one that knows no word, without a warning
        raise DataError(
            f"{folder} has no tokenizer: none of {', '.join(VOCABULARIES)}; copy tokenizer.json and "
            f"tokenizer_config.json there, or write it with tokenizer.save_pretrained."
        )
    try:
        return AutoTokenizer.from_pretrained(source, config=config, trust_remote_code=False)
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
    for text in chain(rows.texts, rows.pairs or ()):
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little"))  # so that moving a border between two texts shows
        digest.update(raw)
    for label in rows.labels:
        digest.update(repr(label).encode() + b"\n")
    return digest.hexdigest()


@dataclass(frozen=True)
class Encoder:
    """A tokenizer, the longest length allowed, and the folder in which encoded splits are cached; None caches nothing.

    `processes` tokenise at the same time. With `protects_first` no method may shorten the first of two texts.

    Raises:
        DataError: `max_length` is more than the model reads.
    """

    tokenizer: Any
    max_length: int
    cache: Path | None = None
    processes: int = 1
    protects_first: bool = False

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

    def encode(self, key: str, rows: Mapping[str, Sequence[Any]], tokenise: Tokenise) -> dict[str, list[Any]]:
        """Return columns of token ids, as Arrow arrays: from the cache, where it has `key`, or else from `tokenise`."""
        cache = self.cache if self.cache is not None and is_writable(self.cache) else None
        path = None if cache is None else str(cache / f"{key[:32]}.arrow")
        # a Dataset of row numbers alone: its own reading of chosen rows keeps their numbers in memory, and is slower
        dataset = in_memory(pyarrow.table({"row": pyarrow.nulls(len(next(iter(rows.values()))))}))
        tokenizer_fingerprint(self.tokenizer)  # sets its defaults for truncation and padding
        encode_again = partial(
            dataset.map,
            partial(_encode_some, tokenise, rows),
            with_indices=True,
            batched=True,
            batch_size=CHUNK,
            remove_columns=["row"],
            num_proc=self.processes if self.processes > 1 else None,
            new_fingerprint=key[:32],
            cache_file_name=path,
            keep_in_memory=path is None,
        )
        with datasets_quiet():
            # one file, or several where processes wrote one each
            parts = [] if cache is None else sorted(cache.glob(f"{key[:32]}*.arrow"))
            discard_damaged(*parts)
            try:
                found = encode_again(load_from_cache_file=True)
            except (pyarrow.ArrowException, OSError):  # a damaged file without a seal
                found = None
            if found is None or not _is_whole(found, len(dataset)):
                remove_sealed(*parts)
                found = encode_again(load_from_cache_file=False)
        seal_all(cache, (Path(file["filename"]) for file in found.cache_files))
        return {name: found.data.column(name).chunks for name in found.column_names}

    def split(self, key: str, columns: Mapping[str, list[Any]], targets: Targets) -> EncodedSplit:
        """Return a split of what `encode` returned for this key."""
        return EncodedSplit(
            tokens=Ragged.of_lists(columns["ids"]),
            targets=targets,
            fingerprint=key,
            segments=Ragged.of_lists(columns["segments"]) if "segments" in columns else None,
            truncated=sum(int(chunk.sum().as_py() or 0) for chunk in columns.get("cut", ())),
            padding=Padding(self.tokenizer.pad_token_id, self.tokenizer.pad_token_type_id),
        )


def _encode_some(
    tokenise: Tokenise, columns: Mapping[str, Sequence[Any]], _: Mapping[str, list[None]], numbers: list[int]
) -> pyarrow.Table:
    some = slice(numbers[0], numbers[-1] + 1)
    rows = {name: list(column[some]) for name, column in columns.items()}
    return pyarrow.table(dict(tokenise(rows, numbers)))


def _is_whole(encoded: Dataset, rows: int) -> bool:
    """Return whether all rows were encoded; several may be made of one, which `example` then names."""
    if "example" in encoded.column_names:
        return len(encoded) >= rows and (rows == 0 or encoded[-1]["example"] == rows - 1)
    return len(encoded) == rows


def encode_texts(rows: Rows[Any], encoder: Encoder, names: Sequence[str] = ()) -> EncodedSplit:
    """Tokenise texts with a label each, or read what an earlier call with the same rows and encoder left in the cache.

    `names` are the classes; without them labels are values.
    """
    number = np.float32 if len(rows) and isinstance(rows.labels[0], float) else np.int64
    labels = torch.from_numpy(spill.filled(rows.labels, number, len(rows)))
    return _encode(rows, encoder, LabelTargets(labels, names))


def number_queries(texts: Sequence[str]) -> Int[Tensor, "rows"]:
    """Return a number per text, the same for equal ones."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(text, len(numbers)) for text in texts], dtype=torch.int64)


def encode_label_sets(rows: Rows[tuple[int, ...]], encoder: Encoder, names: Sequence[str]) -> EncodedSplit:
    """Tokenise texts with any number of labels each, given by their numbers among `names`."""
    has = spill.empty((len(rows), len(names)), np.bool_)
    for row, labels in enumerate(rows.labels):
        has[row, labels] = True
    return _encode(rows, encoder, LabelTargets(torch.from_numpy(has), names))


def _encode(rows: Rows[Any], encoder: Encoder, targets: Targets) -> EncodedSplit:
    key = fingerprint(rows, encoder.tokenizer_hash, encoder.max_length)
    columns = encoder.encode(key, text_columns(rows), TextTokeniser.of(encoder))
    if encoder.protects_first:
        cut = np.concatenate([chunk.to_numpy() for chunk in columns["cut"]])
        _check_room(rows, encoder, np.flatnonzero(cut).tolist())
    return encoder.split(key, columns, targets)


def _check_room(rows: Rows[Any], encoder: Encoder, cut: Sequence[int]) -> None:
    """Check that the first texts of rows that are cut, which are to be kept whole, leave room for the second ones.

    Raises:
        DataError: one fills the longest length alone.
    """
    most = encoder.max_length - encoder.tokenizer.num_special_tokens_to_add(pair=True) - 1
    for some in (cut[start : start + CHUNK] for start in range(0, len(cut), CHUNK)):
        alone = encoder.tokenizer([rows.texts[row] for row in some], add_special_tokens=False, verbose=False)
        for row, ids in zip(some, alone["input_ids"], strict=True):
            if len(ids) > most:
                raise DataError(
                    f"{rows.at(row)}: the first text has {len(ids)} tokens, which leaves none of task.max_length="
                    f"{encoder.max_length} for the second, and protect=first_segment keeps it whole.\n"
                    f"Allowed: first texts of up to {most} tokens.\n"
                    "Shorten it, raise task.max_length, or set protect=none."
                )


def text_columns(rows: Rows[Any]) -> dict[str, Sequence[str]]:
    """Return the columns that are tokenised: texts, and second texts where there are any."""
    return {"text": rows.texts} | ({} if rows.pairs is None else {"pair": rows.pairs})


@dataclass(frozen=True)
class TextTokeniser:
    """Texts, or pairs of them, as token ids, cut at the longest length."""

    tokenizer: Any
    max_length: int
    has_segments: bool

    @classmethod
    def of(cls, encoder: Encoder) -> TextTokeniser:
        """Return the tokeniser of an encoder."""
        return cls(encoder.tokenizer, encoder.max_length, encoder.has_segments)

    def __call__(self, rows: Mapping[str, list[Any]], numbers: Sequence[int]) -> dict[str, Any]:
        """Return the columns `ids`, `segments` of models that have them, and `cut`, whether a text was too long."""
        encoded = self._call(rows)
        long = [row for row, tokens in enumerate(encoded["input_ids"]) if len(tokens) > self.max_length]
        if long:
            again = self._call(
                {name: [column[row] for row in long] for name, column in rows.items()},
                truncation=True,
                max_length=self.max_length,
            )
            for name, values in again.items():
                for row, value in zip(long, values, strict=True):
                    encoded[name][row] = value
        cut = np.zeros(len(numbers), np.int8)
        cut[long] = 1
        columns = {"ids": lists(encoded["input_ids"], np.int32), "cut": pyarrow.array(cut)}
        if self.has_segments:
            columns["segments"] = lists(encoded["token_type_ids"], np.int8)
        return columns

    def _call(self, rows: Mapping[str, list[Any]], **cut: Any) -> dict[str, list[Any]]:
        # verbose=False: a text longer than the model reads is cut and counted here, no warning is due
        texts = [rows["text"]] if "pair" not in rows else [rows["text"], rows["pair"]]
        return dict(self.tokenizer(*texts, padding=False, return_attention_mask=False, verbose=False, **cut))


def lists(rows: Sequence[Sequence[int]], number: type[np.generic]) -> pyarrow.ListArray:
    """Return rows of whole numbers as Arrow lists."""
    ends = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    values = np.fromiter(chain.from_iterable(rows), number, int(ends[-1]))
    return pyarrow.ListArray.from_arrays(ends, values)
