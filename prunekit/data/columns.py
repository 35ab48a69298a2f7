"""Columns of rows that are memory-mapped, and rows of numbers: a value becomes a Python object when it is asked for."""

from __future__ import annotations

import copy
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from prunekit.data import spill

if TYPE_CHECKING:
    from datasets import Dataset

BLOCK = 4096  # values that are decoded together where all are asked for

Getter = Callable[[int], Any]
RowNumbers = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Place:
    """What of a column a value is: all of it, or what `path` names in a record; `before` is put before texts."""

    column: str
    path: tuple[str, ...] = ()  # the fields of records in records, from the outside
    before: str = ""
    blank: bool = False  # whether what is no text is ""
    between: str | None = None  # what a list of texts is joined by; None = it is left as it is

    def value(self, stored: Any) -> Any:
        """Return the value for what is stored in a row."""
        for name in self.path:
            stored = stored.get(name) if isinstance(stored, dict) else None
        if self.between is not None:
            stored = self.between.join(stored)
        if self.blank and not isinstance(stored, str):
            stored = ""
        return self.before + stored if self.before else stored

    @property
    def is_whole(self) -> bool:
        """Whether values are what is stored, as it is."""
        return self == Place(self.column)


class Column(Sequence[Any]):
    """A column of an Arrow table, or the rows of it that `rows` numbers, as a sequence of Python values.

    Nothing is kept of what was decoded, so a column takes no memory whatever its length.
    """

    def __init__(self, chunks: Sequence[Any], name: str = "", dataset: Dataset | None = None) -> None:
        """Read Arrow arrays, end to end, which are the column `name` of a dataset, if it is given."""
        self.chunks = list(chunks)
        self.place = Place(name)
        self.dataset = dataset
        self.rows: np.ndarray | None = None
        self._is_whole = True
        self._ends = list(accumulate(map(len, self.chunks)))
        self._starts = [end - len(chunk) for end, chunk in zip(self._ends, self.chunks, strict=True)]
        self._getters: list[Getter | None] = [None] * len(self.chunks)

    def __len__(self) -> int:
        return (self._ends[-1] if self._ends else 0) if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Any: ...
    @overload
    def __getitem__(self, place: slice) -> list[Any]: ...
    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return self._gathered(np.arange(len(self))[place] if self.rows is None else self.rows[place])
        count = len(self)
        if not -count <= place < count:
            raise IndexError(f"row {place} of {count}")
        place = place % count
        return self._value(place if self.rows is None else int(self.rows[place]))

    def __iter__(self) -> Iterator[Any]:
        if self.rows is not None:
            for start in range(0, len(self.rows), BLOCK):
                yield from self._gathered(self.rows[start : start + BLOCK])
            return
        for chunk in self.chunks:
            for start in range(0, len(chunk), BLOCK):
                values = _storage(chunk.slice(start, BLOCK)).to_pylist()
                found = (
                    [None if value is None else json.loads(value) for value in values] if _is_json(chunk) else values
                )
                yield from found if self._is_whole else map(self.place.value, found)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self[:5]!r}{', ...' if len(self) > 5 else ''})"

    def take(self, rows: RowNumbers) -> Column:
        """Return the column of these rows, in this order."""
        if isinstance(rows, range) and rows == range(len(self)):
            return self
        numbers = rows if isinstance(rows, np.ndarray) else spill.filled(rows, np.int64, len(rows))
        return self._with(rows=numbers if self.rows is None else spill.taken(self.rows, numbers))

    def field(self, path: tuple[str, ...]) -> Column:
        """Return the column of one field of records, or of records in them; None where a record does not have it."""
        return self._with(place=replace(self.place, path=path))

    def texts(self) -> Column:
        """Return the same column with "" where there is no text."""
        return self._with(place=replace(self.place, blank=True))

    def joined(self, between: str) -> Column:
        """Return the column of lists of texts as texts, with this between the texts of a list."""
        return self._with(place=replace(self.place, between=between))

    def after(self, prefix: str) -> Column:
        """Return the same column of texts with a prefix."""
        return self._with(place=replace(self.place, before=prefix))

    def __getstate__(self) -> dict[str, Any]:
        state = vars(self) | {"_getters": [None] * len(self.chunks)}
        return state if self.dataset is None else state | {"chunks": None}  # another process maps them itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.dataset is not None:
            self.chunks = self.dataset.data.column(self.place.column).chunks

    def _with(self, **changes: Any) -> Column:
        column = copy.copy(self)
        vars(column).update(changes)
        column._is_whole = column.place.is_whole
        return column

    def _gathered(self, numbers: np.ndarray) -> list[Any]:
        """Return the values of these rows of the whole column."""
        chunks = np.searchsorted(self._ends, numbers, "right")
        places = (numbers - np.asarray(self._starts, np.int64)[chunks]).tolist()
        values = [self._getter_of(chunk)(place) for chunk, place in zip(chunks.tolist(), places, strict=True)]
        return values if self._is_whole else list(map(self.place.value, values))

    def _value(self, number: int) -> Any:
        chunk = bisect_right(self._ends, number)
        value = self._getter_of(chunk)(number - self._starts[chunk])
        return value if self._is_whole else self.place.value(value)

    def _getter_of(self, chunk: int) -> Getter:
        getter = self._getters[chunk]
        if getter is None:
            getter = self._getters[chunk] = _getter(self.chunks[chunk])
        return getter


