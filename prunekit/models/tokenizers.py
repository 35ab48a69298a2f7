"""Whether a tokenizer and a model go together: the longest text, the token ids and the token types."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from prunekit.config.errors import ConfigError
from prunekit.tokens.families.embeddings import most_tokens


def longest_text(config: Any, tokenizer: Any = None) -> int:
    """Return the most tokens that a model reads: what its positions and its tokenizer allow, whichever is less."""
    limits = [most_tokens(config), None if tokenizer is None else int(tokenizer.model_max_length)]
    return min([limit for limit in limits if limit is not None], default=sys.maxsize)


def check_tokenizer(source: str | Path, config: Any, tokenizer: Any, *, has_pairs: bool = False) -> None:
    """Check that a model has an embedding for every token and token type that its tokenizer makes.

    `has_pairs` says whether two texts are read at a time.

    Raises:
        ConfigError: it has not, or the tokenizer has no padding token.
    """
    check_tokens(source, config, tokenizer)
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            f"{source} has a tokenizer without a padding token.\nAllowed: one with a padding token.\n"
            'Name one, as tokenizer.pad_token = "[PAD]" or tokenizer.eos_token, and call tokenizer.save_pretrained.'
        )
    if "token_type_ids" not in tokenizer.model_input_names:
        return
    made = tokenizer("a", "a" if has_pairs else None).get("token_type_ids") or [0]
    types, known = max(made) + 1, getattr(config, "type_vocab_size", None) or 0
    if types > known:
        raise ConfigError(
            f"{source} has a tokenizer that makes {types} token types, but embeddings of {known}.\n"
            "Allowed: a tokenizer with no more token types than the model has embeddings.\n"
            f'Write "model_input_names": ["input_ids", "attention_mask"] in {source}/tokenizer_config.json.'
        )


def separator_of(tokenizer: Any) -> int | None:
    """Return the token that a tokenizer puts between two texts, as [SEP]; None where it puts none there."""
    token: int | None = tokenizer.sep_token_id
    return token if token in tokenizer("a", "a")["input_ids"][:-1] else None


def check_tokens(source: str | Path, config: Any, tokenizer: Any) -> None:
    """Check that a model has an embedding for every token of its tokenizer.

    Raises:
        ConfigError: it has not.
    """
    tokens, embeddings = max(tokenizer.get_vocab().values(), default=-1) + 1, config.vocab_size
    if tokens > embeddings:
        raise ConfigError(
            f"{source} has a tokenizer with {tokens} tokens, but embeddings of {embeddings}.\n"
            "Allowed: a tokenizer with no more tokens than the model has embeddings.\n"
            "Copy the model's own tokenizer there; or call model.resize_token_embeddings, train, and save it."
        )
