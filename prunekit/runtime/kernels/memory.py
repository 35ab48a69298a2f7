"""Control over what the C library does with freed memory.

glibc returns large blocks to the system and requests them again for the next product, page by page and zeroed, which
takes 4 to 6 % of the time of a batch of 32 short texts.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from typing import Any

# parameters of mallopt, from glibc's malloc.h
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT = 512 << 20  # bytes of free memory at the end of the heap that the process keeps
# blocks from this many bytes on are requested from the system and returned to it; before 2.35 glibc accepts only the
# second value
LARGE = (256 << 20, 32 << 20)


def give_back() -> None:
    """Return all freed memory to the system, so that a following memory peak is measured from a clean baseline."""
    if (trim := _glibc("malloc_trim")) is not None:
        trim(0)


@cache
def keep_freed() -> bool:
    """Make glibc keep freed memory for reuse, once and for the whole process; return whether that succeeded.

    It keeps up to 512 MiB at the end of the heap, and blocks of less than 256 MiB anywhere. Changes nothing with
    another C library, or if the environment configures malloc (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_,
    GLIBC_TUNABLES).
    """
    variables = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    mallopt = _glibc("mallopt")
    if mallopt is None or any(name in os.environ for name in variables):
        return False
    return any(mallopt(MMAP_THRESHOLD, size) for size in LARGE) and bool(mallopt(TRIM_THRESHOLD, KEPT))


def _glibc(name: str) -> Any:
    """Return a function of glibc; None with another C library."""
    return getattr(ctypes.CDLL(None), name, None) if platform.libc_ver()[0] == "glibc" else None
