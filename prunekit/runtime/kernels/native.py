"""C++ for attention and what is around int8 products, built with the machine's compiler at first use, never required.

What is built is kept in the user's cache, by source, compiler and instruction set. It is used only if it computes a
small case right; where there is no compiler, or anything else fails, torch does the same.
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

from prunekit.files import cache_folder
from prunekit.runtime.kernels.attention import Fused, Over
from prunekit.tokens.packing import Packing

SOURCES = tuple(Path(__file__).with_name(name) for name in ("attention.cpp", "int8.cpp"))
HEADERS = (Path(__file__).with_name("vectors.hpp"),)
# what torch calls the machine's instruction set -> what compilers do; anything else gets the compiler's default
MACHINES = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}
FLAGS = ("-O3", "-fno-math-errno", "-fPIC", "-shared", "-fno-exceptions", "-fno-rtti", "-Wno-psabi", "-nostdlib")
SECONDS = 300  # after which a compiler is given up
# multiply-accumulates below which a second thread costs more than it brings
WORTH_A_THREAD = 2_000_000
WORK_OF_A_NUMBER = 16  # that is quantised or finished, as multiply-accumulates


class NativeAttention(Fused):
    """Attention of the library."""

    name = "native"

    def __init__(self, loaded: ctypes.CDLL) -> None:
        """Of what `library` loaded."""
        whole, pointer = ctypes.c_int64, ctypes.c_void_p
        self._scratch = loaded.prunekit_scratch
        self._scratch.argtypes, self._scratch.restype = [whole, whole, whole], whole
        self._attend = loaded.prunekit_attend
        self._attend.argtypes = [
            pointer, pointer, whole, whole, whole, whole, pointer, pointer, whole, pointer, ctypes.c_int32,
        ]  # fmt: skip
        self._attend_one = loaded.prunekit_attend_one
        self._attend_one.argtypes = [
            pointer, pointer, pointer, whole, whole, whole, whole, pointer, pointer, ctypes.c_int32,
        ]  # fmt: skip
        self._attend.restype = self._attend_one.restype = None

    def __call__(
        self, qkv: Float[Tensor, "rows three_hidden"], heads: int, packing: Packing, *, scored: bool
    ) -> tuple[Float[Tensor, "rows hidden"], Float[Tensor, "batch width"] | None]:
        """Attention of each sentence, and the column sums where `scored`; as `attention.attend`.

        float32 or bfloat16, contiguous, on the CPU; computed in float32.
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

        _each(work, _parts([2 * hidden * length * length for length in packing.lengths]))
        return out, received

    def over(self, packing: Packing) -> Over:
        """The same, of one packing."""
        return lambda qkv, heads, *, scored: self(qkv, heads, packing, scored=scored)

    def from_first(
        self, query: Float[Tensor, "batch hidden"], kv: Float[Tensor, "rows two_hidden"], heads: int, packing: Packing
    ) -> Float[Tensor, "batch hidden"]:
        """As `prunekit.runtime.kernels.attention.attend_from_first`, of what `__call__` takes."""
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

        _each(work, _parts([2 * hidden * length for length in packing.lengths]))
        return out


