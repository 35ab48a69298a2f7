"""Read rows of .jsonl and .json files: an object per line, a list of objects, or objects one after the other.

A file in another orientation, of columns or with its rows under a key, is recognised: the message says what to type.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from prunekit.config.errors import listed, quoted
from prunekit.data.errors import DataError
from prunekit.data.faults import Faults, told_twice

Record = dict[str, Any]
BLANKS = re.compile(r"[ \t\r\n]*")
# keys under which rows are, beside others
ROWS = ("data", "rows", "records", "items", "examples", "results", "train", "validation", "test", "dev")
WORDS = ("tokens", "words")  # keys of a text's words, beside which the labels of these are: one row, and no columns
ADVICE = "write one object per line"


class _RepeatedKeyError(ValueError):
    """An object that has a key twice."""


def json_rows(path: Path, lines: Callable[[], Iterable[str]]) -> Iterator[Record]:
    """Yield the objects of a file in order; where each has a line of its own, they are read as they are asked for.

    `lines` returns the lines of the file from the beginning.

    Raises:
        DataError: the file, or a part of it, holds something else; where lines are wrong, after all were read.
    """
    first = next((line for line in lines() if line.strip()), None)
    if first is None:
        raise DataError(f"{path} is empty.\nAllowed: one object per line.\nGive a file with one row per text.")
    if first.lstrip().startswith("["):
        return _distinct_rows(path, _list_elements(path, "".join(lines())), "row")
    if _begins_an_object(first):
        return _distinct_rows(path, _objects(path, "".join(lines())), "object")
    return _distinct_rows(path, _line_values(lines()), "line")


def parse_json(text: str) -> Any:
    """Return what JSON says.

    Raises:
        ValueError: the text is no JSON, names a key twice, nests too deep or holds a number of thousands of digits; the
            message says which.
    """
    value, end = _decode(text, 0)
    if text[end:].strip():
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def _decode(text: str, start: int) -> tuple[Any, int]:
    """Return the value that begins here, after white space, and where it ends."""
    try:
        return DECODER.raw_decode(text, _after_blanks(text, start))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except ValueError as error:
        if "integer string conversion" in str(error):
            raise ValueError("it holds a number of more than 4,300 digits") from None
        raise


def _after_blanks(text: str, start: int) -> int:
    found = BLANKS.match(text, start)
    assert found is not None
    return found.end()


def _distinct(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)
        places = [place for place, other in enumerate(names, 1) if other == name]
        raise _RepeatedKeyError(told_twice(name, places, "keys"))
    return record


DECODER = json.JSONDecoder(object_pairs_hook=_distinct)


def _begins_an_object(line: str) -> bool:
    """Return whether an object begins in a line, and continues in the next."""
    if not line.lstrip().startswith("{"):
        return False
    try:
        _decode(line, 0)
    except json.JSONDecodeError as error:
        return not line[error.pos :].strip()
    except ValueError:
        pass
    return False


def _distinct_rows(path: Path, values: Iterable[tuple[int, Any]], unit: str) -> Iterator[Record]:
    """Yield the values that are objects, all of which have to be; `unit` is what their numbers count."""
    faults = Faults()
    held: Record | None = None  # one object behind: a file of a single one may hold columns
    count = 0
    for number, value in values:
        if isinstance(value, dict):
            if held is not None and not faults:
                yield held
            held = value
            count += 1
        else:
            what = f" {value}" if isinstance(value, ValueError) else f" is {quoted(value)}, not an object"
            faults.add(f"{unit} {number}", what)
    if faults:
        raise DataError(f"{path}, {faults}; {ADVICE}.\nAllowed: JSON objects, whose keys differ.\nCorrect these rows.")
    if held is None:
        raise DataError(f"{path} holds no rows.\nAllowed: one object per line.\nGive a file with one row per text.")
    if count == 1:
        _check_orientation(path, held)
    yield held


def _line_values(lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """Yield the values of lines with their numbers; a ValueError where there is none."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except _RepeatedKeyError as error:
                yield number, error
            except ValueError as error:
                yield number, ValueError(f"is not JSON ({error})")


