"""Triton kernels for attention of packed rows on a GPU, with the column sums that scorers read; optional.

A flash-attention kernel keeps the sum of each row of probabilities but never the probabilities, so their column sums
are lost. Two kinds of kernels compute them exactly, without atomic additions, so that results are reproducible:

short   for sentences of up to `SHORT` tokens: one program per sentence and head holds all its keys and values, sees
        whole rows of probabilities, and sums them as it goes;
long    stores the log of each row's normaliser; a second pass over the queries, per block of keys, sums
        exp(logit - log normaliser).

The kernel and tile sizes of a sentence depend only on its own length. Rows are those of the packed engine:
[rows, 3 * hidden] with queries, keys and values side by side, the heads concatenated within each, and queries scaled.
The identity softmax = exp(logit - logsumexp) is that of the backward pass of FlashAttention-2 (arXiv:2307.08691).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from prunekit.runtime.kernels.attention import FusedAttention
from prunekit.tokens.host import upload
from prunekit.tokens.packing import Packing

SHORT = 256  # tokens up to which one program holds all keys and values of a head
SMALLEST = 16  # smallest size of Triton's matrix product
TILE = 64  # queries, or keys of a long sentence, per step
LOG2E = tl.constexpr(1.4426950408889634)
UNTUNED = ["rows"]  # differs between batches, so kernels are not specialised on it
# largest error against float64, by dtype of the rows: absolute up to 1, relative above
ALLOWED = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
HALF = (torch.float16, torch.bfloat16)


@triton.jit(do_not_specialize=UNTUNED, do_not_specialize_on_alignment=["work"])
@no_type_check  # arguments of a kernel are Triton's own
def short_kernel(
    qkv: Any, work: Any, out: Any, sums: Any, rows: Any, heads: Any, size: Any,
    scored: tl.constexpr, queries: tl.constexpr, keys: tl.constexpr, wide: tl.constexpr,
) -> None:  # fmt: skip
    """Attend within one sentence and head; `work` holds (first row, length) per sentence; `sums` is [heads, rows]."""
    start = tl.load(work + 2 * tl.program_id(0)).to(tl.int64)
    length = tl.load(work + 2 * tl.program_id(0) + 1)
    head = tl.program_id(1)
    hidden = heads * size
    column = tl.arange(0, keys)
    place = tl.arange(0, wide)
    here = qkv + start * 3 * hidden + head * size
    real = column < length
    inside = place < size
    at = column[:, None] * 3 * hidden + place[None, :]
    key = tl.load(here + hidden + at, mask=real[:, None] & inside[None, :], other=0.0)
    value = tl.load(here + 2 * hidden + at, mask=real[:, None] & inside[None, :], other=0.0)
    received = tl.zeros([keys], tl.float32)
    for first in range(0, length, queries):
        row = first + tl.arange(0, queries)
        asks = row < length
        query = tl.load(
            here + row[:, None] * 3 * hidden + place[None, :], mask=asks[:, None] & inside[None, :], other=0.0
        )
        logits = tl.dot(query, tl.trans(key), input_precision="ieee")
        logits = tl.where(real[None, :], logits, float("-inf"))
        weight = tl.exp2((logits - tl.max(logits, 1)[:, None]) * LOG2E)
        weight = weight / tl.sum(weight, 1)[:, None]
        if scored:
            received += tl.sum(tl.where(asks[:, None], weight, 0.0), 0)
        mixed = tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        tl.store(
            out + (start + row[:, None]) * hidden + head * size + place[None, :],
            mixed.to(value.dtype),
            mask=asks[:, None] & inside[None, :],
        )
    if scored:
        tl.store(sums + head.to(tl.int64) * rows + start + column, received, mask=real)


@triton.jit(do_not_specialize=UNTUNED, do_not_specialize_on_alignment=["work"])
@no_type_check  # arguments of a kernel are Triton's own
def long_kernel(
    qkv: Any, work: Any, out: Any, normaliser: Any, rows: Any, heads: Any, size: Any,
    scored: tl.constexpr, queries: tl.constexpr, keys: tl.constexpr, wide: tl.constexpr,
) -> None:  # fmt: skip
    """Attend with one block of queries and one head; `work` holds (first row, length, first query) per block.

    Probabilities are computed block by block, after subtracting the largest logit so far; `normaliser` [heads, rows]
    gets the log of each row's sum.
    """
    start = tl.load(work + 3 * tl.program_id(0)).to(tl.int64)
    length = tl.load(work + 3 * tl.program_id(0) + 1)
    row = tl.load(work + 3 * tl.program_id(0) + 2) + tl.arange(0, queries)
    head = tl.program_id(1)
    hidden = heads * size
    place = tl.arange(0, wide)
    here = qkv + start * 3 * hidden + head * size
    asks = row < length
    inside = place < size
    query = tl.load(here + row[:, None] * 3 * hidden + place[None, :], mask=asks[:, None] & inside[None, :], other=0.0)
    top = tl.full([queries], float("-inf"), tl.float32)
    total = tl.zeros([queries], tl.float32)
    mixed = tl.zeros([queries, wide], tl.float32)
    for first in range(0, length, keys):
        column = first + tl.arange(0, keys)
        real = column < length
        at = column[:, None] * 3 * hidden + place[None, :]
        key = tl.load(here + hidden + at, mask=real[:, None] & inside[None, :], other=0.0)
        value = tl.load(here + 2 * hidden + at, mask=real[:, None] & inside[None, :], other=0.0)
        logits = tl.dot(query, tl.trans(key), input_precision="ieee") * LOG2E
        logits = tl.where(real[None, :], logits, float("-inf"))
        now = tl.maximum(top, tl.max(logits, 1))
        weight = tl.exp2(logits - now[:, None])
        shrunk = tl.exp2(top - now)
        total = total * shrunk + tl.sum(weight, 1)
        mixed = mixed * shrunk[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        top = now
    tl.store(
        out + (start + row[:, None]) * hidden + head * size + place[None, :],
        (mixed / total[:, None]).to(query.dtype),
        mask=asks[:, None] & inside[None, :],
    )
    if scored:
        tl.store(normaliser + head.to(tl.int64) * rows + start + row, (top + tl.log2(total)) / LOG2E, mask=asks)


@triton.jit(do_not_specialize=UNTUNED, do_not_specialize_on_alignment=["work"])
@no_type_check  # arguments of a kernel are Triton's own
def sums_kernel(
    qkv: Any, work: Any, normaliser: Any, sums: Any, rows: Any, heads: Any, size: Any,
    queries: tl.constexpr, keys: tl.constexpr, wide: tl.constexpr,
) -> None:  # fmt: skip
    """Sum what one block of keys receives from all queries of its sentence, for one head, in a fixed order."""
    start = tl.load(work + 3 * tl.program_id(0)).to(tl.int64)
    length = tl.load(work + 3 * tl.program_id(0) + 1)
    column = tl.load(work + 3 * tl.program_id(0) + 2) + tl.arange(0, keys)
    head = tl.program_id(1)
    hidden = heads * size
    place = tl.arange(0, wide)
    here = qkv + start * 3 * hidden + head * size
    real = column < length
    inside = place < size
    key = tl.load(
        here + hidden + column[:, None] * 3 * hidden + place[None, :], mask=real[:, None] & inside[None, :], other=0.0
    )
    received = tl.zeros([keys], tl.float32)
    for first in range(0, length, queries):
        row = first + tl.arange(0, queries)
        asks = row < length
        query = tl.load(
            here + row[:, None] * 3 * hidden + place[None, :], mask=asks[:, None] & inside[None, :], other=0.0
        )
        # a query past the end has no normaliser: infinity makes its probabilities 0
        log = tl.load(normaliser + head.to(tl.int64) * rows + start + row, mask=asks, other=float("inf"))
        logits = tl.dot(query, tl.trans(key), input_precision="ieee")
        received += tl.sum(tl.exp2((logits - log[:, None]) * LOG2E), 0)
    tl.store(sums + head.to(tl.int64) * rows + start + column, received, mask=real)


@dataclass(frozen=True)
class Work:
    """The work of each kernel's programs for one packing, prepared on the host and sent to the device in one transfer.

    `short` maps a tile width to (first row, length) of the sentences that use it; `long` holds, per block, (first row
    and length of the sentence, first row of the block within it). `offsets` are those of the packing, as int32.
    """

    short: dict[int, Int[Tensor, "sentences 2"]]
    long: Int[Tensor, "blocks 3"] | None
    offsets: Int[Tensor, "boundaries"]

    @classmethod
    def of(cls, packing: Packing) -> Work:
        """Prepare the work of attention over this packing."""
        offsets, long = [0], list[int]()
        short: dict[int, list[int]] = {}
        for length in packing.lengths:
            start = offsets[-1]
            offsets.append(start + length)
            if length > SHORT:
                long += [number for first in range(0, length, TILE) for number in (start, length, first)]
            elif length:
                short.setdefault(max(SMALLEST, triton.next_power_of_2(length)), []).extend((start, length))
        parts = [offsets, long, *short.values()]
        uploaded = upload([number for part in parts for number in part], packing.device, torch.int32)
        on_device = list(uploaded.split([len(part) for part in parts]))
        return cls(
            {width: part.view(-1, 2) for width, part in zip(short, on_device[2:], strict=True)},
            on_device[1].view(-1, 3) if long else None,
            on_device[0],
        )


class TritonAttention(FusedAttention):
    """The kernels behind the interface of the packed engine.

    With `flash`, torch's own varlen attention is used as well, in half precision: for batches whose column sums are not
    needed, and for the first pass of long sentences.
    """

    name = "triton"

    def __init__(self, flash: bool = False) -> None:
        self.flash = flash
        if flash:
            self.name = "triton and varlen_attn"

    def bind(self, packing: Packing) -> TritonPackingAttention:
        """Return the attention over one packing, whose work is prepared once, here."""
        return TritonPackingAttention(self, packing, Work.of(packing))


@dataclass(frozen=True)
class TritonPackingAttention:
    """Attention over one packing."""

    kernels: TritonAttention
    packing: Packing
    work: Work

    def __call__(
        self, qkv: Float[Tensor, "rows three_hidden"], heads: int, *, scored: bool
    ) -> tuple[Float[Tensor, "rows hidden"], Float[Tensor, "batch width"] | None]:
        """Compute the attention of each sentence and, if `scored`, the column sums, as in `attention.attend`."""
        qkv = qkv.contiguous()
        total, hidden = sum(self.packing.lengths), qkv.shape[1] // 3
        size = hidden // heads
        sums = qkv.new_empty((heads, total), dtype=torch.float32) if scored else None
        flash = self.kernels.flash and qkv.dtype in HALF
        if flash and not scored:
            return self._flash(qkv, heads)[0], None
        if flash and self.work.long is not None:
            # includes short sentences, which are overwritten below, so that no result depends on the batch
            out, normaliser = self._flash(qkv, heads)
        else:
            out = qkv.new_empty((qkv.shape[0], hidden))
            out[total:] = 0
            normaliser = qkv.new_empty((heads, total if self.work.long is not None else 0), dtype=torch.float32)
        wide = max(SMALLEST, triton.next_power_of_2(size))
        about = (total, heads, size)
        for width, work in self.work.short.items():
            short_kernel[(len(work), heads)](
                qkv, work, out, out if sums is None else sums, *about,
                scored=scored, queries=min(width, TILE), keys=width, wide=wide, num_warps=4 if width <= TILE else 8,
            )  # fmt: skip
        if self.work.long is not None:
            grid = (len(self.work.long), heads)
            tiles = {"queries": TILE, "keys": TILE, "wide": wide}
            if not flash:
                long_kernel[grid](qkv, self.work.long, out, normaliser, *about, scored=scored, **tiles)
            if sums is not None:
                sums_kernel[grid](qkv, self.work.long, normaliser, sums, *about, **tiles)
        return out, None if sums is None else self.packing.pad(sums.mean(0))

    def _flash(
        self, qkv: Float[Tensor, "rows three_hidden"], heads: int
    ) -> tuple[Float[Tensor, "rows hidden"], Float[Tensor, "heads total"]]:
        """Compute attention with torch's varlen_attn, and return it with the log of each row's normaliser."""
        from torch.nn.attention.varlen import AuxRequest, varlen_attn  # only torch for GPUs has it

        total, width = sum(self.packing.lengths), self.packing.width
        query, key, value = qkv[:total].unflatten(1, (3, heads, -1)).unbind(1)
        mixed, normaliser = varlen_attn(
            query, key, value, self.work.offsets, self.work.offsets, width, width,
            return_aux=AuxRequest(lse=True), scale=1.0,
        )  # fmt: skip
        out = qkv.new_empty((qkv.shape[0], qkv.shape[1] // 3))
        out[:total] = mixed.flatten(1)
        out[total:] = 0
        return out, normaliser.contiguous()


def is_interpreted() -> bool:
    """Whether Triton runs its kernels in an interpreter on the CPU, as in tests."""
    return bool(triton.knobs.runtime.interpret)


@cache
def triton_attention(device: torch.device, dtype: torch.dtype, size: int) -> TritonAttention | None:
    """Return the kernels for heads of `size`, combined with torch's varlen attention if that works too.

    None if they fail a small case: an unsupported GPU, too little shared memory, a different Triton. On the CPU they
    run only under Triton's interpreter.
    """
    if device.type != "cuda" and not is_interpreted():
        return None
    if not is_correct(TritonAttention(), device, dtype, size):
        return None
    with_flash = TritonAttention(flash=True)
    can_flash = device.type == "cuda" and dtype in HALF
    return with_flash if can_flash and is_correct(with_flash, device, dtype, size) else TritonAttention()


def is_correct(attention: TritonAttention, device: torch.device, dtype: torch.dtype, size: int) -> bool:
    """Whether a small case runs and is correct: short and long sentences, an empty one, and dummy rows."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        try:
            return matches_float64(attention, device, dtype, heads=2, size=size)
        except Exception:  # whatever a compiler, a driver or an older torch raises, torch's attention remains
            return False


