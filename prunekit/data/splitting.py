"""Split rows by their texts alone: not by the order of files, the platform, nor any seed of a run."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import accumulate, islice
from typing import Any

import numpy as np

from prunekit.data import spill
from prunekit.data.columns import Numbers

# changing this changes every such split, and makes results before and after incomparable
SALT = "prunekit split 1"


def content_hash(texts: Sequence[str]) -> str:
    """Return a hex digest of a row's texts; surrounding white space does not count."""
    return _digest(texts).hexdigest()


def _digest(texts: Sequence[str]) -> Any:
    content = "\0".join([SALT, *map(str.strip, texts)])
    return hashlib.sha256(content.encode("utf-8", "surrogatepass"))


def content_hashes(keys: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the first 128 bits of each row's `content_hash` as two numbers, by which rows sort as by all of it."""
    digests = (_digest(key).digest()[:16] for key in keys)
    found, count = spill.empty((len(keys), 2), np.uint64), 0
    while some := b"".join(islice(digests, spill.BLOCK)):
        block = np.frombuffer(some, ">u8").reshape(-1, 2)
        found[count : count + len(block)] = block
        count += len(block)
    return found


def hash_split(
    hashes: np.ndarray,
    classes: Sequence[int],
    fractions: Mapping[str, float],
    decisions: Sequence[Hashable] | None = None,
) -> dict[str, np.ndarray]:
    """Return row numbers of "train" and of each named part, stratified by class; a part is in the order of its hashes.

    `hashes` are the `content_hashes` of what rows have in common that are in the same part, so that no part holds what
    another one does. Of those with the same decision, too, one is kept; `decisions` None = they do not differ in it. A
    part gets its fraction of every class, counting texts with their lowest class and rounded half up; the rest is
    "train".
    """
    numbers = classes.values if isinstance(classes, Numbers) else np.asarray(classes, np.int64)
    rows, is_first = spill.empty(len(hashes), np.int64), spill.empty(len(hashes), np.bool_)
    counts: Counter[int] = Counter()  # texts per class
    kept = 0
    for some, repeats in _by_hash(hashes, numbers):
        chosen = ~repeats | _others(some, ~repeats, decisions)
        end = kept + int(np.count_nonzero(chosen))
        rows[kept:end], is_first[kept:end] = some[chosen], ~repeats[chosen]
        kinds, texts = np.unique(numbers[some[~repeats]], return_counts=True)
        counts.update(dict(zip(kinds.tolist(), texts.tolist(), strict=True)))
        kept = end
    rows, is_first = rows[:kept], is_first[:kept]
    part = _parts_of(rows, is_first, numbers, {kind: _ends(count, fractions) for kind, count in counts.items()})
    return {name: spill.taken(rows, spill.places_of(part == code)) for code, name in enumerate(["train", *fractions])}


def _by_hash(hashes: np.ndarray, numbers: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows in the order of hashes, then numbers, in parts, and which have the hash of the one before them.

    Rows with the same hash are in the same part.
    """
    for rows in spill.buckets(hashes[:, 0]):
        high, low = hashes[rows].T
        order = np.lexsort((low, high) if numbers is None else (numbers[rows], low, high))
        yield rows[order], _repeats(high[order]) & _repeats(low[order])


def _repeats(values: np.ndarray) -> np.ndarray:
    """Return which values are those before them."""
    repeats = np.zeros(len(values), bool)
    repeats[1:] = values[1:] == values[:-1]
    return repeats


def _others(rows: np.ndarray, is_first: np.ndarray, decisions: Sequence[Hashable] | None) -> np.ndarray:
    """Return which rows have the same texts as the first of them and another decision, one of each."""
    others = np.zeros(len(rows), bool)
    if decisions is None:
        return others
    seen = set[Hashable]()
    for place in np.flatnonzero(~is_first).tolist():
        if is_first[place - 1]:
            seen = {decisions[int(rows[place - 1])]}
        decision = decisions[int(rows[place])]
        others[place] = decision not in seen
        seen.add(decision)
    return others


def _ends(count: int, fractions: Mapping[str, float]) -> list[int]:
    """Return how many of a class are in the first part, the first two and so on."""
    return list(accumulate(int(fraction * count + 0.5) for fraction in fractions.values()))


def _parts_of(rows: np.ndarray, is_first: np.ndarray, numbers: np.ndarray, ends: Mapping[int, list[int]]) -> np.ndarray:
    """Return the part of each row, 0 = "train": of a class the first rows are in 1, up to the first of its ends."""
    part = spill.empty(len(rows), np.int8)
    seen = dict.fromkeys(ends, 0)
    last = 0
    for start in range(0, len(rows), spill.BLOCK):
        block = slice(start, start + spill.BLOCK)
        first = np.flatnonzero(is_first[block])
        classes = numbers[rows[block][first]]
        codes = np.zeros(len(first), np.int8)
        for kind in np.unique(classes).tolist():
            own = np.flatnonzero(classes == kind)
            codes[own] = 1 + np.searchsorted(ends[kind], seen[kind] + np.arange(len(own)), "right")
            seen[kind] += len(own)
            codes[own[codes[own] > len(ends[kind])]] = 0
        # what follows the first of some texts is in its part
        known = np.concatenate([[last], codes])
        part[block] = known[np.cumsum(is_first[block])]
        last = int(known[-1])
    return part


def group_split(
    groups: np.ndarray, classes: Sequence[int], contents: np.ndarray, fractions: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Return row numbers of "train" and of each named part, in the order given; no group is in two parts.

    `groups` are `ranks` of what rows have in common. Groups that share a number of `contents`, which says that texts
    are the same, are one. The largest come first, of equal ones that of the lowest rank, and each goes to the part that
    then has, over all classes, the least share of rows for its fraction: sum((2 n + u) u / (N^2 f)), where n of N rows
    are in the part, u in the group, and f is the fraction. Of groups of one row this is Webster's apportionment. A part
    is empty only if there are fewer groups than parts.
    """
    unit = _joined(groups, contents)
    numbers = np.asarray(classes.values if isinstance(classes, Numbers) else classes)
    kinds = np.unique(numbers)
    sizes = spill.empty(int(unit.max(initial=-1)) + 1, np.int64)
    totals = np.zeros(len(kinds))
    for start in range(0, len(unit), spill.BLOCK):
        block = slice(start, start + spill.BLOCK)
        np.add.at(sizes, unit[block], 1)
        totals += np.bincount(np.searchsorted(kinds, numbers[block]), minlength=len(kinds))
    rows = spill.order_of(unit)  # those of a unit are together
    ends = spill.gathered(accumulate(Numbers(sizes)), np.int64)
    order = spill.order_of(spill.gathered((int(sizes.max(initial=0)) - size for size in Numbers(sizes)), np.int64))
    count = int(np.count_nonzero(sizes))
    shares = np.array([1 - sum(fractions.values()), *fractions.values()])
    weight = 1 / (totals**2 * shares[:, None])
    held = np.zeros((len(shares), len(kinds)))
    part = spill.empty(len(sizes), np.int8)
    for place, number in enumerate(order[:count].tolist()):
        of_unit = rows[ends[number] - sizes[number] : ends[number]]
        own = np.bincount(np.searchsorted(kinds, numbers[of_unit]), minlength=len(kinds))
        cost = ((2 * held + own) * own * weight).sum(1)
        if np.count_nonzero(held.sum(1) == 0) >= count - place:  # the rest is needed to fill empty parts
            cost[held.sum(1) > 0] = np.inf
        part[number] = cost.argmin()
        held[part[number]] += own
    of_row = spill.taken(part, unit)
    return {name: spill.places_of(of_row == code) for code, name in enumerate(["train", *fractions])}


def order_by_hash(hashes: np.ndarray) -> np.ndarray:
    """Return the stable order that sorts rows by their `content_hashes`."""
    found, count = spill.empty(len(hashes), np.int64), 0
    for rows, _ in _by_hash(hashes):
        found[count : count + len(rows)] = rows
        count += len(rows)
    return found


def ranks(hashes: np.ndarray) -> np.ndarray:
    """Return for each row how many different hashes are lower than its own, of `content_hashes`."""
    found, known = spill.empty(len(hashes), np.int64), -1
    for rows, repeats in _by_hash(hashes):
        if len(rows):
            found[rows] = known + np.cumsum(~repeats)
            known = int(found[rows[-1]])
    return found


def first_repeat(hashes: np.ndarray) -> tuple[int, int] | None:
    """Return the first row with the hash of an earlier one, after that one; None where all are different."""
    found: list[tuple[int, int]] = []
    for rows, repeats in _by_hash(hashes):
        starts = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(rows))))
        again = np.flatnonzero(repeats)
        found += [(int(rows[place]), int(rows[starts[place]])) for place in again[rows[again].argsort()][:1]]
    return min(found)[::-1] if found else None


