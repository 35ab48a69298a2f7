"""Linear layers of the packed engine: several backends behind one call, each checked on a small case before use.

torch's operators for oneDNN and int8 are private, so they may change or be missing. A backend is therefore used only if
it gives correct results for a small case on this machine; "torch", which is F.linear, is always available.
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
# dtype of the activations between matrix products; int8 affects the products only
ACTIVATION_DTYPE: Mapping[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}
# largest difference from float64 on the small case, relative to the largest output
ALLOWED: Mapping[Dtype, float] = {"fp32": 1e-5, "bf16": 2e-2, "int8": 2e-2}


def dtype_of(name: str) -> Dtype:
    """Return the precision of this name.

    Raises:
        ValueError: the name is unknown.
    """
    for dtype in DTYPES:
        if dtype == name:
            return dtype
    raise ValueError(f"dtype={name!r} is unknown; choose one of {', '.join(DTYPES)}.")


def has_instructions(dtype: Dtype) -> bool:
    """Whether this processor has instructions for a precision; True where that is not known (not x86).

    Without them bf16 is emulated in float32, several times slower than float32 itself.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    return dtype != "bf16" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Linear(ABC):
    """x W^T + b in one precision, followed by an activation or by adding a residual; one subclass per backend.

    `weight` is [out, in], in float32. Calling it takes rows [rows, in] in `ACTIVATION_DTYPE[dtype]` and returns
    [rows, out] in the same dtype; the result of a row depends only on that row.
    """

    name: ClassVar[str]
    dtypes: ClassVar[tuple[Dtype, ...]]

    @classmethod
    def is_worthwhile(cls) -> bool:
        """Whether "auto" should consider this backend on this processor."""
        return True

    @property
    def backend(self) -> str:
        """A description of the backend, for reports."""
        return self.name

    @abstractmethod
    def __init__(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, "out"] | None,
        dtype: Dtype,
        activation: Activation | None = None,
    ) -> None:
        """Convert the weights to the backend's layout; the arguments are not modified."""

    @abstractmethod
    def __call__(
        self, rows: Float[Tensor, "rows in"], residual: Float[Tensor, "rows out"] | None = None
    ) -> Float[Tensor, "rows out"]:
        """Return the product plus bias, then activation or residual; a layer with an activation takes no residual."""


class TorchLinear(Linear):
    """F.linear, which is always available."""

    name = "torch"
    dtypes = ("fp32", "bf16")

    def __init__(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, "out"] | None,
        dtype: Dtype,
        activation: Activation | None = None,
    ) -> None:
        kind = ACTIVATION_DTYPE[dtype]
        self.weight = weight.to(kind)
        self.bias = None if bias is None else bias.to(kind)
        self.activation = activation

    def __call__(
        self, rows: Float[Tensor, "rows in"], residual: Float[Tensor, "rows out"] | None = None
    ) -> Float[Tensor, "rows out"]:
        """Return the layer's output, see `Linear`."""
        out = F.linear(rows, self.weight, self.bias)
        if residual is not None:
            out += residual
        return out if self.activation is None else self.activation(out)


class OneDnnLinear(Linear):
    """oneDNN with prepacked weights, and with activation or residual fused into the product.

    1.1 to 2.5 times as fast as F.linear at up to 32 rows, where F.linear repacks its weights in every call.
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
        kind = ACTIVATION_DTYPE[dtype]
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(kind))
        self.bias = None if bias is None else bias.to(kind)
        self.fused, self.algorithm = _fused_activation(activation)
        self.activation = None if self.fused != "none" else activation

    def __call__(
        self, rows: Float[Tensor, "rows in"], residual: Float[Tensor, "rows out"] | None = None
    ) -> Float[Tensor, "rows out"]:
        """Return the layer's output, see `Linear`."""
        if residual is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(rows, residual, self.weight, self.bias, "add")
        out = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, self.fused, [], self.algorithm)
        return out if self.activation is None else self.activation(out)