class Numbers(Sequence[Any]):
    """Numbers of rows as a sequence of Python's own, which an array holds, in a file where there are many."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @classmethod
    def of(cls, values: Iterable[Any], kind: type[np.generic], most: int) -> Numbers:
        """Return these numbers, at most so many."""
        return cls(spill.filled(values, kind, most))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, place: Any) -> Any:
        return self.values[place].tolist()

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self.values), BLOCK):
            yield from self.values[start : start + BLOCK].tolist()

    __eq__ = Column.__eq__
    __hash__ = None  # type: ignore[assignment]
    __repr__ = Column.__repr__

    def take(self, rows: RowNumbers) -> Numbers:
        """Return those of these rows, in this order."""
        return Numbers(spill.taken(self.values, rows))


class NumberSets(Sequence[tuple[int, ...]]):
    """Any number of numbers per row, as tuples, which arrays hold, in files where there are many."""

    def __init__(self, values: np.ndarray, ends: np.ndarray) -> None:
        """Take the numbers of all rows end to end, and where those of each row end, after a 0."""
        self.values = values
        self.ends = ends

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]], most: int) -> NumberSets:
        """Return the numbers of these rows, of which there are at most so many."""
        ends, total, count = spill.empty(most + 1, np.int64), 0, 0

        def numbers() -> Iterator[int]:
            nonlocal total, count
            for row in rows:
                total, count = total + len(row), count + 1
                ends[count] = total
                yield from row

        return cls(spill.gathered(numbers(), np.int64), ends[: count + 1])

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[row] for row in range(len(self))[place]]
        row = range(len(self))[place]
        return tuple(self.values[self.ends[row] : self.ends[row + 1]].tolist())

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        for start in range(0, len(self), BLOCK):
            ends = self.ends[start : start + BLOCK + 1].tolist()
            numbers = self.values[ends[0] : ends[-1]].tolist()
            for first, last in pairwise(ends):
                yield tuple(numbers[first - ends[0] : last - ends[0]])

    __eq__ = Column.__eq__
    __hash__ = None  # type: ignore[assignment]
    __repr__ = Column.__repr__

    def take(self, rows: RowNumbers) -> NumberSets:
        """Return those of these rows, in this order."""
        return NumberSets.of((self[int(row)] for row in rows), len(rows))


@dataclass(frozen=True, eq=False)
class Mapped(Sequence[Any]):
    """What a function makes of each of some values, when it is asked for; nothing is kept."""

    values: Sequence[Any]
    function: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return list(map(self.function, self.values[place]))
        return self.function(self.values[place])

    def __iter__(self) -> Iterator[Any]:
        return map(self.function, self.values)

    __eq__ = Column.__eq__
    __hash__ = None  # type: ignore[assignment]
    __repr__ = Column.__repr__

    def take(self, rows: RowNumbers) -> Mapped:
        """Return those of these rows, in this order."""
        return Mapped(take(self.values, rows), self.function)


@dataclass(frozen=True, eq=False)
class Cells(Sequence[tuple[Any, ...]]):
    """Rows of several columns, read as they are asked for."""

    columns: Sequence[Sequence[Any]]

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return list(zip(*(column[place] for column in self.columns), strict=True))
        return tuple(column[place] for column in self.columns)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        yield from zip(*self.columns, strict=True)

    __eq__ = Column.__eq__
    __hash__ = None  # type: ignore[assignment]
    __repr__ = Column.__repr__

    def take(self, rows: RowNumbers) -> Cells:
        """Return these rows, in this order."""
        return Cells([take(column, rows) for column in self.columns])


def take(values: Sequence[Any], rows: RowNumbers) -> Sequence[Any]:
    """Return the values at these places, in this order; those of a column stay where they are."""
    if isinstance(values, Column | Numbers | NumberSets | Mapped | Cells):
        return values.take(rows)
    if values == range(len(values)):  # numbers of rows
        return Numbers(rows if isinstance(rows, np.ndarray) else spill.filled(rows, np.int64, len(rows)))
    return [values[row] for row in rows]


def prefixed(prefix: str, texts: Sequence[str]) -> Sequence[str]:
    """Return texts with a prefix; those of a column stay where they are."""
    return texts.after(prefix) if isinstance(texts, Column) else [prefix + text for text in texts]


def _storage(chunk: Any) -> Any:
    return getattr(chunk, "storage", chunk)  # of an extension type, such as JSON


def _is_json(chunk: Any) -> bool:
    return getattr(chunk.type, "extension_name", "") == "arrow.json"


def _getter(chunk: Any) -> Getter:
    """Return a function from a place in an Arrow array to its value."""
    stored = _storage(chunk)
    if _is_json(chunk):
        return lambda place: None if (text := stored[place].as_py()) is None else json.loads(text)
    if str(stored.type) in ("string", "large_string"):
        return _text_getter(stored)
    return lambda place: stored[place].as_py()


# bytes of an offset in Arrow's two types of text, and their code in memoryview
_LARGE: tuple[int, Literal["q"]] = (8, "q")
_SMALL: tuple[int, Literal["i"]] = (4, "i")


def _text_getter(texts: Any) -> Getter:
    """Return the same for texts, several times as fast as Arrow's own scalars: each is cut out of the buffer."""
    _, ends, content = texts.buffers()
    # a memoryview's numbers are Python's own, which cut bytes faster than numpy's
    width, code = _LARGE if str(texts.type).startswith("large") else _SMALL
    offsets = memoryview(ends if ends is not None else bytes(width)).cast("B")
    offsets = offsets[texts.offset * width : (texts.offset + len(texts) + 1) * width].cast(code)
    raw = memoryview(content if content is not None else b"")
    is_valid = texts.is_valid().to_numpy(zero_copy_only=False) if texts.null_count else None

    def get(place: int) -> str | None:
        if is_valid is not None and not is_valid[place]:
            return None
        return str(raw[offsets[place] : offsets[place + 1]], "utf-8")

    return get
