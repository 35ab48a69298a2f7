"""Attention in C++, built with the machine's own compiler at first use, and never required.

What is built is kept in the user's cache, by source, compiler and instruction set. It is used only if it computes a
small case right; where there is no compiler, or anything else fails, attention is torch's.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from prunekit.data.sources import cache_folder
from prunekit.runtime.attention import Fused, Over
from prunekit.tokens.packing import Packing

SOURCE = Path(__file__).with_name("attention.cpp")
# what torch calls the machine's instruction set -> what compilers do; anything else gets the compiler's default
MACHINES = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}
FLAGS = ("-O3", "-fno-math-errno", "-fPIC", "-shared", "-fno-exceptions", "-fno-rtti", "-Wno-psabi", "-nostdlib")
SECONDS = 300  # after which a compiler is given up
# multiply-accumulates of attention below which a second thread costs more than it brings
WORTH_A_THREAD = 2_000_000


class NativeAttention(Fused):
    """The library, loaded."""

    name = "native"

    def __init__(self, library: Path) -> None:
        """Loads it.

        Raises:
            OSError: it does not load here.
        """
        loaded = ctypes.CDLL(str(library))
        whole, pointer = ctypes.c_int64, ctypes.c_void_p
        self._scratch = loaded.prunekit_scratch
        self._scratch.argtypes, self._scratch.restype = [whole, whole], whole
        self._attend = loaded.prunekit_attend
        self._attend.argtypes = [
            pointer, pointer, whole, whole, whole, whole, pointer, pointer, whole, pointer, ctypes.c_int32,
        ]  # fmt: skip
        self._attend.restype = None

    def __call__(
        self, qkv: Float[Tensor, "rows three_hidden"], heads: int, packing: Packing, *, scored: bool
    ) -> tuple[Float[Tensor, "rows hidden"], Float[Tensor, "batch width"] | None]:
        """Attention of each sentence, and the column sums where `scored`; as `prunekit.runtime.attention.attend`.

        float32 or bfloat16, contiguous, on the CPU; computed in float32.
        """
        batch, width, hidden = len(packing.lengths), packing.width, qkv.shape[1] // 3
        out = qkv.new_empty((qkv.shape[0], hidden))
        out[sum(packing.lengths) :] = 0
        received = torch.zeros(batch, width) if scored else None
        offsets = packing.offsets
        size = hidden // heads
        parts = self._parts(packing, hidden)
        room = int(self._scratch(width, size))
        scratch = torch.empty(len(parts), -(-room // 16) * 16)

        def work(part: int) -> None:
            first, last = parts[part]
            self._attend(
                qkv.data_ptr(), offsets.data_ptr(), first, last, heads, size, out.data_ptr(),
                None if received is None else received.data_ptr(), width, scratch[part].data_ptr(),
                int(qkv.dtype == torch.bfloat16),
            )  # fmt: skip

        if len(parts) == 1:
            work(0)
        else:
            list(_workers().map(work, range(len(parts))))
        return out, received

    def over(self, packing: Packing) -> Over:
        """The same, of one packing."""
        return lambda qkv, heads, *, scored: self(qkv, heads, packing, scored=scored)

    def _parts(self, packing: Packing, hidden: int) -> list[tuple[int, int]]:
        """Ranges of sentences of about equal work, one per thread that is worth it."""
        spent = [2 * hidden * length * length for length in packing.lengths]
        threads = min(torch.get_num_threads(), sum(spent) // WORTH_A_THREAD)
        if threads <= 1:
            return [(0, len(spent))]
        ends, done = [0], 0
        for sentence, work in enumerate(spent, 1):
            done += work
            if done * threads >= sum(spent) * len(ends) and sentence > ends[-1]:
                ends.append(sentence)
        ends[-1] = len(spent)
        return list(pairwise(ends))


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="prunekit-attention")


@cache
def native_attention() -> NativeAttention | None:
    """The native attention, built if need be; None where it cannot be built or does not compute right."""
    try:
        library = build(cache_folder() / "native")
        loaded = None if library is None else NativeAttention(library)
    except (OSError, subprocess.SubprocessError):
        return None
    return loaded if loaded is not None and right(loaded) else None


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
    key = hashlib.sha256(b"\0".join([SOURCE.read_bytes(), version, " ".join(flags).encode()])).hexdigest()[:16]
    library = folder / f"attention-{key}.so"
    if library.is_file():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / library.name
        command = [*compiler.split(), *flags, "-o", str(made), str(SOURCE), "-lc"]
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
    return True
