"""Split rows by their texts alone: not by the order of files, the platform, nor any seed of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

# changing this changes every such split, and makes results before and after incomparable
SALT = "prunekit split 1"


def content_hash(texts: Sequence[str]) -> str:
    """Return a hex digest of a row's texts; surrounding white space does not count."""
    content = "\0".join([SALT, *(text.strip() for text in texts)])
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def hash_split(
    keys: Sequence[Sequence[str]], classes: Sequence[int], fractions: Mapping[str, float]
) -> dict[str, list[int]]:
    """Return row numbers of "train" and of each named part, stratified by class; a part is in the order of its hashes.

    Of rows with the same texts one is kept, that of the lowest class, so that no part holds what another one does.
    A part gets its fraction of every class, rounded half up; the rest is "train".
    """
    hashes = [content_hash(key) for key in keys]
    order = sorted(range(len(keys)), key=lambda row: (hashes[row], classes[row]))
    distinct = [row for place, row in enumerate(order) if place == 0 or hashes[row] != hashes[order[place - 1]]]
    by_class: dict[int, list[int]] = {}
    for row in distinct:
        by_class.setdefault(classes[row], []).append(row)
    part_of: dict[int, str] = {}
    for rows in by_class.values():
        start = 0
        for name, fraction in fractions.items():
            end = start + int(fraction * len(rows) + 0.5)
            part_of |= dict.fromkeys(rows[start:end], name)
            start = end
    parts: dict[str, list[int]] = {"train": [], **{name: [] for name in fractions}}
    for row in distinct:
        parts[part_of.get(row, "train")].append(row)
    return parts
