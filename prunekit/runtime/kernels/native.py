"""Build and call the C++ attention (attention.cpp) and int8 quantisation (int8.cpp); optional.

The library is compiled at first use with the machine's compiler, and kept in the user's cache folder, by source,
compiler and instruction set. It is used only if its
results for a small case are correct; without a compiler, or if anything else fails, torch is used instead.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from prunekit.config.places import cache_folder
from prunekit.files import damage, write_sealed
from prunekit.runtime.kernels.attention import FusedAttention, PackingAttention
from prunekit.tokens.packing import Packing

SOURCES = tuple(Path(__file__).with_name(name) for name in ("attention.cpp", "int8.cpp"))
HEADERS = (Path(__file__).with_name("vectors.hpp"),)
# torch's name of the machine's instruction set -> the compiler's; any other gets the compiler's default
MACHINES = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}
FLAGS = ("-O3", "-fno-math-errno", "-fPIC", "-shared", "-fno-exceptions", "-fno-rtti", "-Wno-psabi", "-nostdlib")
COMPILE_SECONDS = 300  # timeout of the compiler
# multiply-accumulates per thread below which a further thread costs more than it gains
MACS_PER_THREAD = 2_000_000
MACS_PER_NUMBER = 16  # cost of quantising or finishing one number, in multiply-accumulates


class NativeAttention(FusedAttention):
    """The library's attention."""

    name = "native"

    def __init__(self, loaded: ctypes.CDLL) -> None:
        """Declare the functions of the library that `library` loaded."""
        size, pointer = ctypes.c_int64, ctypes.c_void_p
        self._scratch = loaded.prunekit_scratch
        self._scratch.argtypes, self._scratch.restype = [size, size, size], size
        self._attend = loaded.prunekit_attend
        self._attend.argtypes = [
            pointer, pointer, size, size, size, size, pointer, pointer, size, pointer, ctypes.c_int32,
        ]  # fmt: skip
        self._attend_one = loaded.prunekit_attend_one
        self._attend_one.argtypes = [
            pointer, pointer, pointer, size, size, size, size, pointer, pointer, ctypes.c_int32,
        ]  # fmt: skip
        self._attend.restype = self._attend_one.restype = None

    def __call__(
        self, qkv: Float[Tensor, "rows three_hidden"], heads: int, packing: Packing, *, scored: bool
    ) -> tuple[Float[Tensor, "rows hidden"], Float[Tensor, "batch width"] | None]:
        """Compute the attention of each sentence and, if `scored`, the column sums, as in `attention.attend`.

        `qkv` is float32 or bfloat16, contiguous, on the CPU; the computation is in float32.
        """
        batch, width, hidden = len(packing.lengths), packing.width, qkv.shape[1] // 3
        out = qkv.new_empty((qkv.shape[0], hidden))
        if (total := sum(packing.lengths)) < len(out):
            out[total:] = 0
        received = torch.zeros(batch, width, dtype=torch.float32) if scored else None
        offsets, size, bf16 = packing.offsets, hidden // heads, int(qkv.dtype == torch.bfloat16)
        room = int(self._scratch(width, heads, size))

        def work(first: int, last: int) -> None:
            scratch = torch.empty(room, dtype=torch.float32)
            self._attend(
                qkv.data_ptr(), offsets.data_ptr(), first, last, heads, size, out.data_ptr(),
                None if received is None else received.data_ptr(), width, scratch.data_ptr(), bf16,
            )  # fmt: skip

        _run_in_threads(work, _balanced_ranges([2 * hidden * length * length for length in packing.lengths]))
        return out, received

    def bind(self, packing: Packing) -> PackingAttention:
        """Return the attention over one packing."""
        return lambda qkv, heads, *, scored: self(qkv, heads, packing, scored=scored)

    def from_first(
        self, query: Float[Tensor, "batch hidden"], kv: Float[Tensor, "rows two_hidden"], heads: int, packing: Packing
    ) -> Float[Tensor, "batch hidden"]:
        """Compute `attention.attend_from_first`, for the dtypes and layout that `__call__` takes."""
        hidden = query.shape[1]
        out = torch.empty_like(query)
        offsets, size, bf16 = packing.offsets, hidden // heads, int(query.dtype == torch.bfloat16)
        room = int(self._scratch(packing.width, heads, size))

        def work(first: int, last: int) -> None:
            scratch = torch.empty(room, dtype=torch.float32)
            self._attend_one(
                query.data_ptr(), kv.data_ptr(), offsets.data_ptr(), first, last, heads, size, out.data_ptr(),
                scratch.data_ptr(), bf16,
            )  # fmt: skip

        _run_in_threads(work, _balanced_ranges([2 * hidden * length for length in packing.lengths]))
        return out


