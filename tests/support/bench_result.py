"""The result of a benchmark, made of literal numbers."""

from __future__ import annotations

from dataclasses import replace

from prunekit.bench.result import (
    BenchResult,
    BlockResult,
    Comparison,
    EngineRecord,
    GemmPeaks,
    Hardware,
    Measurement,
    PaddingCost,
    PeerRatio,
    PruningRatio,
    SizeResult,
    Spread,
    TextStatistics,
)


def spread(median):
    return Spread(median=median, q25=median - 0.1, q75=median + 0.1)


def against(name, median):
    return PeerRatio(**vars(spread(median)), against=name)


def measurement(name, role, **changes):
    ours = Measurement(
        name=name,
        engine=name,
        role=role,
        dtype="fp32",
        order="random",
        padded=False,
        batch_size=32,
        seconds_per_pass=spread(1.0),
        rounds=(0.9, 1.0, 1.1),
        first_pass=1.04,
        first_over_steady=1.04,
        ms=12.34,
        examples_per_s=250.0,
        tokens_per_s=6400.0,
        useful_gflops=40.0,
        share_of_peak=0.91,
        agrees=0.995,
        score={"accuracy": 0.95},
    )
    return replace(ours, **changes)


def comparison(own, **changes):
    nobody = Comparison(
        own=own, role="pruned", dtype="fp32", batch_size=32, vs_sorted=None, vs_unpadded=None, vs_each={},
        vs_padded_eager=None,
    )  # fmt: skip
    return replace(nobody, **changes)


def size_result(batch_size=32, **changes):
    quiet = SizeResult(batch_size=batch_size, rounds=3, control=1.004, trusted=True, candidates=(), ratios=())
    return replace(quiet, **changes)


def bench_result(*sizes, **changes):
    block = BlockResult(
        threads=1,
        clock="cpu",
        engines={"packed": EngineRecord(peak_mb=123.4)},
        gemm_peak=GemmPeaks(before={"fp32": 1e11}, after={"fp32": 1e11}),
        sizes=sizes,
    )
    result = BenchResult(
        schema=2,
        title="top on cola",
        method="top",
        task="cola",
        metric="accuracy",
        split="validation",
        date="2026-11-21",
        hardware=Hardware(cpu="a processor", cpus=2, platform="Linux"),
        versions={"torch": "2.13.0", "openvino": None},
        load_before=(0.1, 0.1, 0.1),
        settings={"attention": "auto", "warm": False},
        workload=TextStatistics(
            texts=64,
            tokens=1613,
            mean=25.2,
            p90=50.0,
            max=60,
            padded_to=128,
            computed_per_real_token=PaddingCost(random={"32": 2.2}, sorted={"32": 1.05}, padded_to=5.1),
        ),
        flops_ratio=2.5,
        absent={"openvino fp32": "not installed: pip install openvino"},
        blocks=(block,),
        load_after=None,
    )
    return replace(result, **changes)


RESULT = bench_result(
    size_result(
        candidates=(
            measurement("packed", "unpruned"), measurement("control", "control"), measurement("hf", "peer"),
        ),
        ratios=(
            comparison(
                "packed, pruned",
                vs_unpruned=PruningRatio(**vars(spread(2.0)), against="packed", flops_ratio=2.5, efficiency=0.8),
                vs_sorted=against("ort, sorted", 0.8),
                vs_each={"ort": spread(1.7), "ort, sorted": spread(0.8)},
                vs_padded_eager=against("hf eager", 9.0),
            ),
        ),
    )
)  # fmt: skip