def _fused_activation(activation: Activation | None) -> tuple[str, str]:
    """Return oneDNN's name for an activation and its algorithm; "none" for one that oneDNN does not have."""
    if activation is None:
        return "none", ""
    algorithm = getattr(activation, "approximate", "none")
    if isinstance(activation, nn.GELU) or type(activation).__name__ == "GELUActivation":
        return "gelu", algorithm
    return ("relu", "") if isinstance(activation, nn.ReLU) else ("none", "")


class QuantisedLinear(Linear):
    """An int8 x int8 -> int32 product; weights have one scale per output, activations one per row.

    With one scale for all rows, the result of a sentence would depend on the rest of its batch. Quantisation and
    dequantisation are one pass each in C++ if it could be built; in torch they take as long as the product.
    """

    dtypes = ("int8",)

    @classmethod
    def max_weight(cls) -> int:
        """The largest absolute value of a quantised weight."""
        return 127

    def __init__(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, "out"] | None,
        dtype: Dtype,
        activation: Activation | None = None,
    ) -> None:
        integers, scale = quantise(weight.float(), self.max_weight())
        self.scale = scale.squeeze(-1)
        self.weight = self.prepack(integers)
        self.bias = torch.zeros_like(self.scale) if bias is None else bias.float().contiguous()
        self.native = native_rounding()
        self.fused = self.native is not None and _fused_activation(activation) == ("gelu", "none")
        self.activation = None if self.fused else activation

    def __call__(
        self, rows: Float[Tensor, "rows in"], residual: Float[Tensor, "rows out"] | None = None
    ) -> Float[Tensor, "rows out"]:
        """Return the layer's output, see `Linear`."""
        if self.native is None:
            integers, scale = quantise(rows)
            out = torch.addcmul(self.bias, self.product(integers) * self.scale, scale)
            if residual is not None:
                out += residual
        else:
            integers, scale = self.native.quantise(rows)
            out = self.native.finish_(self.product(integers), self.scale, scale, self.bias, residual, gelu=self.fused)
        return out if self.activation is None else self.activation(out)

    @property
    def backend(self) -> str:
        """The backend's name, and what quantises around the product."""
        return f"{self.name}, rounding in {'torch' if self.native is None else 'C++'}"

    @abstractmethod
    def prepack(self, weight: Int[Tensor, "out in"]) -> Tensor:
        """Convert the weights to the layout that `product` needs."""

    @abstractmethod
    def product(self, rows: Int[Tensor, "rows in"]) -> Shaped[Tensor, "rows out"]:
        """Multiply by the weights; returns int32 or float32, in a new tensor that may be overwritten."""


class Int8Linear(QuantisedLinear):
    """An int8 layer with torch's own int8 product."""

    name = "int8"

    @classmethod
    def is_worthwhile(cls) -> bool:
        """Whether the processor has VNNI; without it torch's product is 20 to 60 times slower than float32."""
        return torch.cpu._is_vnni_supported()

    def prepack(self, weight: Int[Tensor, "out in"]) -> Tensor:
        """Transpose the weights."""
        return weight.t()

    def product(self, rows: Int[Tensor, "rows in"]) -> Int[Tensor, "rows out"]:
        """Multiply by the weights, see `QuantisedLinear`."""
        return torch._int_mm(rows, self.weight)