class NativeRounding:
    """The passes around an int8 product, in float32: `quantise` before it and `finish_` after it."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        """Declare the functions of the library that `library` loaded."""
        size, pointer = ctypes.c_int64, ctypes.c_void_p
        self._quantise, self._finish = loaded.prunekit_quantise, loaded.prunekit_finish
        self._quantise.argtypes = [pointer, size, size, size, pointer, pointer]
        self._finish.argtypes = [
            pointer, ctypes.c_int32, size, size, size, pointer, pointer, pointer, pointer, ctypes.c_int32,
        ]  # fmt: skip
        self._quantise.restype = self._finish.restype = None

    def quantise(self, rows: Float[Tensor, "rows in"]) -> tuple[Int[Tensor, "rows in"], Float[Tensor, "rows 1"]]:
        """Return each row as integers from -127 to 127, and the scale of each row: row = integers * scale.

        The scale is NaN in a row with a number that is not finite.
        """
        rows = rows.contiguous()
        count, width = rows.shape
        integers, scale = torch.empty(count, width, dtype=torch.int8), rows.new_empty(count, 1)

        def work(first: int, last: int) -> None:
            self._quantise(rows.data_ptr(), first, last, width, integers.data_ptr(), scale.data_ptr())

        _run_in_threads(work, _equal_ranges(count, width * MACS_PER_NUMBER))
        return integers, scale

    def finish_(
        self,
        sums: Shaped[Tensor, "rows out"],
        columns: Float[Tensor, "out"],
        rows: Float[Tensor, "rows 1"],
        bias: Float[Tensor, "out"],
        residual: Float[Tensor, "rows out"] | None,
        *,
        gelu: bool,
    ) -> Float[Tensor, "rows out"]:
        """Compute sums * columns * rows + bias, then GELU, then add the residual, in place of `sums`.

        `sums` is int32 or float32; the result is a float32 view of its memory.
        """
        sums = sums.contiguous()
        residual = None if residual is None else residual.contiguous()
        count, width = sums.shape
        is_int = int(sums.dtype == torch.int32)

        def work(first: int, last: int) -> None:
            self._finish(
                sums.data_ptr(), is_int, first, last, width, columns.data_ptr(), rows.data_ptr(), bias.data_ptr(),
                None if residual is None else residual.data_ptr(), int(gelu),
            )  # fmt: skip

        _run_in_threads(work, _equal_ranges(count, width * MACS_PER_NUMBER))
        return sums.view(torch.float32)


@cache
def native_rounding() -> NativeRounding | None:
    """Return the C++ passes around an int8 product; None if there is no library or its results are wrong."""
    loaded = library()
    rounding = None if loaded is None else NativeRounding(loaded)
    return rounding if rounding is not None and is_rounding_correct(rounding) else None


def _run_in_threads(work: Callable[[int, int], None], ranges: list[tuple[int, int]]) -> None:
    """Call `work` on each range, each in its own thread if there is more than one."""
    if len(ranges) == 1:
        work(*ranges[0])
    else:
        list(_workers().map(lambda ends: work(*ends), ranges))


def _thread_count(macs: int) -> int:
    """Return the number of threads that pay for this many multiply-accumulates."""
    return max(1, min(torch.get_num_threads(), macs // MACS_PER_THREAD))


def _balanced_ranges(macs: list[int]) -> list[tuple[int, int]]:
    """Split sentences into ranges of about equal cost, one per thread that pays; `macs` are costs of the sentences."""
    total = sum(macs)
    threads = _thread_count(total)
    if threads == 1:
        return [(0, len(macs))]
    ends, done = [0], 0
    for sentence, cost in enumerate(macs, 1):
        done += cost
        if done * threads >= total * len(ends) and sentence > ends[-1]:
            ends.append(sentence)
    ends[-1] = len(macs)
    return list(pairwise(ends))


def _equal_ranges(count: int, macs: int) -> list[tuple[int, int]]:
    """Split `count` rows that cost `macs` each into ranges of equal length, one per thread that pays."""
    threads = _thread_count(count * macs)
    return list(pairwise(count * part // threads for part in range(threads + 1)))


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="prunekit-native")


@cache
def native_attention() -> NativeAttention | None:
    """Return the C++ attention; None if there is no library or its results are wrong."""
    loaded = library()
    attention = None if loaded is None else NativeAttention(loaded)
    return attention if attention is not None and is_attention_correct(attention) else None


@cache
def library() -> ctypes.CDLL | None:
    """Load the library, building it if necessary; None if that fails."""
    try:
        path = build(cache_folder() / "native")
        return None if path is None else ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None


def build(folder: Path) -> Path | None:
    """Return the library for this machine, from the cache or compiled now; None if there is no compiler.

    Raises:
        OSError: the folder cannot be written.
        subprocess.SubprocessError: the compiler fails, or takes too long.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    machine = MACHINES.get(torch.backends.cpu.get_cpu_capability())
    flags = [*FLAGS, *([] if machine is None else [f"-march={machine}"])]
    command = [*compiler.split(), "--version"]
    version = subprocess.run(command, capture_output=True, check=True, timeout=COMPILE_SECONDS).stdout
    sources = [path.read_bytes() for path in (*SOURCES, *HEADERS)]
    key = hashlib.sha256(b"\0".join([*sources, version, " ".join(flags).encode()])).hexdigest()[:16]
    library = folder / f"prunekit-{key}.so"
    if library.is_file() and damage(library) is None:
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        compiled = Path(scratch) / library.name
        command = [*compiler.split(), *flags, "-o", str(compiled), *map(str, SOURCES), "-lc"]
        subprocess.run(command, capture_output=True, check=True, timeout=COMPILE_SECONDS)
        write_sealed(library, lambda beside: shutil.move(compiled, beside))  # other processes may build it too
    return library


