"""Bytes of text files into text: UTF-8 and marked UTF-16, without the mark; another code is refused, not guessed.

Lines end at line feeds, after a carriage return or not. Python's `splitlines` also ends them at U+2028, U+0085 and form
feeds, which are characters of texts.
"""

from __future__ import annotations

import codecs
import gzip
import shlex
from pathlib import Path

from prunekit.data.errors import DataError

# the marks at the beginning of a file; that of UTF-32 begins like that of UTF-16
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
FEW = 0.15  # a share of bytes beyond ASCII that texts in languages with Latin letters stay below


def decode_file(path: Path, *, western: bool = True) -> str:
    """Return the text of a file with newlines for line ends.

    With `western`, a file with a few bytes that are not UTF-8 is read as Windows-1252.

    Raises:
        DataError: the file is in another code.
    """
    raw = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    mark = next((mark for mark in MARKS if raw.startswith(mark)), b"")
    code = MARKS.get(mark, "utf-8")
    try:
        text = raw[len(mark) :].decode(code)
    except UnicodeDecodeError as error:
        beyond = sum(byte > 127 for byte in raw)
        if not western or mark or beyond > FEW * len(raw) or b"\0" in raw:
            raise _refusal(path, error) from error
        text = _western(raw)
    if not mark and looks_binary(raw[:512]):
        raise DataError(
            f"{path} is a binary file, or text in UTF-16 without a mark of it.\nAllowed: text in UTF-8.\n"
            f"Type: iconv -f UTF-16LE -t UTF-8 {shlex.quote(str(path))} > {_target(path)}"
        )
    text = text.lstrip("\ufeff").replace("\r\n", "\n")  # some programs write the mark again
    return text if "\n" in text else text.replace("\r", "\n")  # of the first Macintosh


def looks_binary(head: bytes) -> bool:
    """Return whether the beginning of a file is no text in UTF-8: a character of number 0 may be in one, not many."""
    return 4 * head.count(0) >= len(head) > 0


def _western(raw: bytes) -> str:
    try:
        return raw.decode("cp1252")
    except UnicodeDecodeError:
        return raw.decode("latin-1")  # five bytes are undefined in Windows-1252


def _refusal(path: Path, error: UnicodeDecodeError) -> DataError:
    byte = error.object[error.start : error.start + 1].hex()
    return DataError(
        f"{path} is not UTF-8 (byte 0x{byte} at {error.start}: {error.reason}), and its code cannot be told.\n"
        "Allowed: UTF-8, or UTF-16 with a mark at its beginning.\n"
        f"If it was written by Windows in the West: iconv -f CP1252 -t UTF-8 {shlex.quote(str(path))} > {_target(path)}"
    )


def _target(path: Path) -> str:
    return shlex.quote(f"{path.stem}-utf8{path.suffix}")
