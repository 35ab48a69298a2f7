"""Matrix products of the packed engine: several backends behind one call, each tried on a small case before it is used.

The operators of oneDNN and of int8 are private ones of torch: they may change or be absent. So a backend is taken only
if it computes a small case right, here and now; "torch", which is F.linear, is always there.
"""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from prunekit.runtime.kernels.native import native_rounding

Dtype = Literal["fp32", "bf16", "int8"]
Activation = Callable[[Tensor], Tensor]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
# what flows between the matrix products; int8 is a matter of the products alone
FLOWING: Mapping[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}
# how far a backend may be from float64 on the small case, as a share of its largest output
ALLOWED: Mapping[Dtype, float] = {"fp32": 1e-5, "bf16": 2e-2, "int8": 2e-2}


def dtype_of(name: str) -> Dtype:
    """A precision by its name.

    Raises:
        ValueError: there is none of that name.
    """
    for dtype in DTYPES:
        if dtype == name:
            return dtype
    raise ValueError(f"dtype={name!r} is unknown; choose one of {', '.join(DTYPES)}.")


def computes(dtype: Dtype) -> bool:
    """Whether this processor is known to have instructions for a precision; without them it is no gain.

    bf16 is then computed by way of float32, several times slower than float32 itself.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    return dtype != "bf16" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Linear(ABC):
    """x W^T + b in one precision, then an activation or the addition of a residual; one subclass per backend.

    `weight` is [out, in], in float32. Calling it takes rows [rows, in] of `FLOWING[dtype]` and returns [rows, out] of
    the same; each row's result is a function of that row alone.
    """

    name: ClassVar[str]
    dtypes: ClassVar[tuple[Dtype, ...]]

    @classmethod
    def suits(cls) -> bool:
        """Whether it is worth taking on this processor where nobody asks for it by name."""
        return True

    @property
    def backend(self) -> str:
        """What it computes with, in words."""
        return self.name

    @abstractmethod
    def __init__(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, "out"] | None,
        dtype: Dtype,
        activation: Activation | None = None,
    ) -> None:
        """Lays the weights out as the backend wants them; the arguments stay as they are."""

    @abstractmethod
    def __call__(
        self, rows: Float[Tensor, "rows in"], residual: Float[Tensor, "rows out"] | None = None
    ) -> Float[Tensor, "rows out"]:
        """The product; a layer with an activation takes no residual."""


class TorchLinear(Linear):
    """F.linear: what is always there."""

    name = "torch"
    dtypes = ("fp32", "bf16")

    def __init__(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, "out"] | None,
        dtype: Dtype,
        activation: Activation | None = None,
    ) -> None:
        kind = FLOWING[dtype]
        self.weight = weight.to(kind)
        self.bias = None if bias is None else bias.to(kind)
        self.activation = activation

    def __call__(
        self, rows: Float[Tensor, "rows in"], residual: Float[Tensor, "rows out"] | None = None
    ) -> Float[Tensor, "rows out"]:
        """As `Linear` says."""
        out = F.linear(rows, self.weight, self.bias)
        if residual is not None:
            out += residual
        return out if self.activation is None else self.activation(out)


class OneDnnLinear(Linear):
    """oneDNN with weights laid out in advance, and activation or residual within the product.

    1.1 to 2.5 times as fast as F.linear at up to 32 rows, where that repacks its weights at every call.
    """

    name = "onednn"
    dtypes = ("fp32", "bf16")

    def __init__(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, "out"] | None,
        dtype: Dtype,
        activation: Activation | None = None,
    ) -> None:
        kind = FLOWING[dtype]
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(kind))
        self.bias = None if bias is None else bias.to(kind)
        self.fused, self.algorithm = _fused(activation)
        self.activation = None if self.fused != "none" else activation

    def __call__(
        self, rows: Float[Tensor, "rows in"], residual: Float[Tensor, "rows out"] | None = None
    ) -> Float[Tensor, "rows out"]:
        """As `Linear` says."""
        if residual is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(rows, residual, self.weight, self.bias, "add")
        out = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, self.fused, [], self.algorithm)
        return out if self.activation is None else self.activation(out)


def _fused(activation: Activation | None) -> tuple[str, str]:
    """oneDNN's name for an activation, and the algorithm of it; "none" for what it does not have."""
    if activation is None:
        return "none", ""
    exact = getattr(activation, "approximate", "none")
    if isinstance(activation, nn.GELU) or type(activation).__name__ == "GELUActivation":
        return "gelu", exact
    return ("relu", "") if isinstance(activation, nn.ReLU) else ("none", "")


