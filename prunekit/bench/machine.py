"""What the machine can do: its hardware, its GEMM peak, its memory and the versions of the packages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


PEAK_SIDE = 1024  # of the square matrices whose product is the measured peak


@contextmanager
def _memory() -> Iterator[list[float | None]]:
    """The rise of this process's resident memory at its highest, in MB, put in the list at the end; None where the
    system cannot say.
    """
    from prunekit.runtime.kernels.memory import give_back

    found: list[float | None] = [None]
    give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
    except OSError:
        before = None
    yield found
    after = _resident("VmHWM") if before is not None else None
    found[0] = None if before is None or after is None else max(0.0, after - before)


def _resident(entry: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith(f"{entry}:")), None)
    return None if found is None else int(found) / 1024


def gemm_peak(dtype: str, clock: str, repeats: int = 7) -> float | None:
    """FLOP/s of this machine's best square matrix product in a precision, plain or with weights laid out in advance;
    None where torch has none.
    """
    import torch

    from prunekit.bench.protocol import clocks
    from prunekit.runtime.kernels.linears import QuantisedLinear, choose, dtype_of

    side = PEAK_SIDE
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[dtype]
    one = torch.ones(side, side, dtype=kind)
    layer = choose(dtype_of(dtype))(torch.ones(side, side), None, dtype_of(dtype))
    if isinstance(layer, QuantisedLinear):  # as a layer it would quantise first
        products: list[Callable[[], Any]] = [partial(layer.product, one)]
    else:
        products = [lambda: one @ one, lambda: layer(one)]
    found: list[float] = []
    for product in products:
        for _ in range(repeats):
            start = clocks()
            try:
                with torch.inference_mode():
                    product()
            except RuntimeError:
                break
            found.append(clocks()[clock == "wall"] - start[clock == "wall"])
    return 2 * side**3 / min(found) if found else None


def _highest(peaks: Iterable[float | None]) -> float | None:
    return max((peak for peak in peaks if peak is not None), default=None)


def package_versions(known: Mapping[str, str]) -> dict[str, str | None]:
    """Versions that timings hang on: those `known` of an environment, and the other runtimes'; None: not installed."""
    from prunekit.runtime.extras import EXTRA, version

    return {name: known.get(name) for name in ("prunekit", "torch", "transformers")} | {
        name: version(name) for name in EXTRA
    }


def hardware(around: Mapping[str, Any]) -> dict[str, Any]:
    """What timings hang on, of an `environment()`, and the widest vectors that torch uses here, as AVX2 or AVX512: bf16
    and int8 gain little without the latter.
    """
    import torch

    known = {name: around[name] for name in ("cpu", "cpus", "platform")}
    return known | {"instructions": torch.backends.cpu.get_cpu_capability()}
