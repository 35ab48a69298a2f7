"""Whether sparse kernels take 2:4 weights: the pattern on any machine, torch's own format where CUDA has it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.sparse import to_sparse_semi_structured

from prunekit.weights.masks import is_nm

CAPABILITY = 8  # of the GPU: sparse tensor cores came with Ampere


def why_not(device: torch.device | str) -> str | None:
    """Why a device has no semi-structured tensors; None where it has them."""
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        return "no CUDA device: torch's semi-structured tensors need one"
    major, minor = torch.cuda.get_device_capability(device)
    if major < CAPABILITY:
        return f"the GPU has compute capability {major}.{minor}: semi-structured tensors need {CAPABILITY}.0"
    return None


def check_conversion(weight: Float[Tensor, "outputs inputs"], device: torch.device | str = "cuda") -> str | None:
    """Converts a 2:4 weight, in float16, and multiplies with it; None where that works, else why not.

    Raises:
        ValueError: the weight is not 2:4, so that a conversion would lose weights; or the product is another one.
    """
    if not is_nm(weight != 0):
        raise ValueError(
            f"a weight of {tuple(weight.shape)} is not 2:4: four neighbours of a row have more than two that stay; "
            f"prune it with method.group=nm."
        )
    if (reason := why_not(device)) is not None:
        return reason
    dense = weight.detach().to(device, torch.float16).contiguous()
    generator = torch.Generator(device=device).manual_seed(0)
    rows = torch.randn(64, weight.shape[1], device=device, dtype=torch.float16, generator=generator)
    try:
        found = torch.nn.functional.linear(rows, to_sparse_semi_structured(dense))
    except (RuntimeError, NotImplementedError, ValueError) as error:  # a shape or build that the kernels do not take
        return str(error).splitlines()[0]
    expected = rows.float() @ dense.float().T
    if not torch.allclose(found.float(), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
        raise ValueError(
            f"a 2:4 weight of {tuple(weight.shape)} multiplies differently as a semi-structured tensor; "
            f"use another build of torch."
        )
    return None
