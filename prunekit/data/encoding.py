"""Texts into token ids, once: a ragged table per split, cached on disk under a fingerprint of all it hangs on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunekit.data.rows import Rows
from prunekit.data.spec import DataError
from prunekit.data.windows import question_tokens, windows

# part of every fingerprint: raise it when the code below changes what it computes
VERSION = "1"
PADDED = -100  # behind the targets of a batch, where no loss looks
CHUNK = 4096  # texts per call of the tokenizer
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")  # one of which a tokenizer is made from


@dataclass(frozen=True)
class Padding:
    """The numbers that fill a batch behind a row's end."""

    token: int = 0
    segment: int = 0


@dataclass(frozen=True)
class EncodedSplit:
    """The token ids of all rows, end to end; row i is `ids[offsets[i]:offsets[i + 1]]`.

    `truncated` counts rows cut at the longest length allowed; `segments` are token types, for models that have them.
    Of a task that finds answers a row is a window, `spans` and `examples` are those of `windows`, `labels` have two
    columns, and `questions` holds what was asked. `protect_question` marks all but the context as `protected`.
    Of a translation `words` and `word_offsets` hold the targets in the same way, `labels` are row numbers, `truncated`
    counts cut targets too, and the first `prefix` tokens of a source, which name the task, are `protected`;
    `sources` and `references` are the texts.
    """

    ids: Int[Tensor, "total"]
    offsets: Int[Tensor, "boundaries"]
    labels: Shaped[Tensor, "rows *outputs"]
    fingerprint: str
    segments: Int[Tensor, "total"] | None = None
    truncated: int = 0
    padding: Padding = Padding()
    spans: Int[Tensor, "total 2"] | None = None
    examples: Int[Tensor, "rows"] | None = None
    questions: Rows | None = field(default=None, repr=False, compare=False)
    protect_question: bool = False
    words: Int[Tensor, "words"] | None = None
    word_offsets: Int[Tensor, "boundaries"] | None = None
    prefix: int = 0
    sources: Sequence[str] | None = field(default=None, repr=False, compare=False)
    references: Sequence[str] | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Int[Tensor, "rows"]:
        """Tokens of each row, special ones included."""
        return self.offsets.diff()

    @property
    def judged(self) -> int:
        """How many rows there were before any was read in several windows."""
        return len(self) if self.questions is None else len(self.questions)

    @property
    def protected(self) -> Int[Tensor, "rows"]:
        """How many tokens of each row must stay: [CLS], or all before the context; of a source, prefix and end."""
        if self.words is not None:
            return self.lengths.clamp(max=self.prefix + 1)
        if self.spans is None or not self.protect_question:
            return torch.ones(len(self), dtype=torch.int64)
        context = torch.nn.functional.pad((self.spans[:, 0] >= 0).long().cumsum(0), (1, 0))
        first = torch.searchsorted(context, context[self.offsets[:-1]] + 1) - 1
        return (first - self.offsets[:-1]).minimum(self.lengths)

    def row(self, number: int) -> list[int]:
        """The token ids of one row."""
        return self.ids[int(self.offsets[number]) : int(self.offsets[number + 1])].tolist()

    def batch(self, rows: Int[Tensor, "batch"]) -> dict[str, Tensor]:
        """The rows of these numbers, padded to the longest of them; `index` holds the numbers."""
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
        if self.spans is not None and self.examples is not None:
            spans = self.spans[place].masked_fill(~inside[..., None], -1)
            batch |= {"spans": spans, "example": self.examples[rows]}
            if self.protect_question:
                batch["protected"] = question_tokens(spans, inside)
        if self.prefix > 0:
            end = column == length[:, None] - 1
            batch["protected"] = inside & ((column < self.prefix) | end)
        return batch | {"labels": self._targets(rows), "index": rows.clone()}

    def _targets(self, rows: Int[Tensor, "batch"]) -> Shaped[Tensor, "batch *outputs"]:
        if self.words is None or self.word_offsets is None:
            return self.labels[rows]
        start = self.word_offsets[rows]
        count = self.word_offsets[rows + 1] - start
        column = torch.arange(int(count.max()))
        place = (start[:, None] + column).clamp(max=len(self.words) - 1)
        return self.words[place].long().masked_fill(column >= count[:, None], PADDED)


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer of a backbone, a folder or a hub id.

    Raises:
        DataError: the folder has none.
    """
    from transformers import AutoTokenizer

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
    """Hex digest of what a tokenizer does to a text; how it pads and truncates by default does not count."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content = repr(sorted(tokenizer.get_vocab().items()))
    else:
        backend.no_truncation()
        backend.no_padding()
        content = backend.to_str()
    settings = [type(tokenizer).__name__, tokenizer.model_input_names, tokenizer.pad_token_id, tokenizer.padding_side]
    return hashlib.sha256(f"{settings}{content}".encode()).hexdigest()


def fingerprint(rows: Rows, tokenizer_hash: str, max_length: int, stride: int | None = None) -> str:
    """Hex digest of everything that the encoding of these rows hangs on, labels included; `stride` is of windows."""
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