def is_attention_correct(attention: NativeAttention) -> bool:
    """Whether a small case is correct in both precisions, with lengths that are not multiples of a vector's."""
    generator = torch.Generator().manual_seed(0)
    packing, heads = Packing.of([5, 1, 0, 23, 70], torch.device("cpu")), 3
    qkv = torch.randn(100, 3 * heads * 20, generator=generator)
    for kind, allowed in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        out, received = attention(qkv.to(kind), heads, packing, scored=True)
        rows = qkv.to(kind).float().unflatten(1, (3, heads, -1))
        for sentence, part in enumerate(rows[: packing.offsets[-1]].split(packing.lengths)):
            query, key, value = part.permute(1, 2, 0, 3).unbind(0)
            probs = (query @ key.transpose(1, 2)).softmax(-1)
            start, length = int(packing.offsets[sentence]), len(part)
            mixed = (probs @ value).transpose(0, 1).flatten(1)
            assert received is not None
            errors = (out[start : start + length].float() - mixed, received[sentence, :length] - probs.sum(1).mean(0))
            if any(error.numel() and not float(error.abs().max()) <= allowed for error in errors):
                return False
        if out[99].any() or received is None or received[0, 5:].any():
            return False
        queries = qkv.to(kind)[packing.offsets[:-1], : qkv.shape[1] // 3].contiguous()
        first = attention.from_first(queries, qkv.to(kind)[:, qkv.shape[1] // 3 :].contiguous(), heads, packing)
        for sentence, length in enumerate(packing.lengths):
            expected = out[int(packing.offsets[sentence])] if length else torch.zeros_like(first[sentence])
            if not float((first[sentence] - expected).abs().max()) <= allowed:
                return False
    return True


def is_rounding_correct(native: NativeRounding) -> bool:
    """Whether small cases are quantised and finished correctly, with a width that is not a multiple of a vector's."""
    generator = torch.Generator().manual_seed(0)
    rows = 3 * torch.randn(5, 37, generator=generator)
    rows[3] = 0
    integers, scale = native.quantise(rows)
    if integers.abs().amax(-1).tolist() != [127, 127, 127, 0, 127]:
        return False
    if not float((integers * scale - rows).abs().max()) <= 0.51 * float(scale.max()):
        return False
    columns, bias, random_residual = (torch.randn(shape, generator=generator) for shape in ((37,), (37,), (5, 37)))
    for kind in (torch.int32, torch.float32):
        for gelu in (False, True):
            for residual in (None, random_residual):
                true = integers.double() * columns * scale + bias
                true = (torch.nn.functional.gelu(true) if gelu else true) + (0 if residual is None else residual)
                got = native.finish_(integers.to(kind), columns, scale, bias, residual, gelu=gelu)
                if not float((got - true).abs().max()) <= 1e-5:
                    return False
    return True
