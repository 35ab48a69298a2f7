"""Split rows by their texts alone: not by the order of files, the platform, nor any seed of a run."""

from __future__ import annotations

import hashlib
from array import array
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
) -> dict[str, Sequence[int]]:
    """Return row numbers of "train" and of each named part, stratified by class; a part is in the order of its hashes.

    Rows with the same texts are in the same part, so that no part holds what another one does. Of those with the same
    decision, too, one is kept; `decisions` None = they do not differ in it. A part gets its fraction of every class,
    counting texts with their lowest class and rounded half up; the rest is "train".
    """
    # the numbers of a few million rows are kept in arrays: as Python objects they are as large as the texts
    numbers = np.asarray(classes, np.int64)
    high, low = _content_hashes(keys)
    order = np.lexsort((numbers, low, high))
    is_first = ~(_repeats(high[order]) & _repeats(low[order]))
    del high, low  # as large as all that follows
    distinct = order[is_first]
    others = _others(order, is_first, decisions)
    part = np.zeros(len(distinct), np.int8)
    for number in np.unique(numbers[distinct]):
        places = np.flatnonzero(numbers[distinct] == number)
        start = 0
        for code, fraction in enumerate(fractions.values(), 1):
            end = start + int(fraction * len(places) + 0.5)
            part[places[start:end]] = code
            start = end
    return {
        name: array("q", (one for row in distinct[part == code] for one in (int(row), *others.get(int(row), ()))))
        for code, name in enumerate(["train", *fractions])
    }


def _content_hashes(keys: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the second 64 bits of each row's `content_hash`, by which rows sort as by all of it."""
    digests = bytearray(16 * len(keys))
    for row, key in enumerate(keys):
        digests[16 * row : 16 * row + 16] = bytes.fromhex(content_hash(key)[:32])
    high, low = np.frombuffer(digests, ">u8").reshape(-1, 2).T.astype(np.uint64)
    return high, low


def _repeats(values: np.ndarray) -> np.ndarray:
    """Return which values are those before them."""
    repeats = np.zeros(len(values), bool)
    repeats[1:] = values[1:] == values[:-1]
    return repeats


def _others(order: np.ndarray, is_first: np.ndarray, decisions: Sequence[Hashable] | None) -> dict[int, list[int]]:
    """Return, for the first of rows with the same texts, those with other decisions, one of each."""
    others: dict[int, list[int]] = {}
    if decisions is None:
        return others
    first, seen = -1, set[Hashable]()
    for place in np.flatnonzero(~is_first).tolist():
        if is_first[place - 1]:
            first = int(order[place - 1])
            seen = {decisions[first]}
        row = int(order[place])
        if decisions[row] not in seen:
            others.setdefault(first, []).append(row)
            seen.add(decisions[row])
    return others


def group_split(
    groups: Sequence[str], classes: Sequence[int], contents: np.ndarray, fractions: Mapping[str, float]
) -> dict[str, list[int]]:
    """Return row numbers of "train" and of each named part, in the order given; no group is in two parts.

    Groups that share a number of `contents` (see `content_numbers`) are one. The largest come first, of equal ones
    that of the lowest hash, and each goes to the part that then has, over all classes, the least share of rows for its
    fraction: sum((2 n + u) u / (N^2 f)), where n of N rows are in the part, u in the group, and f is the fraction. Of
    groups of one row this is Webster's apportionment. A part is empty only if there are fewer groups than parts.
    """
    ranked = {group: rank for rank, group in enumerate(sorted(set(groups), key=lambda group: content_hash([group])))}
    unit = _joined(np.asarray([ranked[group] for group in groups], np.int64), contents)
    units, of_row = np.unique(unit, return_inverse=True)
    kinds, kind = np.unique(np.asarray(classes, np.int64), return_inverse=True)
    counts = np.zeros((len(units), len(kinds)))
    np.add.at(counts, (of_row, kind), 1)
    shares = np.array([1 - sum(fractions.values()), *fractions.values()])
    weight = 1 / (counts.sum(0) ** 2 * shares[:, None])
    held = np.zeros((len(shares), len(kinds)))
    part = np.zeros(len(units), np.int64)
    order = np.lexsort((units, -counts.sum(1)))
    for place, number in enumerate(order.tolist()):
        own = counts[number]
        cost = ((2 * held + own) * own * weight).sum(1)
        if np.count_nonzero(held.sum(1) == 0) >= len(order) - place:  # the rest is needed to fill empty parts
            cost[held.sum(1) > 0] = np.inf
        part[number] = cost.argmin()
        held[part[number]] += own
    return {name: np.flatnonzero(part[of_row] == code).tolist() for code, name in enumerate(["train", *fractions])}


def _joined(groups: np.ndarray, contents: np.ndarray) -> np.ndarray:
    """Return for each row the lowest of the groups that are connected with its own by rows of the same content."""
    lowest = list(range(int(groups.max(initial=-1)) + 1))

    def root(group: int) -> int:
        while lowest[group] != group:
            lowest[group] = lowest[lowest[group]]
            group = lowest[group]
        return group

    order = np.argsort(contents, kind="stable")
    beside = np.stack([groups[order[:-1]], groups[order[1:]]], 1)[contents[order[1:]] == contents[order[:-1]]]
    for pair in np.unique(beside, axis=0).tolist():
        low, high = sorted(map(root, pair))
        lowest[high] = low
    return np.asarray([root(group) for group in range(len(lowest))], np.int64)[groups]


def content_numbers(contents: Iterable[Sequence[str]]) -> np.ndarray:
    """Return a number of 64 bits per row that is the same for the same texts, and differs for others."""
    digests = (hashlib.blake2b("\0".join(map(str.strip, texts)).encode(), digest_size=8) for texts in contents)
    return np.fromiter((int.from_bytes(digest.digest(), "little") for digest in digests), np.uint64)


def contradictions(contents: np.ndarray, decisions: Sequence[Hashable]) -> np.ndarray:
    """Return which rows have the same texts as a row with another decision."""
    found = np.zeros(len(contents), bool)
    order = np.argsort(contents, kind="stable")
    repeats = _repeats(contents[order])
    if not repeats.any():
        return found
    starts = np.flatnonzero(~repeats)
    ends = np.r_[starts[1:], len(order)]
    for start, end in zip(starts[ends > starts + 1].tolist(), ends[ends > starts + 1].tolist(), strict=True):
        rows = order[start:end]
        found[rows] = len({decisions[row] for row in rows.tolist()}) > 1
    return found
