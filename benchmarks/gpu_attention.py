"""What pruning brings on a GPU, and what the scores cost there.

./run python benchmarks/gpu_attention.py

Random weights of BERT-base's size; texts of random tokens. Three parts:

attention   packed attention alone, with column sums and without, against FlashAttention-2 on the same unpadded rows,
            at 2k, 16k and 128k tokens in flight
engine      the pruned engine against the same engine unpruned: realised speed-up, FLOPs reduction, and their quotient
score       a layer with column sums against one without, at lengths up to 256 and at 4096: the score's share

FlashAttention-2 is the package flash_attn where it is installed, and otherwise torch's varlen_attn; the file says
which. Times are those of the device's own clock, candidates interleaved forwards and backwards, medians over rounds;
the unpruned engine takes part twice as a control. Without a CUDA device the script says so and exits with 4.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script
from prunekit.config.errors import DONE, ConfigError
from prunekit.files import atomic_write_text
from prunekit.runtime.extras import version

ROOT = Path(__file__).parents[1]
SETTINGS = Path(__file__).with_suffix(".yaml")
LENGTHS = (128, 256, 512)
LONG = 4096
REDUCTIONS = (2.0, 4.0, 8.0)
HEADS, HIDDEN, LAYERS, FFN = 12, 768, 12, 3072
DEVICE = "cuda"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Candidate = Callable[[], object]


def interleaved(candidates: Mapping[str, Candidate], rounds: int, clock: Callable[[Candidate], float]) -> dict:
    """Milliseconds of each candidate by round, forwards and then backwards; the first two rounds warm up."""
    spent: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for number in range(rounds + 2):
        for name in names if number % 2 == 0 else names[::-1]:
            spent[name].append(clock(candidates[name]))
    return {name: times[2:] for name, times in spent.items()}


def device_clock(work: Candidate) -> float:
    """Milliseconds of the device."""
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    work()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after)


def ratio(spent: Mapping[str, Sequence[float]], above: str, below: str) -> float:
    """The median of per-round ratios."""
    return statistics.median(a / b for a, b in zip(spent[above], spent[below], strict=True))


def flash_attention() -> tuple[str, Callable[[Tensor, Tensor, int], Tensor]]:
    """FlashAttention-2 on unpadded rows [rows, 3, heads, size] with int32 offsets; queries are scaled already."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        from torch.nn.attention.varlen import varlen_attn

        def of_torch(rows: Tensor, offsets: Tensor, width: int) -> Tensor:
            return varlen_attn(*rows.unbind(1), offsets, offsets, width, width, scale=1.0)

        return f"varlen_attn of torch {torch.__version__}", of_torch

    def of_package(rows: Tensor, offsets: Tensor, width: int) -> Tensor:
        return flash_attn_varlen_func(*rows.unbind(1), offsets, offsets, width, width, softmax_scale=1.0)

    return f"flash_attn {version('flash_attn')}", of_package


