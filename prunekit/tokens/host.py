"""Transfers between host and device, kept in one place because on a GPU they can make the host wait.

On a CPU they cost nothing. On a GPU the host runs ahead of the device and has to wait for it whenever it needs a
computed number: boolean indexing, `.item()` and a copy from pageable memory all wait implicitly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor


def send(tensor: Shaped[Tensor, "*shape"], device: torch.device) -> Shaped[Tensor, "*shape"]:
    """Copy a tensor from the host to the device without making the host wait."""
    if device.type != "cuda":
        return tensor if tensor.device == device else tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # a copy from pageable memory waits


def upload(values: Sequence[int], device: torch.device, dtype: torch.dtype = torch.long) -> Shaped[Tensor, "numbers"]:
    """Copy integers from the host to the device without making the host wait."""
    return send(torch.tensor(values, dtype=dtype), device)


def read(tensor: Shaped[Tensor, "*shape"]) -> Any:
    """Return a device tensor as nested lists; the host waits until it is computed."""
    return tensor.tolist()