class QuantisedLinear(Linear):
    """int8 x int8 -> int32. A weight has one scale per output, an activation one per row, taken from that row alone.

    With one scale for all rows a sentence's result would hang on who else is in its batch. What is around the product
    is one pass before and one behind in C++ where that could be built; in torch it takes as long as the product.
    """

    dtypes = ("int8",)

    @classmethod
    def most(cls) -> int:
        """The largest whole number of a weight."""
        return 127

    def __init__(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, "out"] | None,
        dtype: Dtype,
        activation: Activation | None = None,
    ) -> None:
        whole, scale = quantised(weight.float(), self.most())
        self.scale = scale.squeeze(-1)
        self.weight = self.laid_out(whole)
        self.bias = torch.zeros_like(self.scale) if bias is None else bias.float().contiguous()
        self.native = native_rounding()
        self.fused = self.native is not None and _fused(activation) == ("gelu", "none")
        self.activation = None if self.fused else activation

    def __call__(
        self, rows: Float[Tensor, "rows in"], residual: Float[Tensor, "rows out"] | None = None
    ) -> Float[Tensor, "rows out"]:
        """As `Linear` says."""
        if self.native is None:
            whole, scale = quantised(rows)
            out = torch.addcmul(self.bias, self.product(whole) * self.scale, scale)
            if residual is not None:
                out += residual
        else:
            whole, scale = self.native.quantise(rows)
            out = self.native.finish_(self.product(whole), self.scale, scale, self.bias, residual, gelu=self.fused)
        return out if self.activation is None else self.activation(out)

    @property
    def backend(self) -> str:
        """As `Linear` says, and who works around the product."""
        return f"{self.name}, rounding in {'torch' if self.native is None else 'C++'}"

    @abstractmethod
    def laid_out(self, weight: Int[Tensor, "out in"]) -> Tensor:
        """The weights as `product` wants them."""

    @abstractmethod
    def product(self, rows: Int[Tensor, "rows in"]) -> Shaped[Tensor, "rows out"]:
        """The product of whole numbers, as int32 or float32 that nobody else reads."""


class Int8Linear(QuantisedLinear):
    """With torch's own product."""

    name = "int8"

    @classmethod
    def suits(cls) -> bool:
        """Without instructions for it torch multiplies number by number: 20 to 60 times slower than float32."""
        return torch.cpu._is_vnni_supported()

    def laid_out(self, weight: Int[Tensor, "out in"]) -> Tensor:
        """Transposed."""
        return weight.t()

    def product(self, rows: Int[Tensor, "rows in"]) -> Int[Tensor, "rows out"]:
        """As `QuantisedLinear` says."""
        return torch._int_mm(rows, self.weight)


