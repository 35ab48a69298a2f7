"""Describe the machine and what it can do: hardware, GEMM peak, memory, versions of packages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch

from prunekit.bench.protocol import clocks
from prunekit.bench.result import Hardware
from prunekit.environment import forget_peak_memory, peak_memory, resident_memory
from prunekit.runtime.extras import EXTRA, version
from prunekit.runtime.kernels.linears import QuantisedLinear, choose, dtype_of
from prunekit.runtime.kernels.memory import give_back

Made = TypeVar("Made")
PEAK_SIDE = 1024  # of the square matrices whose product is the measured peak


def measure_memory(make: Callable[[], Made]) -> tuple[Made, float | None]:
    """Return what `make` returns, and by how many MB at most the process's resident memory rose meanwhile.

    The second is None where the system cannot say.
    """
    give_back()
    before = resident_memory() if forget_peak_memory() else None
    made = make()
    return made, None if before is None else max(0.0, peak_memory() - before)


def gemm_peak(dtype: str, clock: str, repeats: int = 7) -> float | None:
    """Return the FLOP/s of this machine's best square matrix product in a precision; None where torch has none.

    Weights may be laid out in advance for it, as the packed engine's are.
    """
    side = PEAK_SIDE
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[dtype]
    one = torch.ones(side, side, dtype=kind)
    layer = choose(dtype_of(dtype))(torch.ones(side, side), None, dtype_of(dtype))
    if isinstance(layer, QuantisedLinear):  # as a layer it would quantise first
        products: list[Callable[[], Any]] = [partial(layer.product, one)]
    else:
        products = [lambda: one @ one, lambda: layer(one)]
    seconds: list[float] = []
    for product in products:
        for _ in range(repeats):
            start = clocks()
            try:
                with torch.inference_mode():
                    product()
            except RuntimeError:
                break
            seconds.append(clocks()[clock == "wall"] - start[clock == "wall"])
    return 2 * side**3 / min(seconds) if seconds else None


def highest_peak(peaks: Iterable[float | None]) -> float | None:
    """Return the highest of measured peaks; None where there is none."""
    return max((peak for peak in peaks if peak is not None), default=None)


def package_versions(known: Mapping[str, str]) -> dict[str, str | None]:
    """Return the versions that timings depend on: those `known` of an environment, and the other runtimes'.

    None: not installed.
    """
    return {name: known.get(name) for name in ("prunekit", "torch", "transformers")} | {
        name: version(name) for name in EXTRA
    }


def hardware(around: Mapping[str, Any]) -> Hardware:
    """Return the hardware of an `environment()`, and the widest vectors that torch uses here.

    Without AVX512, bf16 and int8 gain little.
    """
    return Hardware(
        cpu=around["cpu"],
        cpus=around["cpus"],
        platform=around["platform"],
        instructions=torch.backends.cpu.get_cpu_capability(),
    )
