"""Rerankers: models of one output for a pair of texts, as CrossEncoder of sentence-transformers saves them.

What their folder says about them, read without torch. A folder without a mark of CrossEncoder is no reranker here, also
where its model has one output: nothing says that the first of its texts is a query.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunekit.models.given import output_count, read_object
from prunekit.models.sentence_folder import RERANKER, SETTINGS, activation_name

MARK, OLD_MARK = "sentence_transformers", "sbert_ce_default_activation_function"  # in config.json
DEFAULTS = {1: "torch.nn.modules.activation.Sigmoid"}  # by number of outputs, as CrossEncoder has them
IDENTITY = "torch.nn.modules.linear.Identity"


def is_reranker(folder: str | Path) -> bool:
    """Return whether a folder holds a CrossEncoder with one output."""
    return _marks(Path(folder)) is not None and output_count(Path(folder)) == 1


def activation_of(folder: str | Path) -> str | None:
    """Return the activation of a CrossEncoder's scores, as torch.nn.modules.linear.Identity; None of other folders.

    It is the one that the folder names, or else that which CrossEncoder takes.

    Raises:
        ConfigError: it is none that is known here.
    """
    marks = _marks(Path(folder))
    if marks is None:
        return None
    named = next((value for value in marks if value is not None), None)
    if named is None:
        return DEFAULTS.get(output_count(Path(folder)), IDENTITY)
    activation_name(named, folder)
    return str(named)


def _marks(folder: Path) -> list[Any] | None:
    """Return the activations that a folder names, the one that counts first; None where it is no CrossEncoder."""
    about, config = read_object(folder / SETTINGS), read_object(folder / "config.json")
    own = config.get(MARK)
    is_marked = about.get("model_type") == RERANKER or isinstance(own, Mapping) or OLD_MARK in config
    newer = own.get("activation_fn") if isinstance(own, Mapping) else None
    return [about.get("activation_fn"), newer, config.get(OLD_MARK)] if is_marked else None