class OneDnnInt8Linear(QuantisedLinear):
    """With oneDNN's product of uint8 and int8: about 1.3 times as fast as float32 under AVX2.

    Without instructions for int8 (VNNI) pairs of products are added up in 16 bits and cut off there, so weights are
    whole numbers up to 64 then: 2 x 255 x 64 fits.
    """

    name = "onednn"

    @classmethod
    def most(cls) -> int:
        """As many as two products leave room for."""
        return 127 if torch.cpu._is_vnni_supported() else 64

    def laid_out(self, weight: Int[Tensor, "out in"]) -> Tensor:
        """Packed by oneDNN."""
        self.ones = torch.ones(len(weight))
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        return torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)

    def product(self, rows: Int[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        """As `QuantisedLinear` says; rows are shifted by 128 to have no sign, and oneDNN takes that back."""
        shifted = (rows ^ -128).view(torch.uint8)
        return torch.ops.onednn.qlinear_pointwise(
            shifted, 1.0, 128, self.weight, self.ones, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )


class WholeNumbers(QuantisedLinear):
    """With a product of floats, for where the one of int8 is absent: no faster than float32, and as inexact
    as float32 is about sums beyond 2**24.
    """

    name = "torch"

    def laid_out(self, weight: Int[Tensor, "out in"]) -> Tensor:
        """Floats that are whole numbers."""
        return weight.float()

    def product(self, rows: Int[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        """As `QuantisedLinear` says, but for sums that float32 rounds."""
        return F.linear(rows.float(), self.weight)


def quantised(
    rows: Float[Tensor, "rows in"], most: int = 127
) -> tuple[Int[Tensor, "rows in"], Float[Tensor, "rows 1"]]:
    """Each row as whole numbers from -most to most, and what one of them is worth in that row."""
    scale = rows.abs().amax(-1, keepdim=True).clamp_(min=1e-12).div_(most)
    return (rows / scale).round_().to(torch.int8), scale


# in the order in which they are tried
BACKENDS: tuple[type[Linear], ...] = (OneDnnLinear, Int8Linear, OneDnnInt8Linear, TorchLinear, WholeNumbers)
ON_A_GPU: tuple[type[Linear], ...] = (TorchLinear,)
CPU = torch.device("cpu")


def choose(dtype: Dtype, asked: str = "auto", device: torch.device = CPU) -> type[Linear]:
    """The backend for a precision: the first that suits and works here, or the one that is asked for by name.

    Raises:
        ValueError: there is no such backend for this precision and device, or it does not work here.
    """
    backends = BACKENDS if device.type == "cpu" else ON_A_GPU
    able = [backend for backend in backends if dtype in backend.dtypes]
    if not able:
        raise ValueError(f"dtype={dtype!r} is for the CPU; choose fp32 or bf16 on {device.type}.")
    if asked == "auto":
        return next(backend for backend in able if backend.suits() and works(backend, dtype))
    named = [backend for backend in able if backend.name == asked]
    if not named:
        names = ", ".join(["auto", *(backend.name for backend in able)])
        raise ValueError(f"linears={asked!r} is no backend for dtype={dtype!r}; choose one of {names}.")
    if not works(named[0], dtype):
        raise ValueError(
            f"linears={asked!r} does not compute {dtype} right on this machine with torch {torch.__version__}; "
            f"choose linears='auto', which takes what works."
        )
    return named[0]


@cache
def works(backend: type[Linear], dtype: Dtype) -> bool:
    """Whether a backend computes small cases right here: plain, with GELU, with a residual, for few and more rows."""
    if backend in (TorchLinear, WholeNumbers):
        return True
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    kind, weight, bias = FLOWING[dtype], draw(48, 32), draw(48)
    try:
        plain, curved = backend(weight, bias, dtype), backend(weight, bias, dtype, nn.GELU())
        for rows in (1, 5, 32):
            x, more = draw(rows, 32), draw(rows, 48)
            true = F.linear(x.double(), weight.double(), bias.double())
            for got, expected in (
                (plain(x.to(kind)), true),
                (plain(x.to(kind), more.to(kind)), true + more),
                (curved(x.to(kind)), F.gelu(true)),
            ):
                error = float((got.double() - expected).abs().max() / expected.abs().max())
                if got.dtype != kind or not error <= ALLOWED[dtype]:
                    return False
    except (RuntimeError, AttributeError, TypeError):
        return False
    return True
