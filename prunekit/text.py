"""Numbers as one reads them. Imports nothing."""

from __future__ import annotations


def clock(seconds: float | int) -> str:
    """Minutes and seconds as 03:40, from an hour on as 1:03:40."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
