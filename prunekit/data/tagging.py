"""Labels of words: the entities that they mark, and how words are kept in one text. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Sequence

BETWEEN = "\n"  # between the words of a text that is kept as one
OUTSIDE = "O"
# the first word of an entity, one inside, its last one, and an entity of one word; no type where there is only one
MARK = re.compile(r"[BIES](-.+)?")

Entity = tuple[int, int, str]  # first word, the one after the last, and type


def marks_entities(names: Sequence[str]) -> bool:
    """Return whether these labels are O and marks of entities, as B-PER and I-PER, and nothing else."""
    marks = [name for name in names if name != OUTSIDE]
    return bool(marks) and all(map(MARK.fullmatch, marks))


def entities(labels: Sequence[str | None], *, marked: bool = True) -> list[Entity]:
    """Return the entities of a text in order; a label that is None is outside of any.

    An entity begins at B- and S-, and at I- and E- where no entity of the type can be continued: after O, another type,
    E- or S-. It ends before the next one, or before O, as conlleval and seqeval's default count. Without `marked` every
    word whose label is not O is an entity by itself.
    """
    found: list[Entity] = []
    can_continue = False
    for place, label in enumerate(labels):
        if label is None or label == OUTSIDE:
            can_continue = False
            continue
        mark, _, kind = label.partition("-") if marked else ("S", "", label)
        if can_continue and mark in "IE" and found[-1][2] == kind:
            found[-1] = (found[-1][0], place + 1, kind)
        else:
            found.append((place, place + 1, kind))
        can_continue = mark in "BI"
    return found