def attention(tokens: int, length: int, dtype: str, rounds: int, clock: Callable) -> dict[str, Any]:
    """Attention alone: ours with and without column sums, against FlashAttention-2."""
    from prunekit.runtime.engine import fused_attention
    from prunekit.runtime.kernels.attention import Plan, attend
    from prunekit.tokens.packing import Packing

    device = torch.device(DEVICE)
    packing = Packing.of([length] * (tokens // length), device)
    rows = torch.randn(tokens, 3 * HIDDEN, device=device, dtype=DTYPES[dtype]) / 2
    fused = fused_attention("auto", dtype, device, HIDDEN // HEADS)
    plan = Plan(packing, tokens, fused)
    name, flash = flash_attention()
    offsets = packing.offsets.int()
    candidates: dict[str, Candidate] = {
        "ours scored": lambda: attend(rows, HEADS, plan, frozenset({"received"})),
        "ours unscored": lambda: attend(rows, HEADS, plan, frozenset()),
        "torch scored": lambda: attend(rows, HEADS, Plan(packing, tokens), frozenset({"received"})),
    }
    if dtype != "fp32":  # FlashAttention has no float32
        candidates[name] = lambda: flash(rows.unflatten(1, (3, HEADS, -1)), offsets, length)
    spent = interleaved(candidates, rounds, clock)
    return {
        "tokens": tokens,
        "length": length,
        "kernels": "torch" if fused is None else fused.name,
        "milliseconds": spent,
        "scored_against_flash": ratio(spent, name, "ours scored") if name in spent else None,
    }


def model(length: int, ratios: Mapping[int, float] | None) -> Any:
    """A random BERT-base for texts of this length that keeps these shares of its tokens."""
    import transformers

    from prunekit.tokens.encoder import install
    from prunekit.tokens.policies import KeepRatio
    from prunekit.tokens.pruner import TokenPruner
    from prunekit.tokens.scorers import AttentionReceived

    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=FFN,
        max_position_embeddings=length,
    )
    found = transformers.BertForSequenceClassification(config).eval()
    pruner = None if ratios is None else TokenPruner(AttentionReceived(), KeepRatio(ratios), ratios)
    return install(found, pruner)


def ratios_for(reduction: float, length: int) -> dict[int, float]:
    """Shares that fall by one factor from layer to layer, and cut the FLOPs of texts of this length as asked."""
    from prunekit.cost import Shape, dense_macs, encoder_macs
    from prunekit.tokens.policies import KeepRatio, geometric_ratios

    shape, lengths = Shape(LAYERS, HIDDEN, FFN, HEADS), torch.tensor([length])
    dense = float(dense_macs(shape, lengths))
    low, high = 0.0, 1.0
    for _ in range(40):
        rate = (low + high) / 2
        shares = geometric_ratios(LAYERS, 0, rate)
        reached = dense / float(encoder_macs(shape, *KeepRatio(shares).counts(lengths, LAYERS)))
        low, high = (rate, high) if reached > reduction else (low, rate)
    return geometric_ratios(LAYERS, 0, high)


def engine(tokens: int, length: int, dtype: str, reduction: float, rounds: int, clock: Callable) -> dict[str, Any]:
    """The whole encoder, pruned and not, from token ids of the host to logits of the device."""
    from prunekit.cost import Shape, dense_macs, encoder_macs
    from prunekit.runtime.engine import PackedEngine

    shares = ratios_for(reduction, length)
    runs = PackedEngine(model(length, shares), device=DEVICE, dtype=dtype, cls_last=False)
    batch = torch.randint(5, 30000, (tokens // length, length)).tolist()
    spent = interleaved(
        {
            "unpruned": lambda: runs(batch, prune=False),
            "pruned": lambda: runs(batch),
            "control": lambda: runs(batch, prune=False),
        },
        rounds,
        clock,
    )
    shape = Shape(LAYERS, HIDDEN, FFN, HEADS)
    trace = runs(batch).trace
    macs = encoder_macs(shape, trace.tokens_in, trace.tokens_out).sum()
    flops = float(dense_macs(shape, torch.full((tokens // length,), length)).sum() / macs)
    faster = ratio(spent, "unpruned", "pruned")
    return {
        "tokens": tokens,
        "length": length,
        "flops_reduction": flops,
        "faster": faster,
        "efficiency": faster / flops,
        "control": ratio(spent, "unpruned", "control"),
        "milliseconds": spent,
    }


def score(tokens: int, length: int, dtype: str, rounds: int, clock: Callable) -> dict[str, Any]:
    """One layer with column sums and without; nobody leaves, so all else is the same."""
    from prunekit.runtime.engine import PackedEngine
    from prunekit.runtime.kernels.attention import Plan, attend
    from prunekit.tokens.packing import Packing

    runs = PackedEngine(model(length, None), device=DEVICE, dtype=dtype, cls_last=False)
    layer, packing = runs.layers[0], Packing.of([length] * (tokens // length), runs.device)
    rows = torch.randn(tokens, HIDDEN, device=runs.device, dtype=DTYPES[dtype])
    plan = Plan(packing, tokens, runs.fused)

    def work(*needs: Any) -> Candidate:
        return lambda: layer.finish(attend(layer.qkv(rows), HEADS, plan, frozenset(needs))[0], rows)

    spent = interleaved({"scored": work("received"), "unscored": work()}, rounds, clock)
    return {
        "tokens": tokens,
        "length": length,
        "share_of_a_layer": ratio(spent, "scored", "unscored") - 1,
        "milliseconds": spent,
    }


def measure(asked: Mapping[str, Any], clock: Callable[[Candidate], float]) -> dict[str, Any]:
    """Measure all parts; what does not fit into memory is listed with the device's message."""
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "flash": flash_attention()[0],
        "date": date.today().isoformat(),
        "rounds": asked["rounds"],
        "dtypes": {},
        "left_out": [],
    }
    for dtype in asked["dtypes"]:
        parts: dict[str, list] = {"attention": [], "engine": [], "score": []}

        def keep(part: str, work: Callable[[], dict], parts: dict[str, list] = parts, dtype: str = dtype) -> None:
            try:
                parts[part].append(work())
            except torch.OutOfMemoryError as error:
                found["left_out"].append(f"{part} {dtype}: {error}")

        with torch.inference_mode():
            for tokens in asked["tokens"]:
                for length in LENGTHS:
                    given = (tokens, length, asked["rounds"], clock)
                    keep("attention", lambda g=given, d=dtype: attention(g[0], g[1], d, *g[2:]))
                    keep("score", lambda g=given, d=dtype: score(g[0], g[1], d, *g[2:]))
                if tokens >= LONG:
                    keep("score", lambda t=tokens, d=dtype: score(t, LONG, d, asked["rounds"], clock))
                for reduction in REDUCTIONS:
                    keep("engine", lambda t=tokens, d=dtype, r=reduction: engine(t, 128, d, r, asked["rounds"], clock))
        found["dtypes"][dtype] = parts
    return found


def main(arguments: Sequence[str]) -> int:
    """Measure, store and print. Return 0.

    Raises:
        ConfigError: there is no CUDA device.
    """
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    if not torch.cuda.is_available():
        raise ConfigError(
            f"no CUDA device: torch {torch.__version__} sees none here, and this benchmark measures nothing else.\n"
            f"Allowed: a machine with an NVIDIA GPU and a torch that was built for it.\n"
            f"Run the same command there; prunekit bench measures this machine's CPU."
        )
    found, out = measure(given, device_clock), ROOT / given["out"]
    atomic_write_text(out, json.dumps(found, indent=1) + "\n")
    for dtype, parts in found["dtypes"].items():
        for row in parts["engine"]:
            speed = f"{row['faster']:.2f}x faster, {row['flops_reduction']:.2f}x fewer FLOPs"
            trust = f"efficiency {row['efficiency']:.2f}, control {row['control']:.3f}"
            print(f"{dtype} {row['tokens']} tokens: {speed}, {trust}")
        for row in parts["score"]:
            share = f"score {row['share_of_a_layer']:.1%} of a layer"
            print(f"{dtype} {row['tokens']} tokens, length {row['length']}: {share}")
    print(f"written to {out}")
    return DONE


if __name__ == "__main__":
    run_script(main)