class NativeRounding:
    """What is around an int8 product: `quantise` before it and `finish_` behind it, of float32."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        """Of what `library` loaded."""
        whole, pointer = ctypes.c_int64, ctypes.c_void_p
        self._quantise, self._finish = loaded.prunekit_quantise, loaded.prunekit_finish
        self._quantise.argtypes = [pointer, whole, whole, whole, pointer, pointer]
        self._finish.argtypes = [
            pointer, ctypes.c_int32, whole, whole, whole, pointer, pointer, pointer, pointer, ctypes.c_int32,
        ]  # fmt: skip
        self._quantise.restype = self._finish.restype = None

    def quantise(self, rows: Float[Tensor, "rows in"]) -> tuple[Int[Tensor, "rows in"], Float[Tensor, "rows 1"]]:
        """Each row as whole numbers from -127 to 127, and what one of them is worth in that row.

        A row with a number that is not finite is worth NaN.
        """
        rows = rows.contiguous()
        count, width = rows.shape
        whole, scale = torch.empty(count, width, dtype=torch.int8), rows.new_empty(count, 1)

        def work(first: int, last: int) -> None:
            self._quantise(rows.data_ptr(), first, last, width, whole.data_ptr(), scale.data_ptr())

        _each(work, _alike(count, width * WORK_OF_A_NUMBER))
        return whole, scale

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
        """sums * columns * rows + bias, then GELU, then plus the residual; in place of `sums`, int32 or float32."""
        sums = sums.contiguous()
        residual = None if residual is None else residual.contiguous()
        count, width = sums.shape
        whole = int(sums.dtype == torch.int32)

        def work(first: int, last: int) -> None:
            self._finish(
                sums.data_ptr(), whole, first, last, width, columns.data_ptr(), rows.data_ptr(), bias.data_ptr(),
                None if residual is None else residual.data_ptr(), int(gelu),
            )  # fmt: skip

        _each(work, _alike(count, width * WORK_OF_A_NUMBER))
        return sums.view(torch.float32)


@cache
def native_rounding() -> NativeRounding | None:
    """What is around an int8 product in C++; None where there is no library or it does not compute right."""
    loaded = library()
    found = None if loaded is None else NativeRounding(loaded)
    return found if found is not None and rounds_right(found) else None


def _each(work: Callable[[int, int], None], parts: list[tuple[int, int]]) -> None:
    """Calls `work` on each range, in a thread of its own where there are more."""
    if len(parts) == 1:
        work(*parts[0])
    else:
        list(_workers().map(lambda part: work(*part), parts))


def _worth(spent: int) -> int:
    """How many threads so many multiply-accumulates are worth."""
    return max(1, min(torch.get_num_threads(), spent // WORTH_A_THREAD))


def _parts(spent: list[int]) -> list[tuple[int, int]]:
    """Ranges of sentences of about equal work, one per thread that is worth it."""
    whole = sum(spent)
    threads = _worth(whole)
    if threads == 1:
        return [(0, len(spent))]
    ends, done = [0], 0
    for sentence, work in enumerate(spent, 1):
        done += work
        if done * threads >= whole * len(ends) and sentence > ends[-1]:
            ends.append(sentence)
    ends[-1] = len(spent)
    return list(pairwise(ends))


def _alike(count: int, spent: int) -> list[tuple[int, int]]:
    """The same for so many rows that cost the same each."""
    threads = _worth(count * spent)
    return list(pairwise(count * part // threads for part in range(threads + 1)))


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="prunekit-native")


@cache
def native_attention() -> NativeAttention | None:
    """The native attention; None where there is no library or it does not compute right."""
    loaded = library()
    found = None if loaded is None else NativeAttention(loaded)
    return found if found is not None and right(found) else None


@cache
def library() -> ctypes.CDLL | None:
    """The library, built if need be, and loaded; None where that fails."""
    try:
        path = build(cache_folder() / "native")
        return None if path is None else ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None


def build(folder: Path) -> Path | None:
    """The library for this machine, from the cache or compiled now; None where there is no compiler.

    Raises:
        OSError: the folder cannot be written.
        subprocess.SubprocessError: the compiler fails, or takes too long.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    machine = MACHINES.get(torch.backends.cpu.get_cpu_capability())
    flags = [*FLAGS, *([] if machine is None else [f"-march={machine}"])]
    version = subprocess.run([*compiler.split(), "--version"], capture_output=True, check=True, timeout=SECONDS).stdout
    read = [path.read_bytes() for path in (*SOURCES, *HEADERS)]
    key = hashlib.sha256(b"\0".join([*read, version, " ".join(flags).encode()])).hexdigest()[:16]
    library = folder / f"prunekit-{key}.so"
    if library.is_file():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / library.name
        command = [*compiler.split(), *flags, "-o", str(made), *map(str, SOURCES), "-lc"]
        subprocess.run(command, capture_output=True, check=True, timeout=SECONDS)
        made.replace(library)  # whole or not at all, whoever else builds
    return library


def right(attention: NativeAttention) -> bool:
    """Whether it computes a small case right, in both precisions, with sentences that fill no vector."""
    generator = torch.Generator().manual_seed(0)
    packing, heads = Packing.of([5, 1, 0, 23, 70], torch.device("cpu")), 3
    given = torch.randn(100, 3 * heads * 20, generator=generator)
    for kind, allowed in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        out, received = attention(given.to(kind), heads, packing, scored=True)
        rows = given.to(kind).float().unflatten(1, (3, heads, -1))
        for sentence, part in enumerate(rows[: packing.offsets[-1]].split(packing.lengths)):
            query, key, value = part.permute(1, 2, 0, 3).unbind(0)
            probs = (query @ key.transpose(1, 2)).softmax(-1)
            start, length = int(packing.offsets[sentence]), len(part)
            mixed = (probs @ value).transpose(0, 1).flatten(1)
            assert received is not None
            gaps = (out[start : start + length].float() - mixed, received[sentence, :length] - probs.sum(1).mean(0))
            if any(gap.numel() and not float(gap.abs().max()) <= allowed for gap in gaps):
                return False
        if out[99].any() or received is None or received[0, 5:].any():
            return False
        firsts = given.to(kind)[packing.offsets[:-1], : given.shape[1] // 3].contiguous()
        one = attention.from_first(firsts, given.to(kind)[:, given.shape[1] // 3 :].contiguous(), heads, packing)
        for sentence, length in enumerate(packing.lengths):
            expected = out[int(packing.offsets[sentence])] if length else torch.zeros_like(one[sentence])
            if not float((one[sentence] - expected).abs().max()) <= allowed:
                return False
    return True


def rounds_right(native: NativeRounding) -> bool:
    """Whether it quantises and finishes small cases right, with rows that fill no vector."""
    generator = torch.Generator().manual_seed(0)
    rows = 3 * torch.randn(5, 37, generator=generator)
    rows[3] = 0
    whole, worth = native.quantise(rows)
    if whole.abs().amax(-1).tolist() != [127, 127, 127, 0, 127]:
        return False
    if not float((whole * worth - rows).abs().max()) <= 0.51 * float(worth.max()):
        return False
    columns, bias, residual = (torch.randn(shape, generator=generator) for shape in ((37,), (37,), (5, 37)))
    for kind in (torch.int32, torch.float32):
        for gelu in (False, True):
            for more in (None, residual):
                true = whole.double() * columns * worth + bias
                true = (torch.nn.functional.gelu(true) if gelu else true) + (0 if more is None else more)
                found = native.finish_(whole.to(kind), columns, worth, bias, more, gelu=gelu)
                if not float((found - true).abs().max()) <= 1e-5:
                    return False
    return True
