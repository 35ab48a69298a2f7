"""A tokenizer of single letters."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def letters():
    """A tokenizer of one token per character."""
    tokenizer = Tokenizer(models.WordLevel({chr(32 + n): n for n in range(60)} | {"?": 60, "[UNK]": 61}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