def _list_elements(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Yield the elements of a list with their numbers."""
    place, number = text.index("[") + 1, 0
    try:
        while True:
            place = _after_blanks(text, place)
            if text[place : place + 1] == "]" and number == 0:
                break
            number += 1
            value, place = _decode(text, place)
            yield number, value
            place = _after_blanks(text, place)
            if text[place : place + 1] == "]":
                break
            if text[place : place + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
            place += 1
        if text[place + 1 :].strip():
            raise json.JSONDecodeError("Extra data", text, place + 1)
    except _RepeatedKeyError as error:
        raise DataError(f"{path}, row {number} {error}; {ADVICE}.") from error
    except ValueError as error:
        raise DataError(
            f"{path} begins like a JSON list but is not one ({error}); {ADVICE}.\n"
            f"Allowed: objects between [ and ], or one per line.\nCorrect row {number}."
        ) from error


def _objects(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Yield objects that are written one after the other, over several lines each."""
    place, number = _after_blanks(text, 0), 0
    while place < len(text):
        number += 1
        try:
            value, place = _decode(text, place)
        except ValueError as error:
            fault = str(error) if isinstance(error, _RepeatedKeyError) else f"is not JSON ({error})"
            raise DataError(
                f"{path}, object {number} {fault}; {ADVICE}.\nAllowed: JSON objects.\nCorrect this one."
            ) from error
        yield number, value
        place = _after_blanks(text, place)


# -- other orientations ------------------------------------------------------------------------------


def _check_orientation(path: Path, record: Record) -> None:
    """Check that the only object of a file is a row, and does not hold rows.

    Raises:
        DataError: it does; the third line is what to type to have one object per line.
    """
    values = list(record.values())
    holds, count, code = "", 0, ""
    columns, data = record.get("columns"), record.get("data")
    if isinstance(columns, list) and isinstance(data, list):
        holds, count = "its columns and rows apart", len(data)
        code = '(dict(zip(whole["columns"], row)) for row in whole["data"])'
    elif under := [name for name, value in record.items() if _is_rows(value) and (name in ROWS or len(record) == 1)]:
        if "paragraphs" in record[under[0]][0]:
            return  # SQuAD's layout, which tasks of answers read
        holds, count = f"its rows under {listed(map(quoted, under))}", len(record[under[0]])
        code = f"whole[{json.dumps(under[0])}]"
    elif _are_alike(values, dict):
        of_columns = not all(name.isdigit() for name in record)
        holds, count = ("columns", len(values[0])) if of_columns else ("rows by their numbers", len(values))
        code = "({name: whole[name][row] for name in whole} for row in next(iter(whole.values())))"
        code = code if of_columns else "whole.values()"
    elif _are_alike(values, list) and not record.keys() & {*WORDS}:
        holds, count = "columns", len(values[0])
        code = "(dict(zip(whole, row)) for row in zip(*whole.values()))"
    if holds:
        target = str(path.with_name(f"{path.stem}{'-rows' * (path.suffix == '.jsonl')}.jsonl"))
        content = f'pathlib.Path({json.dumps(str(path))}).read_text("utf-8-sig")'
        script = f"import json, pathlib; whole = json.loads({content}); [print(json.dumps(row)) for row in {code}]"
        raise DataError(
            f"{path} is one object that holds {holds}, {count} of them, with the keys {listed(record)}.\n"
            "Allowed: one object per row, on a line of its own or in a list.\n"
            f"Type: python -c {shlex.quote(script)} > {shlex.quote(target)}"
        )


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value[:9])


def _are_alike(values: list[Any], kind: type) -> bool:
    """Return whether these are columns: several lists as long as each other, or objects with the same keys."""
    if not values or not all(isinstance(value, kind) and value for value in values):
        return False
    if kind is list:
        return len(values) > 1 and len({len(value) for value in values}) == 1
    numbered = all(name.isdigit() for name in values[0])
    return (numbered or len(values) > 1) and all(value.keys() == values[0].keys() for value in values)
