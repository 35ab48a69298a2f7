"""The result of a run, typed: every key of result.json is declared here, once, in the order in which it is written.

Required is what every result of this schema has had from its first version on; what may be absent is None then. Keys
that are not declared are kept (`OpenJsonObject.other`), so that no result loses anything when it is rewritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from prunekit.config.identity import is_dense
from prunekit.runs.json_object import OpenJsonObject

SCHEMA = 1
Status = Literal["done", "budget_missed"]
Number = float | int
Metrics = Mapping[str, Number]  # by name; quality in shares of 1

# -- what results of every kind have -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Knob(OpenJsonObject):
    """A setting of the method that stood in for a budget, in its own terms."""

    name: str
    asked: Number
    reached: Number


@dataclass(frozen=True, kw_only=True)
class Budget(OpenJsonObject):
    """The FLOPs reduction asked for and the one measured; 3.0 = a third of the FLOPs."""

    asked: Number | None
    reached: Number
    met: bool
    knob: Knob | None = None
    tolerance: Number  # share of FLOPs
    feasible: tuple[Number, Number] | None = None  # lowest and highest reduction
    split: str


@dataclass(frozen=True, kw_only=True)
class Score(OpenJsonObject):
    """The quality of the dense and of the pruned model on the test split; shares of 1, higher is better."""

    metric: str
    split: str
    rows: int
    of: str | None = None  # what a row is: a text, a question
    null_threshold: Number | None = None  # of the logits of "no answer"
    thresholds: Mapping[str, Number] | None = None  # the probabilities from which a text has each label
    positive: str | None = None  # the class that F1 is of
    negative: str | None = None
    one_class: Mapping[str, str] | None = None  # the class of all predictions, by "dense" and "pruned", where it is one
    dense: Number
    pruned: Number
    dense_all: Metrics | None = None
    pruned_all: Metrics | None = None
    validation: Number  # what a search maximises
    chosen_by: str | None = None  # the metric on validation, where it is another one
    other_splits: Mapping[str, Metrics] | None = None


@dataclass(frozen=True, kw_only=True)
class Flops(OpenJsonObject):
    """GFLOPs per text, and reductions against both baselines."""

    dense_unpadded_g: Number
    dense_padded_g: Number
    pruned_g: Number
    flops_vs_unpadded: Number
    flops_vs_padded: Number
    mean_of_ratios: Number | None = None
    padded_to: int  # tokens
    split: str | None = None
    per: str | None = None  # what is counted by: a text, a window
    of: str | None = None  # the part of the model, where it is not the whole


@dataclass(frozen=True, kw_only=True)
class SpeedRow(OpenJsonObject):
    """Measured speed at one batch size: medians over rounds, milliseconds of CPU time per batch."""

    batch_size: int
    batches: int | None = None
    rounds: int | None = None
    threads: int | None = None
    dense_padded_ms: Number
    dense_packed_ms: Number
    pruned_packed_ms: Number
    speedup_vs_padded: Number
    speedup_vs_packed: Number
    control: Number | None = None  # ratio of the dense packed model to itself


# -- runs that prune tokens --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Truncation(OpenJsonObject):
    """How many rows of a split were cut at the maximum length."""

    rows: int
    of: int | None = None
    max_length: int | None = None
    words: int | None = None  # of labelled words those that have no token, and so count as missed
    of_words: int | None = None


@dataclass(frozen=True, kw_only=True)
class Executions(OpenJsonObject):
    """How the pruned model ran on each split."""

    validation: str
    test: str


@dataclass(frozen=True, kw_only=True)
class Band(OpenJsonObject):
    """The test texts of at least `low` and fewer than `below` tokens."""

    low: int = field(metadata={"key": "from"})
    below: int
    rows: int
    dense: Number
    pruned: Number
    dense_all: Metrics
    pruned_all: Metrics
    flops_vs_unpadded: Number
    mean_length: Number
    tokens_per_layer: tuple[Number, ...]


@dataclass(frozen=True, kw_only=True)
class EndToEnd(OpenJsonObject):
    """GFLOPs per text of encoder and decoder together."""

    dense_g: Number
    pruned_g: Number
    reduction: Number
    encoder_share: Number  # of the dense model's FLOPs


@dataclass(frozen=True, kw_only=True)
class Bucket(OpenJsonObject):
    """BLEU (0 to 100) of the texts whose source has at least `low` and fewer than `high` tokens."""

    low: int
    high: int
    rows: int
    bleu: Number


@dataclass(frozen=True, kw_only=True)
class Translating(OpenJsonObject):
    """What one model spent on translating the test split, and its BLEU by length."""

    cpu_seconds: Number
    encoder_cpu_seconds: Number
    threads: int
    signature: str
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True, kw_only=True)
class Translation(OpenJsonObject):
    """What only a translation has: how BLEU was computed, and the decoder's share of the cost."""

    signature: str  # of sacreBLEU
    beams: int
    source_kept: Number  # share of the source tokens that reach the decoder
    end_to_end: EndToEnd
    dense: Translating
    pruned: Translating


@dataclass(frozen=True, kw_only=True)
class SearchPoint(OpenJsonObject):
    """A schedule that a search measured on validation."""

    shares: tuple[Number, ...] | None = None  # of its tokens that each layer keeps
    flops_vs_unpadded: Number
    score: Number


@dataclass(frozen=True, kw_only=True)
class Search(OpenJsonObject):
    """The outcome of a search that followed the training."""

    score: str  # the metric
    chosen: SearchPoint
    pareto: tuple[SearchPoint, ...]


