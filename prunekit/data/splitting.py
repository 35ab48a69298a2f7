"""Split rows by their texts alone: not by the order of files, the platform, nor any seed of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

# changing this changes every such split, and makes results before and after incomparable
SALT = "prunekit split 1"


def content_hash(texts: Sequence[str]) -> str:
    """Return a hex digest of a row's texts; surrounding white space does not count."""
    content = "\0".join([SALT, *(text.strip() for text in texts)])
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def hash_split(
    keys: Sequence[Sequence[str]],
    classes: Sequence[int],
    fractions: Mapping[str, float],
    decisions: Sequence[Hashable] | None = None,
) -> dict[str, list[int]]:
    """Return row numbers of "train" and of each named part, stratified by class; a part is in the order of its hashes.

    Rows with the same texts are in the same part, so that no part holds what another one does. Of those with the same
    decision, too, one is kept; `decisions` None = they do not differ in it. A part gets its fraction of every class,
    counting texts with their lowest class and rounded half up; the rest is "train".
    """
    hashes = [content_hash(key) for key in keys]
    order = sorted(range(len(keys)), key=lambda row: (hashes[row], classes[row]))
    distinct: list[int] = []
    others: dict[int, list[int]] = {}  # row of `distinct` -> rows with the same texts and another decision
    seen: set[Hashable] = set()
    for place, row in enumerate(order):
        decision = None if decisions is None else decisions[row]
        if place == 0 or hashes[row] != hashes[order[place - 1]]:
            distinct.append(row)
            seen = {decision}
        elif decision not in seen:
            others.setdefault(distinct[-1], []).append(row)
            seen.add(decision)
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
        parts[part_of.get(row, "train")] += [row, *others.get(row, ())]
    return parts


def content_numbers(contents: Iterable[Sequence[str]]) -> np.ndarray:
    """Return a number of 64 bits per row that is the same for the same texts, and differs for others."""
    digests = (hashlib.blake2b("\0".join(map(str.strip, texts)).encode(), digest_size=8) for texts in contents)
    return np.fromiter((int.from_bytes(digest.digest(), "little") for digest in digests), np.uint64)


def contradictions(contents: np.ndarray, decisions: Sequence[Hashable]) -> np.ndarray:
    """Return which rows have the same texts as a row with another decision."""
    number: dict[Hashable, int] = {}
    values = np.fromiter((number.setdefault(value, len(number)) for value in decisions), np.int64, len(decisions))
    order = np.lexsort((values, contents))
    starts = np.flatnonzero(np.r_[True, contents[order][1:] != contents[order][:-1]])
    ends = np.r_[starts[1:], len(order)]
    differ = values[order][starts] != values[order][ends - 1] if len(order) else np.zeros(0, bool)
    found = np.zeros(len(order), bool)
    found[order] = np.repeat(differ, ends - starts) if len(order) else found
    return found
