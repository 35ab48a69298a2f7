"""A context that sets torch's number of CPU threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Set torch's number of CPU threads inside the block; None keeps the current number.

    Benchmarks use one thread: on a shared machine, a second one mostly measures the other users.
    """
    before = torch.get_num_threads()
    if count is None or count == before:  # even setting the same number costs a call into every thread pool
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
