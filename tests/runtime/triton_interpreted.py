"""The Triton kernels on the CPU, in Triton's interpreter: compared with torch's attention, and in the whole engine.

Run by tests/runtime/test_gpu.py in a separate process: TRITON_INTERPRET=1 must be set before triton is imported, and
the types of kernels cannot be checked like those of functions.
"""

import pytest
import torch
from support.decisions import DECISIONS, masked
from support.models import sentences, tiny_model

from prunekit.runtime.engine import PackedEngine
from prunekit.runtime.kernels.attention import Plan, attend
from prunekit.runtime.kernels.triton_attention import TritonAttention, Work, is_interpreted, triton_attention
from prunekit.tokens.encoder import install
from prunekit.tokens.packing import Packing

CPU = torch.device("cpu")
SHORT = [1, 2, 17, 64, 65, 256]
LONG = [300, 257, 384]
SCORED = frozenset({"received"})


def rows_of(lengths, heads, size, dtype=torch.float32):
    """Queries, keys and values, followed by three dummy rows."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(sum(lengths) + 3, 3 * heads * size, generator=generator) / 2).to(dtype)


def test_this_is_the_interpreter():
    assert is_interpreted()
    assert isinstance(triton_attention(CPU, torch.float32, 8), TritonAttention)


@pytest.mark.parametrize("needs", [SCORED, frozenset()], ids=["scored", "unscored"])
@pytest.mark.parametrize(("heads", "size"), [(3, 20), (1, 64)])
@pytest.mark.parametrize("lengths", [SHORT, LONG, [5, 300, 0, 17]], ids=["short", "long", "both"])
def test_outputs_and_column_sums_equal_torchs(lengths, heads, size, needs):
    packing, rows = Packing.of(lengths, CPU), rows_of(lengths, heads, size)
    mixed, signals = attend(rows, heads, Plan(packing, len(rows), TritonAttention()), needs)
    expected, expected_signals = attend(rows, heads, Plan(packing, len(rows)), needs)
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=0)
    assert not mixed[sum(lengths) :].any()
    if not needs:
        assert signals.received is None
        return
    torch.testing.assert_close(signals.received, expected_signals.received, atol=1e-5, rtol=0)
    # the attention received within a sentence sums to its number of tokens
    torch.testing.assert_close(signals.received.sum(1), torch.tensor(lengths).float(), atol=1e-3, rtol=0)


def test_half_precision_is_rounded_once():
    """In float16 only: the interpreter multiplies bfloat16 as integers, so bfloat16 is tested on a GPU."""
    lengths = [17, 300]
    packing, rows = Packing.of(lengths, CPU), rows_of(lengths, 2, 32, torch.float16)
    mixed, received = TritonAttention().bind(packing)(rows, 2, scored=True)
    expected, expected_signals = attend(rows.float(), 2, Plan(packing, len(rows)), SCORED)
    assert mixed.dtype == torch.float16
    torch.testing.assert_close(mixed.float(), expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(received, expected_signals.received, atol=1e-5, rtol=0)


def test_a_sentence_is_bit_for_bit_the_same_in_any_batch():
    lengths = [40, 300, 3]
    rows = rows_of(lengths, 2, 32)
    together, received = TritonAttention().bind(Packing.of(lengths, CPU))(rows, 2, scored=True)
    first = 0
    for row, length in enumerate(lengths):
        alone = Packing.of([length], CPU)
        mixed, own = TritonAttention().bind(alone)(rows[first : first + length], 2, scored=True)
        assert torch.equal(mixed, together[first : first + length])
        assert torch.equal(own[0], received[row, :length])
        first += length


def test_tile_sizes_depend_only_on_the_length():
    work = Work.of(Packing.of([5, 0, 65, 300, 16], CPU))
    assert {width: part.tolist() for width, part in work.short.items()} == {16: [[0, 5], [370, 16]], 128: [[5, 65]]}
    assert work.long.tolist() == [[70, 300, first] for first in (0, 64, 128, 192, 256)]
    assert work.offsets.tolist() == [0, 5, 5, 70, 370, 386]


@pytest.mark.parametrize("decision", ["ratio", "gates", "threshold", "task attention"])
def test_the_engine_keeps_the_tokens_of_the_mask_path(decision):
    model = install(tiny_model(), DECISIONS[decision]())
    batch = sentences([20, 13, 1, 70])
    logits, kept, _ = masked(model, batch)
    engine = PackedEngine(model, attention="triton", cls_last=False)
    assert engine.fused.name == "triton"
    result = engine(batch)
    assert result.kept == kept
    torch.testing.assert_close(result.logits, logits, atol=1e-4, rtol=0)


def test_a_precision_with_wrong_results_is_refused():
    model = install(tiny_model(), None)
    with pytest.raises(ValueError, match="attention='triton' gives wrong results in bf16 on cpu here"):
        PackedEngine(model, dtype="bf16", attention="triton")
