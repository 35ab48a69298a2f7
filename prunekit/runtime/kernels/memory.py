"""What the C library does with memory that is free again.

glibc gives large blocks back to the system and takes them anew for the next product, page by page and zeroed: 4 to 6 %
of the time of a batch of 32 short texts.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from typing import Any

# names and numbers of glibc's malloc.h; bytes
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT = 512 << 20  # free memory at the end of the heap that stays with the process
# blocks from this size on come from the system and go back there; before 2.35 glibc takes no more than the second one
LARGE = (256 << 20, 32 << 20)


def give_back() -> None:
    """Has glibc give all freed memory back to the system, which is where peaks of memory are measured from."""
    if (trim := _glibc("malloc_trim")) is not None:
        trim(0)


@cache
def keep_freed() -> bool:
    """Has glibc keep freed memory for what comes next; once, and for the whole process.

    Up to 512 MiB at the end of the heap, and blocks of less than 256 MiB wherever they lie. False, and nothing is
    changed, with another C library, or where the environment says what malloc shall do (MALLOC_TRIM_THRESHOLD_,
    MALLOC_MMAP_THRESHOLD_, GLIBC_TUNABLES).
    """
    told = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    mallopt = _glibc("mallopt")
    if mallopt is None or any(name in os.environ for name in told):
        return False
    return any(mallopt(MMAP_THRESHOLD, size) for size in LARGE) and bool(mallopt(TRIM_THRESHOLD, KEPT))


def _glibc(name: str) -> Any:
    """A function of glibc; None with another C library."""
    return getattr(ctypes.CDLL(None), name, None) if platform.libc_ver()[0] == "glibc" else None