class OneDnnInt8Linear(QuantisedLinear):
    """An int8 layer with oneDNN's product of uint8 and int8: about 1.3 times as fast as float32 under AVX2.

    Without int8 instructions (VNNI), pairs of products are added in 16 bits and saturate there. Weights then use
    integers up to 64 only, because 2 x 255 x 64 fits.
    """

    name = "onednn"

    @classmethod
    def max_weight(cls) -> int:
        """The largest absolute weight for which the sum of two products fits."""
        return 127 if torch.cpu._is_vnni_supported() else 64

    def prepack(self, weight: Int[Tensor, "out in"]) -> Tensor:
        """Pack the weights with oneDNN."""
        self.ones = torch.ones(len(weight))
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        return torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)

    def product(self, rows: Int[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        """Multiply by the weights; rows are shifted by 128 to be unsigned, which oneDNN compensates."""
        shifted = (rows ^ -128).view(torch.uint8)
        return torch.ops.onednn.qlinear_pointwise(
            shifted, 1.0, 128, self.weight, self.ones, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )


class FloatInt8Linear(QuantisedLinear):
    """An int8 layer whose product is computed in float32, for machines without an int8 product.

    No faster than float32, and sums beyond 2**24 are rounded as float32 rounds them.
    """

    name = "torch"

    def prepack(self, weight: Int[Tensor, "out in"]) -> Tensor:
        """Convert the integers to float32."""
        return weight.float()

    def product(self, rows: Int[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        """Multiply by the weights in float32."""
        return F.linear(rows.float(), self.weight)


def quantise(rows: Float[Tensor, "rows in"], most: int = 127) -> tuple[Int[Tensor, "rows in"], Float[Tensor, "rows 1"]]:
    """Return each row as integers from -most to most, and the scale of each row: row = integers * scale."""
    scale = rows.abs().amax(-1, keepdim=True).clamp_(min=1e-12).div_(most)
    return (rows / scale).round_().to(torch.int8), scale


# in the order in which they are tried
BACKENDS: tuple[type[Linear], ...] = (OneDnnLinear, Int8Linear, OneDnnInt8Linear, TorchLinear, FloatInt8Linear)
GPU_BACKENDS: tuple[type[Linear], ...] = (TorchLinear,)
CPU = torch.device("cpu")


def choose(dtype: Dtype, asked: str = "auto", device: torch.device = CPU) -> type[Linear]:
    """Return the backend named `asked`, or for "auto" the first that is worthwhile and correct on this machine.

    Raises:
        ValueError: no such backend for this precision and device, or its results are wrong on this machine.
    """
    backends = BACKENDS if device.type == "cpu" else GPU_BACKENDS
    able = [backend for backend in backends if dtype in backend.dtypes]
    if not able:
        raise ValueError(f"dtype={dtype!r} is for the CPU; choose fp32 or bf16 on {device.type}.")
    if asked == "auto":
        return next(backend for backend in able if backend.is_worthwhile() and is_correct(backend, dtype))
    named = [backend for backend in able if backend.name == asked]
    if not named:
        names = ", ".join(["auto", *(backend.name for backend in able)])
        raise ValueError(f"linears={asked!r} is not a backend for dtype={dtype!r}; choose one of {names}.")
    if not is_correct(named[0], dtype):
        raise ValueError(
            f"linears={asked!r} gives wrong {dtype} results on this machine with torch {torch.__version__}; "
            f"choose linears='auto', which takes a backend that works."
        )
    return named[0]


@cache
def is_correct(backend: type[Linear], dtype: Dtype) -> bool:
    """Whether a backend is correct on small cases: plain, with GELU, and with a residual, for 1, 5 and 32 rows."""
    if backend in (TorchLinear, FloatInt8Linear):
        return True
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    kind, weight, bias = ACTIVATION_DTYPE[dtype], draw(48, 32), draw(48)
    try:
        plain, with_gelu = backend(weight, bias, dtype), backend(weight, bias, dtype, nn.GELU())
        for rows in (1, 5, 32):
            x, residual = draw(rows, 32), draw(rows, 48)
            true = F.linear(x.double(), weight.double(), bias.double())
            for got, expected in (
                (plain(x.to(kind)), true),
                (plain(x.to(kind), residual.to(kind)), true + residual),
                (with_gelu(x.to(kind)), F.gelu(true)),
            ):
                error = float((got.double() - expected).abs().max() / expected.abs().max())
                if got.dtype != kind or not error <= ALLOWED[dtype]:
                    return False
    except (RuntimeError, AttributeError, TypeError):
        return False
    return True
