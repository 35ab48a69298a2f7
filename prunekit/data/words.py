"""Tokenise texts that are divided into words, and say which token is the first of each word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from prunekit.data.columns import NumberSets
from prunekit.data.encoding import EncodedSplit, Encoder, Targets, TextTokeniser, fingerprint, lists
from prunekit.data.errors import DataError
from prunekit.data.ragged import Ragged
from prunekit.data.rows import Rows
from prunekit.data.tagging import BETWEEN

NO_LABEL = -100  # of tokens that are not the first of a word, where no loss looks


@dataclass(frozen=True)
class WordTargets(Targets):
    """The labels of all words, and the number of the word that begins at each token, -1 where none does.

    `labels` are the words of all rows end to end, `offsets` where each row's begin. A word has no token where the text
    was cut before it, or where the tokenizer leaves nothing of it; `read` counts the others.
    """

    labels: Int[Tensor, "words"]
    offsets: Int[Tensor, "boundaries"]
    words: Ragged
    names: Sequence[str]
    read: int
    texts: Sequence[str] = field(default=(), repr=False, compare=False)  # a word per line

    @property
    def judged(self) -> int:
        """How many texts there are."""
        return len(self.words)

    @property
    def cut(self) -> Mapping[str, int]:
        """How many words are not read, of all."""
        return {"words": len(self.labels) - self.read, "of_words": len(self.labels)}

    def labels_of(self, row: int) -> Int[Tensor, "row_words"]:
        """Return the labels of a row's words."""
        return self.labels[int(self.offsets[row]) : int(self.offsets[row + 1])]

    def read_words(self, row: int) -> Int[np.ndarray, "row_read"]:
        """Return the numbers of a row's words that have a token, in order."""
        words = self.words.row(row)
        return words[words >= 0]

    def batch(self, rows: Int[Tensor, "batch"], inside: Bool[Tensor, "batch width"]) -> dict[str, Tensor]:
        """Return the label of each word at its first token, and -100 at all others."""
        words = self.words.padded(rows, -1)
        places = self.offsets[rows][:, None] + words.clamp(min=0)
        return {"labels": torch.where(words >= 0, self.labels[places], NO_LABEL)}


def encode_words(rows: Rows[tuple[int, ...]], encoder: Encoder, names: Sequence[str]) -> EncodedSplit:
    """Tokenise texts with a word per line, or read what an earlier call left in the cache; long texts are cut.

    Raises:
        DataError: a tokenizer that does not say which word a token is of.
    """
    tokenise = WordTokeniser.of(encoder.tokenizer, encoder.max_length)
    key = fingerprint(rows, f"{encoder.tokenizer_hash} words", encoder.max_length)
    columns = encoder.encode(key, {"text": rows.texts}, tokenise)
    labels = rows.labels if isinstance(rows.labels, NumberSets) else NumberSets.of(rows.labels, len(rows))
    return encoder.split(
        key,
        columns,
        WordTargets(
            labels=torch.from_numpy(labels.values),
            offsets=torch.from_numpy(labels.ends),
            words=Ragged.of_lists(columns["words"]),
            names=names,
            read=sum(int(chunk.sum().as_py() or 0) for chunk in columns["read"]),
            texts=rows.texts,
        ),
    )


@dataclass(frozen=True)
class WordTokeniser:
    """Texts with a word per line as token ids, cut at the longest length.

    `before` is put before each word: a blank for tokenizers of bytes that read a word in a text differently from one
    that stands alone.
    """

    texts: TextTokeniser
    before: str = ""

    @classmethod
    def of(cls, tokenizer: Any, max_length: int) -> WordTokeniser:
        """Return the tokeniser of words of a tokenizer.

        Raises:
            DataError: it does not say which word a token is of.
        """
        if not tokenizer.is_fast:
            raise DataError(
                f"{type(tokenizer).__name__} does not say which word a token is of, as labels of words need.\n"
                "Allowed: a tokenizer with a tokenizer.json.\nCopy tokenizer.json beside it."
            )
        texts = TextTokeniser(tokenizer, max_length, "token_type_ids" in tokenizer.model_input_names)
        return cls(texts, " " if _wants_blanks(tokenizer) else "")

    def __call__(self, rows: Mapping[str, list[Any]], numbers: Sequence[int]) -> dict[str, Any]:
        """Return a row per text: `ids`, `segments` of models that have them, `cut`, whether it was too long.

        `words` are the numbers of the words that begin at each token, or -1, and `read` is how many do.
        """
        encodings = self.encode([text.split(BETWEEN) for text in rows["text"]])
        words = [first_tokens(encoding.word_ids) for encoding in encodings]
        columns = {
            "ids": lists([encoding.ids for encoding in encodings], np.int32),
            "cut": pyarrow.array([int(bool(encoding.overflowing)) for encoding in encodings], pyarrow.int8()),
            "words": lists(words, np.int32),
            "read": pyarrow.array([sum(word >= 0 for word in row) for row in words], pyarrow.int32()),
        }
        if self.texts.has_segments:
            columns["segments"] = lists([encoding.type_ids for encoding in encodings], np.int8)
        return columns

    def encode(self, texts: Sequence[Sequence[str]]) -> list[Any]:
        """Return the encoding of each text, given as its words."""
        encoded = self.texts.tokenizer(
            [[self.before + word for word in words] for words in texts],
            is_split_into_words=True,
            truncation=True,
            max_length=self.texts.max_length,
            padding=False,
            return_attention_mask=False,
            verbose=False,
        )
        found: list[Any] = encoded.encodings
        return found


def first_tokens(word_ids: Sequence[int | None]) -> list[int]:
    """Return for each token the number of the word that begins there; -1 for its other tokens and for special ones."""
    before = [None, *word_ids[:-1]]
    return [-1 if word is None or word == last else word for word, last in zip(word_ids, before, strict=True)]


def _wants_blanks(tokenizer: Any) -> bool:
    """Return whether words are read as in a text only with a blank before each."""

    def read(given: Any, **how: Any) -> list[int]:
        ids: list[int] = tokenizer(given, add_special_tokens=False, verbose=False, **how)["input_ids"]
        return ids

    text = read("a b")
    return read(["a", "b"], is_split_into_words=True) != text == read(["a", " b"], is_split_into_words=True)
