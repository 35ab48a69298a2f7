"""What `prunekit bench` and `prunekit export` store: every key of their JSON files, once. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunekit.runs.json_object import JsonObject

BENCH_SCHEMA = 2  # 1 set speed-ups beside the method's FLOPs ratio, whatever the engines executed
NO_BUDGET = ""  # of a model that no run made


# -- prunekit bench ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Spread(JsonObject):
    """The median of a number, and its quartiles."""

    median: float
    q25: float
    q75: float


@dataclass(frozen=True, kw_only=True)
class PeerRatio(Spread):
    """How many times as long another candidate takes, over rounds; above 1: ours is faster."""

    against: str  # the candidate's name


@dataclass(frozen=True, kw_only=True)
class PruningRatio(PeerRatio):
    """How many times as long the same engine takes unpruned, beside what the FLOPs promise."""

    flops_ratio: float  # of what the two execute
    efficiency: float  # the share of that ratio that is realised


@dataclass(frozen=True, kw_only=True)
class Comparison(JsonObject):
    """One of prunekit's engines in a role, compared with the others of its precision; None where there is no such."""

    own: str  # the candidate's name
    role: str
    dtype: str
    batch_size: int
    vs_unpruned: PruningRatio | None = None  # of pruned engines
    vs_sorted: PeerRatio | None
    vs_unpadded: PeerRatio | None
    vs_each: Mapping[str, Spread]  # by the peer's name
    vs_padded_eager: PeerRatio | None


@dataclass(frozen=True, kw_only=True)
class LengthLatency(JsonObject):
    """Single requests of texts of similar length: their number, and percentiles in ms."""

    texts: int
    p50: float
    p95: float


@dataclass(frozen=True, kw_only=True)
class Measurement(JsonObject):
    """What was measured of one candidate at one batch size; times are those of the block's clock."""

    name: str
    engine: str
    role: str
    dtype: str
    order: str  # of the texts
    padded: bool
    batch_size: int
    seconds_per_pass: Spread
    rounds: tuple[float, ...]  # seconds of each counted round
    first_pass: float  # seconds
    first_over_steady: float  # what new shapes cost, and all else that a first pass does once
    ms: float  # per batch
    examples_per_s: float
    tokens_per_s: float
    useful_gflops: float  # per second
    share_of_peak: float | None  # None where torch has no product of this precision
    latency_ms: Mapping[str, float] | None = None  # p50, p95 and p99 of single requests, at batch 1
    latency_ms_by_length: Mapping[str, LengthLatency] | None = None  # by range of tokens, at batch 1
    agrees: float  # share of texts with the label of the reference
    score: Mapping[str, float] | None = None  # by metric, where labels are known


@dataclass(frozen=True, kw_only=True)
class SizeResult(JsonObject):
    """All candidates at one batch size."""

    batch_size: int
    rounds: int
    control: float | None  # the unpruned engine against itself
    trusted: bool  # whether the control is near enough to 1
    candidates: tuple[Measurement, ...]
    ratios: tuple[Comparison, ...]


@dataclass(frozen=True, kw_only=True)
class EngineRecord(JsonObject):
    """How an engine was built."""

    peak_mb: float | None  # by which memory rose; None where the system cannot say
    linears: str | None = None  # backend of the packed engine's linear layers
    attention: str | None = None  # and of its attention
    version: str | None = None  # of a peer


@dataclass(frozen=True, kw_only=True)
class GemmPeaks(JsonObject):
    """FLOP/s of the best square matrix product by precision, before and after all engines were timed."""

    before: Mapping[str, float | None]
    after: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class BlockResult(JsonObject):
    """All batch sizes on one number of threads."""

    threads: int
    clock: str  # cpu or wall
    engines: Mapping[str, EngineRecord]
    gemm_peak: GemmPeaks
    sizes: tuple[SizeResult, ...]


@dataclass(frozen=True, kw_only=True)
class PaddingCost(JsonObject):
    """Tokens computed per real one by padding: by batch size, in random order and sorted; and to a fixed length."""

    random: Mapping[str, float]
    sorted: Mapping[str, float]
    padded_to: float


@dataclass(frozen=True, kw_only=True)
class TextStatistics(JsonObject):
    """The texts that are read, and their lengths in tokens."""

    texts: int
    tokens: int
    mean: float
    p90: float
    max: int
    padded_to: int
    computed_per_real_token: PaddingCost


@dataclass(frozen=True, kw_only=True)
class Hardware(JsonObject):
    """The machine, as far as timings depend on it."""

    cpu: str
    cpus: int | None
    platform: str
    instructions: str | None = None  # the widest vectors that torch uses here


@dataclass(frozen=True, kw_only=True)
class BenchResult(JsonObject):
    """What `prunekit bench` writes, as bench.json."""

    schema: int
    title: str
    method: str
    task: str
    budget: str | float | int | None = NO_BUDGET  # of a run, as it was asked for
    run: str | None = None  # its hash
    metric: str
    split: str
    date: str
    hardware: Hardware
    versions: Mapping[str, str | None]  # of packages; None: not installed
    load_before: tuple[float, ...] | None
    settings: Mapping[str, Any]  # as cli/bench.yaml explains them
    workload: TextStatistics
    flops_ratio: float  # of the method
    flops_ratio_executed: float | None = None  # of the packed engine; schema 1 did not have it
    absent: Mapping[str, str]  # candidate -> why it could not be measured
    blocks: tuple[BlockResult, ...]
    load_after: tuple[float, ...] | None


# -- prunekit export ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ParityScore(JsonObject):
    """The scores of two runtimes, by metric."""

    model: Mapping[str, float]
    export: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Parity(JsonObject):
    """How far one runtime is from another, over texts; "kept" is which tokens each text kept in which layers."""

    rows: int
    labels_agree: float  # share of texts
    labels_differ: int
    max_difference: float  # of a logit
    mean_difference: float  # over texts, of their largest
    max_difference_same_tokens: float  # among texts that keep the same tokens
    kept_equal: float  # share of texts
    kept_differ: int
    tokens_equal: float  # share of tokens
    score: ParityScore | None = None


@dataclass(frozen=True, kw_only=True)
class ExportedFile(Parity):
    """A file that was written, and its parity with the model."""

    exact: bool  # whether it computes in float32 throughout
    file: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class ExportReport(JsonObject):
    """What `prunekit export` writes beside its files, as parity.json."""

    format: str
    run: str
    method: str
    task: str
    prune: bool
    split: str
    metric: str
    folder: str
    variants: Mapping[str, ExportedFile]
    faithful: bool  # whether all exact files, and the packed engine, are the same function as the model
    packed: Parity | None = None  # of the packed engine, where it knows the family; it reads the model's own files


@dataclass(frozen=True, kw_only=True)
class ParityResult(JsonObject):
    """What benchmarks/export_parity.py stores of a run."""

    run: str
    method: str
    task: str
    split: str
    metric: str
    budget: float | int | None  # that was reached
    variants: Mapping[str, ExportedFile]
    date: str
    hardware: Hardware
    versions: Mapping[str, str | None]
