"""Read rows of .conll files: a word per line with its label in the last column, and a blank line after each text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prunekit.config.errors import quoted
from prunekit.data.errors import DataError
from prunekit.data.faults import Faults

COLUMNS = ("tokens", "ner_tags")
BEGINNING = "-DOCSTART-"  # of a document, on a line like those of words
REMARK = re.compile(r"#\s*(id|sent_id|text|newdoc|newpar)\b")  # before the first word of a text
BLANKS = re.compile(" +")


def conll_rows(path: Path, lines: Callable[[], Iterable[str]]) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the words and the labels of each text, in order. Columns are separated by tabs or blanks.

    Raises:
        DataError: the file has no text, or, after all were read, lines have other numbers of columns than the first.
    """
    faults, width, count = Faults(), 0, 0
    words: list[str] = []
    labels: list[str] = []
    for number, line in enumerate(lines(), 1):
        text = line.strip(" \r\n")
        if text and not (not words and REMARK.match(text)):
            fields = text.split("\t") if "\t" in text else BLANKS.split(text)
            if fields[0] == BEGINNING:
                continue
            width = width or max(2, len(fields))
            if len(fields) != width:
                faults.add(f"line {number}", f" has {len(fields)} columns: {quoted(text)}")
            words.append(fields[0])
            labels.append(fields[-1])
        elif words and not text:
            count += 1
            if not faults:
                yield words, labels
            words, labels = [], []
    if faults:
        raise DataError(
            f"{path}, {faults}, but others have {width}.\n"
            "Allowed: a word per line, its label in the last column, and a blank line after each text.\n"
            "Correct these lines."
        )
    if words:
        yield words, labels
    elif not count:
        raise DataError(f"{path} holds no words.\nAllowed: a word per line with its label.\nGive such a file.")
