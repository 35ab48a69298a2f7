"""Numbers of rows that are too many for memory: arrays in files without a name, whose pages the system may drop.

Small arrays are ordinary ones. Everything here goes through an array in blocks, so that what a million rows take in
memory is what a block takes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from prunekit.config.places import cache_folder

SMALL = 2**20  # bytes of an array that is kept in memory
BLOCK = 2**16  # numbers that are looked at together
BUCKET = 2**17  # rows that are sorted together
DIGIT = 16  # bits of numbers that are sorted by at a time


def empty(shape: int | tuple[int, ...], kind: Any) -> np.ndarray:
    """Return an array of zeros, in a file of the user's cache folder where it is large and one can be made there."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    if size <= SMALL:
        return np.zeros(shape, kind)
    try:
        with tempfile.TemporaryFile(dir=cache_folder()) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is noticed here, and not when a page is written
            return np.memmap(file, kind, "r+", shape=shape).view(np.ndarray)
    except (OSError, AttributeError):  # no room, no such file system, or Windows
        return np.zeros(shape, kind)


def filled(values: Iterable[Any], kind: Any, most: int) -> np.ndarray:
    """Return these values, at most so many, as `numpy.fromiter` does."""
    found, count, left = empty(most, kind), 0, iter(values)
    while len(some := list(islice(left, BLOCK))):
        found[count : count + len(some)] = some
        count += len(some)
    return found[:count]


class Growing:
    """An array that grows at its end, whatever it comes to hold; `kind` and shape are those of what is added first."""

    def __init__(self) -> None:
        self._held: np.ndarray | None = None
        self._count = 0

    def extend(self, some: np.ndarray) -> None:
        """Add values at the end."""
        end = self._count + len(some)
        if self._held is None:
            self._held = empty((max(BLOCK, end), *some.shape[1:]), some.dtype)
        elif end > len(self._held):
            more = empty((max(len(self._held), end), *some.shape[1:]), some.dtype)
            self._held = joined([self._held, more], self._held.dtype)
        self._held[self._count : end] = some
        self._count = end

    @property
    def values(self) -> np.ndarray:
        """All that was added."""
        return np.zeros(0, np.int64) if self._held is None else self._held[: self._count]


def gathered(values: Iterable[Any], kind: Any) -> np.ndarray:
    """Return these values, however many there are."""
    found, left = Growing(), iter(values)
    found.extend(np.zeros(0, kind))
    while some := list(islice(left, BLOCK)):
        found.extend(np.asarray(some, kind))
    return found.values


def joined(parts: Sequence[np.ndarray], kind: Any) -> np.ndarray:
    """Return the values of all parts, end to end."""
    found, count = empty((sum(map(len, parts)), *(parts[0].shape[1:] if parts else ())), kind), 0
    for part in parts:
        for start in range(0, len(part), BLOCK):
            some = part[start : start + BLOCK]
            found[count : count + len(some)] = some
            count += len(some)
    return found


def taken(values: np.ndarray, places: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the values at these places, in this order."""
    found = empty((len(places), *values.shape[1:]), values.dtype)
    for start in range(0, len(places), BLOCK):
        some = np.asarray(places[start : start + BLOCK], np.int64)
        found[start : start + len(some)] = values[some]
    return found


def places_of(mask: np.ndarray) -> np.ndarray:
    """Return where a mask is true, as `numpy.flatnonzero` does."""
    blocks = range(0, len(mask), BLOCK)
    found = empty(sum(int(np.count_nonzero(mask[start : start + BLOCK])) for start in blocks), np.int64)
    count = 0
    for start in blocks:
        some = start + np.flatnonzero(mask[start : start + BLOCK])
        found[count : count + len(some)] = some
        count += len(some)
    return found


def order_of(keys: np.ndarray) -> np.ndarray:
    """Return the stable order that sorts whole numbers from 0 on."""
    highest = max((int(keys[start : start + BLOCK].max()) for start in range(0, len(keys), BLOCK)), default=0)
    order = _order_of_digit(keys, 0)
    for digit in range(1, -(-highest.bit_length() // DIGIT)):
        order = taken(order, _order_of_digit(taken(keys, order), digit))
    return order


def _order_of_digit(keys: np.ndarray, digit: int) -> np.ndarray:
    """Return the stable order by one digit of numbers, counted from the lowest."""
    counts = np.zeros(2**DIGIT, np.int64)
    for some in _digits(keys, digit):
        counts += np.bincount(some, minlength=len(counts))
    next_place = counts.cumsum() - counts
    order, start = empty(len(keys), np.int64), 0
    for some in _digits(keys, digit):
        inside = some.argsort(kind="stable")
        ordered = some[inside]
        kinds, first, count = np.unique(ordered, return_index=True, return_counts=True)
        before = np.repeat(next_place[kinds] - first, count)
        order[before + np.arange(len(some))] = start + inside
        next_place[kinds] += count
        start += len(some)
    return order


def _digits(keys: np.ndarray, digit: int) -> Iterator[np.ndarray]:
    for start in range(0, len(keys), BLOCK):
        yield (keys[start : start + BLOCK].astype(np.int64) >> DIGIT * digit) % 2**DIGIT


def buckets(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the numbers of rows in parts, by the highest bits of their hashes, of 64 bits: equal ones are together."""
    yield from _parts(hashes, _bits(len(hashes)))


def buckets_of_both(one: np.ndarray, other: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the same of two arrays: where equal hashes are in both, they are in the same pair of parts."""
    bits = _bits(max(len(one), len(other)))
    yield from zip(_parts(one, bits), _parts(other, bits), strict=True)


def _bits(rows: int) -> int:
    return max(0, (rows // BUCKET).bit_length())


def _parts(hashes: np.ndarray, bits: int) -> Iterator[np.ndarray]:
    if bits == 0:
        yield np.arange(len(hashes))
        return
    keys = empty(len(hashes), np.uint16 if bits <= 16 else np.uint32)
    for start in range(0, len(hashes), BLOCK):
        keys[start : start + BLOCK] = hashes[start : start + BLOCK] >> np.uint64(64 - bits)
    order, place = order_of(keys), 0
    counts = np.zeros(2**bits, np.int64)
    for start in range(0, len(keys), BLOCK):
        counts += np.bincount(keys[start : start + BLOCK], minlength=2**bits)
    for count in counts.tolist():
        yield np.array(order[place : place + count])
        place += count