@dataclass(frozen=True, kw_only=True)
class Quartiles(OpenJsonObject):
    """Median and quartiles."""

    median: Number
    q25: Number
    q75: Number


@dataclass(frozen=True, kw_only=True)
class LatencyGoal(OpenJsonObject):
    """A latency that was asked for, as predicted and as measured: milliseconds per batch."""

    asked_ms: Number
    batch: int
    threads: int
    dtype: str
    device: str
    clock: str
    split: str
    texts: int
    budget: Number  # the FLOPs reduction that the run was trained to
    predicted_ms: Number
    fastest_ms: Number
    dense_ms: Number
    predicted_as_trained_ms: Number
    measured_ms: Number
    ms: Quartiles
    p95_ms: Number
    control: Number  # ratio of the pruned model to itself
    rounds: int
    load: tuple[Number, ...] | None
    margin: Number
    tolerance: Number
    feasible_ms: tuple[Number, Number]
    met: bool


@dataclass(frozen=True, kw_only=True)
class ServedBudget(OpenJsonObject):
    """One of the budgets that a model serves: what it reaches on validation, and its score and cost on the test."""

    budget: str  # the name by which it is chosen
    reached: Number
    met: bool
    score: Number
    flops_vs_unpadded: Number


@dataclass(frozen=True, kw_only=True)
class RunResult(OpenJsonObject):
    """The result of a run that prunes tokens, or trains a dense model."""

    schema: int
    status: Status
    exit_code: int
    method: str
    task: str
    backbone: str
    seed: int
    hash: str
    command: str
    budget: Budget
    score: Score
    flops: Flops
    tokens_per_layer: tuple[Number, ...]
    mean_length: Number  # tokens
    speed: tuple[SpeedRow, ...]
    truncated: Mapping[str, Truncation] | None = None  # by split
    dropped: Mapping[str, int] | None = None  # rows, by reason
    noticed: Mapping[str, int] | None = None  # rows that may mislead, by reason
    unknown_share: Number | None = None  # of the training tokens
    precision: str | None = None
    execution: Executions
    bands: tuple[Band, ...] | None = None
    translation: Translation | None = None
    search: Search | None = None
    goal: LatencyGoal | None = None
    budgets: tuple[ServedBudget, ...] | None = None  # of a model that serves several
    seconds: Mapping[str, Number] | None = None  # by stage, and "total"

    @property
    def is_dense(self) -> bool:
        """Whether nothing was pruned, so that there is nothing to compare."""
        return is_dense(self.method)

    @property
    def labels_words(self) -> bool:
        """Whether each word has a label, so that what reads texts as a whole does not apply."""
        return any(cut.of_words is not None for cut in (self.truncated or {}).values())

    @property
    def gives_vectors(self) -> bool:
        """Whether each text has a vector, and no label."""
        return "cosine" in (self.score.pruned_all or {})


# -- runs that prune weights -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LanguageQuality(OpenJsonObject):
    """What a language model scores on text of its own domain and on open text."""

    open_perplexity: Number
    open_tokens: int
    domain_perplexity: Number
    domain_tokens: int
    choice_accuracy: Number | None = None
    choice_macro_f1: Number | None = None
    choice_rows: int | None = None
    rouge1: Number | None = None
    rouge2: Number | None = None
    rouge_l: Number | None = field(default=None, metadata={"key": "rougeL"})


@dataclass(frozen=True, kw_only=True)
class Sparsity(OpenJsonObject):
    """Removed weights as shares, and counts."""

    matrix_min: Number
    matrix_mean: Number
    matrix_max: Number
    of_prunable: Number
    of_model: Number
    removed: int
    prunable: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class CalibrationText(OpenJsonObject):
    """The samples that statistics were computed on, and where they come from."""

    file: str | None  # None = generated text
    seed: int
    samples: int
    tokens: int
    sha256: str
    overlap: int  # documents left out because they are also measured on
    duplicates: int
    empty: int | None = None


@dataclass(frozen=True, kw_only=True)
class SemiStructured(OpenJsonObject):
    """How many matrices torch's semi-structured format took, and why not all."""

    matrices: int
    converted: int
    why_not: str | None


@dataclass(frozen=True, kw_only=True)
class WeightRunResult(OpenJsonObject):
    """The result of a run that prunes the weights of a language model; its cost is per token."""

    schema: int
    prunes: str
    status: Status
    exit_code: int
    method: str
    variant: str  # the method in a few words
    task: str
    backbone: str
    seed: int
    hash: str
    command: str
    score: Score
    dense: LanguageQuality
    pruned: LanguageQuality
    budget: Budget
    flops: Flops
    tokens_per_layer: tuple[Number, ...]
    mean_length: Number
    speed: tuple[SpeedRow, ...]
    sparsity: Sparsity
    calibration: Mapping[str, CalibrationText]  # by stream
    two_of_four: bool
    reused: tuple[str, ...]  # files of statistics
    streamed: bool | None = None
    seconds: Mapping[str, Number]
    peak_memory_mib: Number
    semi_structured: SemiStructured | None = None


# -- either ------------------------------------------------------------------------------------------------------

AnyResult = RunResult | WeightRunResult


def parse_result(content: Mapping[str, Any]) -> AnyResult:
    """Read the content of a result.json as the result of the kind of run that wrote it.

    Raises:
        ValueError: it lacks a required key, or holds another value where an object belongs.
    """
    return (WeightRunResult if content.get("prunes") == "weights" else RunResult).from_json(content)