def matches_float64(
    attention: TritonAttention, device: torch.device, dtype: torch.dtype, heads: int, size: int
) -> bool:
    """Whether attention and column sums of a small case equal those in float64, scored and unscored."""
    lengths = (5, 0, 1, 17, 65, 130, 256, 300)
    packing = Packing.of(lengths, device)
    total, allowed = sum(lengths), ALLOWED[dtype]
    qkv = (torch.randn(total + 3, 3 * heads * size, generator=torch.Generator().manual_seed(0)) / 2).to(dtype)
    bound = attention.bind(packing)
    out, received = bound(qkv.to(device), heads, scored=True)
    unscored, nothing = bound(qkv.to(device), heads, scored=False)
    if received is None or nothing is not None or out[total:].any() or unscored[total:].any():
        return False
    out, unscored, received = out.cpu(), unscored.cpu(), received.cpu()
    first = 0
    for sentence, length in enumerate(lengths):
        rows = slice(first, first + length)
        first += length
        query, key, value = qkv[rows].double().view(length, 3, heads, size).permute(1, 2, 0, 3).unbind(0)
        probs = (query @ key.transpose(1, 2)).softmax(-1)
        mixed = (probs @ value).transpose(0, 1).flatten(1)
        sums = torch.nn.functional.pad(probs.sum(1).mean(0), (0, packing.width - length))
        for got, expected in ((out[rows], mixed), (unscored[rows], mixed), (received[sentence], sums)):
            error = (got.double() - expected).abs() / expected.abs().clamp(min=1)
            if got.numel() and not float(error.max()) <= allowed:
                return False
    return True
