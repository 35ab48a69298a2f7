"""Check that sparse kernels accept 2:4 weights: the pattern on any machine, torch's format where CUDA supports it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.sparse import to_sparse_semi_structured

from prunekit.weights.masks import is_nm

CAPABILITY = 8  # compute capability of the GPU: sparse tensor cores came with Ampere


def unsupported_reason(device: torch.device | str) -> str | None:
    """Return why a device does not support semi-structured tensors; None if it does."""
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        return "no CUDA device: torch's semi-structured tensors need one"
    major, minor = torch.cuda.get_device_capability(device)
    if major < CAPABILITY:
        return f"the GPU has compute capability {major}.{minor}: semi-structured tensors need {CAPABILITY}.0"
    return None


def check_conversion(weight: Float[Tensor, "outputs inputs"], device: torch.device | str = "cuda") -> str | None:
    """Convert a 2:4 weight in float16 and multiply with it; return None on success, else the reason why not.

    Raises:
        ValueError: the weight is not 2:4, so that a conversion would lose weights; or the product is wrong.
    """
    if not is_nm(weight != 0):
        raise ValueError(
            f"a weight of {tuple(weight.shape)} is not 2:4: more than two of four neighbours in a row are kept; "
            f"prune it with method.group=nm."
        )
    if (reason := unsupported_reason(device)) is not None:
        return reason
    dense = weight.detach().to(device, torch.float16).contiguous()
    generator = torch.Generator(device=device).manual_seed(0)
    rows = torch.randn(64, weight.shape[1], device=device, dtype=torch.float16, generator=generator)
    try:
        product = torch.nn.functional.linear(rows, to_sparse_semi_structured(dense))
    except (RuntimeError, NotImplementedError, ValueError) as error:  # a shape or build that has no kernel
        return str(error).splitlines()[0]
    expected = rows.float() @ dense.float().T
    if not torch.allclose(product.float(), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
        raise ValueError(
            f"a 2:4 weight of {tuple(weight.shape)} multiplies differently as a semi-structured tensor; "
            f"use another build of torch."
        )
    return None