def _joined(groups: np.ndarray, contents: np.ndarray) -> np.ndarray:
    """Return for each row the lowest of the groups that are connected with its own by rows of the same content."""
    lowest = spill.empty(int(groups.max(initial=-1)) + 1, np.int64)
    for start in range(0, len(lowest), spill.BLOCK):
        lowest[start : start + spill.BLOCK] = np.arange(start, min(start + spill.BLOCK, len(lowest)))

    def root(group: int) -> int:
        while (below := int(lowest[group])) != group:
            lowest[group] = lowest[below]
            group = below
        return group

    for rows in spill.buckets(contents):
        order = rows[contents[rows].argsort(kind="stable")]
        same = np.flatnonzero(_repeats(contents[order]))
        for pair in np.unique(np.stack([groups[order[same - 1]], groups[order[same]]], 1), axis=0).tolist():
            low, high = sorted(map(root, pair))
            lowest[high] = low
    found = spill.empty(len(groups), np.int64)
    for row, group in enumerate(Numbers(groups)):
        found[row] = root(group)
    return found


def contradictions(hashes: np.ndarray, decisions: Sequence[Hashable]) -> np.ndarray:
    """Return which rows have the same texts, by their `content_hashes`, as a row with another decision."""
    found = spill.empty(len(hashes), np.bool_)
    for rows, repeats in _by_hash(hashes):
        starts = np.flatnonzero(~repeats)
        ends = np.append(starts[1:], len(rows))
        several = ends > starts + 1
        for start, end in zip(starts[several].tolist(), ends[several].tolist(), strict=True):
            some = rows[start:end]
            found[some] = len({decisions[row] for row in some.tolist()}) > 1
    return found


def distinct(hashes: np.ndarray) -> int:
    """Return how many different `content_hashes` there are."""
    return sum(int(np.count_nonzero(~repeats)) for _, repeats in _by_hash(hashes))


def shared(hashes: np.ndarray, others: np.ndarray) -> int:
    """Return how many of some rows have the texts of another one, by their `content_hashes`."""
    pairs = spill.buckets_of_both(hashes[:, 0], others[:, 0])
    return sum(int(np.isin(hashes[one, 0], others[other, 0]).sum()) for one, other in pairs)
