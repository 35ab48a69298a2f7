"""How many CPU threads torch computes with, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many within the block; None leaves the number alone. Measured is on one: on a shared machine a second one
    mostly measures who else is there.
    """
    before = torch.get_num_threads()
    if count is None or count == before:  # setting what is set costs a call into every thread pool
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