def encode(
    rows: Rows,
    tokenizer: Any,
    max_length: int,
    cache: Path | None = None,
    tokenizer_hash: str | None = None,
    *,
    stride: int | None = None,
    target_length: int | None = None,
) -> EncodedSplit:
    """Tokenises rows, or reads what an earlier call with the same rows, tokenizer and length left in `cache`.

    With a `stride` nothing is cut: rows are questions and contexts, read in windows that overlap by so many tokens.
    With a `target_length` labels are targets of a translation, cut at so many tokens.

    Raises:
        DataError: `max_length` is more than the model reads.
    """
    if max_length > tokenizer.model_max_length:
        raise DataError(
            f"task.max_length={max_length}, but this backbone reads at most {tokenizer.model_max_length} tokens; "
            f"set task.max_length={tokenizer.model_max_length} or less."
        )
    hashed = tokenizer_hash or tokenizer_fingerprint(tokenizer)
    if target_length is not None:
        hashed = f"{hashed} targets {target_length}"
    key = fingerprint(rows, hashed, max_length, stride)
    path = None if cache is None else cache / f"{key[:32]}.safetensors"
    padding = Padding(tokenizer.pad_token_id, tokenizer.pad_token_type_id)
    found = _load(path, key, padding) if path is not None else None
    if found is None:
        if target_length is not None:
            found = _with_targets(rows, tokenizer, max_length, target_length, key, padding)
        elif stride is None:
            found = _tokenise(rows, tokenizer, max_length, key, padding)
        else:
            found = EncodedSplit(**windows(rows, tokenizer, max_length, stride), fingerprint=key, padding=padding)
        if path is not None:
            _save(found, path)
    return found if stride is None else replace(found, questions=rows)


def _tokenise(rows: Rows, tokenizer: Any, max_length: int, key: str, padding: Padding) -> EncodedSplit:
    ids: list[np.ndarray] = []
    segments: list[np.ndarray] = []
    lengths: list[int] = []
    truncated = 0
    typed = "token_type_ids" in tokenizer.model_input_names
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        texts, pairs = list(rows.texts[part]), None if rows.pairs is None else list(rows.pairs[part])
        encoded = _call(tokenizer, texts, pairs)
        long = [row for row, found in enumerate(encoded["input_ids"]) if len(found) > max_length]
        if long:
            truncated += len(long)
            again = _call(
                tokenizer,
                [texts[row] for row in long],
                None if pairs is None else [pairs[row] for row in long],
                truncation=True,
                max_length=max_length,
            )
            for name, values in again.items():
                for row, value in zip(long, values, strict=True):
                    encoded[name][row] = value
        lengths += [len(found) for found in encoded["input_ids"]]
        ids += [np.asarray(found, np.int32) for found in encoded["input_ids"]]
        if typed:
            segments += [np.asarray(found, np.int8) for found in encoded["token_type_ids"]]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    labels: Any = rows.labels
    number = torch.float32 if labels and isinstance(labels[0], float) else torch.int64
    return EncodedSplit(
        ids=torch.from_numpy(np.concatenate(ids)),
        offsets=torch.from_numpy(offsets),
        labels=torch.tensor(labels, dtype=number),
        fingerprint=key,
        segments=torch.from_numpy(np.concatenate(segments)) if typed else None,
        truncated=truncated,
        padding=padding,
    )


def _with_targets(
    rows: Rows, tokenizer: Any, max_length: int, target_length: int, key: str, padding: Padding
) -> EncodedSplit:
    """Sources as texts are, and beside them their targets."""
    sources = _tokenise(replace(rows, labels=list(range(len(rows)))), tokenizer, max_length, key, padding)
    words: list[np.ndarray] = []
    cut = 0
    for start in range(0, len(rows), CHUNK):
        targets = [str(target) for target in rows.labels[start : start + CHUNK]]
        encoded = tokenizer(text_target=targets, padding=False, return_attention_mask=False, verbose=False)["input_ids"]
        for found in encoded:
            if len(found) > target_length:
                cut += 1
                found = [*found[: target_length - 1], found[-1]]  # the last one ends the sentence
            words.append(np.asarray(found, np.int32))
    offsets = np.concatenate([[0], np.cumsum([len(found) for found in words], dtype=np.int64)])
    return replace(
        sources,
        words=torch.from_numpy(np.concatenate(words)),
        word_offsets=torch.from_numpy(offsets),
        truncated=sources.truncated + cut,
    )


def _call(tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, **cut: Any) -> dict[str, list[Any]]:
    # verbose=False: a text longer than the model reads is cut and counted here, no warning is due
    return dict(tokenizer(texts, pairs, padding=False, return_attention_mask=False, verbose=False, **cut))


def _save(split: EncodedSplit, path: Path) -> None:
    """Writes atomically; a cache that cannot be written is done without."""
    tensors = {"ids": split.ids, "offsets": split.offsets, "labels": split.labels}
    names = ("segments", "spans", "examples", "words", "word_offsets")
    optional = {name: getattr(split, name) for name in names}
    tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    try:
        save_file(tensors, scratch, {"fingerprint": split.fingerprint, "truncated": str(split.truncated)})
        scratch.replace(path)
    except (OSError, SafetensorError):
        scratch.unlink(missing_ok=True)


def _load(path: Path, key: str, padding: Padding) -> EncodedSplit | None:
    """What `_save` wrote for this fingerprint; None when there is nothing usable."""
    from safetensors import safe_open

    try:
        tensors: Mapping[str, Tensor] = load_file(path)
        with safe_open(path, "pt") as stream:
            about = stream.metadata()
        if about["fingerprint"] != key:
            return None
        return EncodedSplit(
            ids=tensors["ids"],
            offsets=tensors["offsets"],
            labels=tensors["labels"],
            fingerprint=key,
            segments=tensors.get("segments"),
            spans=tensors.get("spans"),
            examples=tensors.get("examples"),
            words=tensors.get("words"),
            word_offsets=tensors.get("word_offsets"),
            truncated=int(about["truncated"]),
            padding=padding,
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
