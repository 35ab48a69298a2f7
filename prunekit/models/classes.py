"""The classes of a fine-tuned model and of a task, matched by name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunekit.config.errors import ConfigError, shorten


def class_order(source: str | Path, config: Any, labels: Sequence[str]) -> list[int]:
    """Return the output of a model for each of the task's classes, matched by name.

    Names may differ in case, and in blanks, dashes and underscores between words. LABEL_0 is class 0 of a task whose
    classes are numbers.

    Raises:
        ConfigError: the classes of the model are others.
    """
    numbers = range(config.num_labels)
    stored = [str(config.id2label.get(number, "")) for number in numbers]
    meant = [stored]
    if stored == [f"LABEL_{number}" for number in numbers]:
        meant.append([str(number) for number in numbers])  # what transformers calls the classes 0, 1 and so on
    for names in meant:
        for theirs, ours in ((names, list(labels)), (_spelt(names), _spelt(labels))):
            if len(set(theirs)) == len(theirs) and set(theirs) == set(ours):
                return [theirs.index(name) for name in ours]
    example = ", ".join(f'"{number}": "{name}"' for number, name in enumerate(labels))
    raise ConfigError(
        f"{source} has the classes {shown_names(stored)}, but the task has {shown_names(labels)}.\n"
        "Allowed: a model with the classes of the task, in any order: they are matched by name.\n"
        f'In {source}/config.json write "id2label": {{{example}}}, in the order of the outputs; or give another model.'
    )


def _spelt(names: Sequence[str]) -> list[str]:
    """Return names without what is spelling alone; a sign before a number is kept."""
    plain = [unicodedata.normalize("NFKC", name).casefold().strip() for name in names]
    return [re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", name) for name in plain]


def shown_names(names: Sequence[str]) -> str:
    """Return a list of names as a message shows it."""
    return f"[{shorten(', '.join(names))}]"
