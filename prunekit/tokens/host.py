"""The two ways between the host and the device that computes; what does not go through here keeps neither waiting.

On the CPU both cost nothing. On a GPU the host runs ahead of the device, and has to wait for it whenever it wants to
know a number: a boolean index, `.item()` and a copy from ordinary memory all do that unasked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor


def send(tensor: Shaped[Tensor, "*shape"], device: torch.device) -> Shaped[Tensor, "*shape"]:
    """A tensor of the host on the device; the host does not wait for it."""
    if device.type != "cuda":
        return tensor if tensor.device == device else tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # from pageable memory a copy waits


def upload(values: Sequence[int], device: torch.device, dtype: torch.dtype = torch.long) -> Shaped[Tensor, "numbers"]:
    """Whole numbers that the host knows, on the device; the host does not wait for them."""
    return send(torch.tensor(values, dtype=dtype), device)


def read(tensor: Shaped[Tensor, "*shape"]) -> Any:
    """Numbers of the device, as lists; the host waits until they are computed."""
    return tensor.tolist()
