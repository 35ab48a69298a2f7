"""`prunekit bench`: what pruning and packing are worth on this machine, beside other runtimes of the same weights.

    prunekit bench run=runs/bbc_news/top/minilm/3x/s1-1a2b3c4d       every engine that is installed
    prunekit bench model=./my_model data=tickets.csv                 your own dense model, quickly
    prunekit bench from=bench.json into=README.md                    the table again

Which settings there are says verbs/bench.yaml; how times are taken, runtime/protocol.py; what the engines are,
runtime/peers.py.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.config import ConfigError
from prunekit.exit_codes import DONE
from prunekit.files import atomic_write_text
from prunekit.report.speed import markdown, put_table
from prunekit.verbs import HELP, explanation, settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from prunekit.opened import OpenedRun
    from prunekit.runtime.peers import Peer, Runs
    from prunekit.runtime.protocol import Candidate, Encoded, Timed, Workload

SCHEMA = 2  # 1 set speed-ups beside the method's FLOPs ratio, whatever the engines executed
RUN_SIZES, MODEL_SIZES = (1, 8, 32, 128), (1, 32)
MODEL_EXAMPLES, MODEL_SECONDS, MODEL_TOKENS = 64, 35.0, 512
PEAK_SIDE = 1024  # of the square matrices whose product is the measured peak


def main(arguments: Sequence[str]) -> int:
    """Measures, writes raw timings and prints the table; or prints the table of stored ones. Returns 0.

    Raises:
        ConfigError: a setting, a run, a model or a file that cannot be.
    """
    if any(argument in HELP for argument in arguments):
        print(explanation("bench"), end="")
        return DONE
    given = settings("bench", arguments)
    if given["from"] is not None:
        return _again(given)
    if (given["run"] is None) == (given["model"] is None) or (given["model"] is None) != (given["data"] is None):
        raise ConfigError(
            "bench needs a run, or a model and its data.\n"
            "Allowed: run=<folder of a run>; model=<folder> data=<.csv, .jsonl or .parquet>; from=<file of timings>.\n"
            "As prunekit bench model=./my_model data=tickets.csv"
        )
    # all engines share this process's cache of compiled products, which each would have for itself elsewhere; torch
    # reads this when it first computes one
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
    run = None if given["run"] is None else _benched(given["run"])  # refused before anything slow is imported
    from prunekit.data.spec import DataError
    from prunekit.runtime.protocol import BenchError

    try:
        subject = _of_model(given) if run is None else _of_run(run, given)
        result = bench(subject, given)
    except ConfigError:
        raise
    except (DataError, BenchError) as error:
        raise ConfigError(str(error)) from error
    out = Path(given["out"]) if given["out"] is not None else subject.place / "bench.json"
    atomic_write_text(out, json.dumps(result, indent=1) + "\n")
    print(markdown(result))
    print(f"raw timings: {out}; the table again: prunekit bench from={out}")
    return DONE


def _again(given: Mapping[str, Any]) -> int:
    path = Path(given["from"])
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        table = markdown(result)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"from={path} is no file of timings ({type(error).__name__}: {error}).\n"
            "Allowed: what prunekit bench wrote, bench.json unless told.\nMeasure again, or give another file."
        ) from error
    if given["into"] is None:
        print(table)
        return DONE
    target = Path(given["into"])
    put_table(target, table, given["block"])
    print(target)
    return DONE


class Subject:
    """What is measured: a folder of weights, its texts, and what is known about them."""

    def __init__(
        self,
        folder: Path,
        model: PreTrainedModel,
        texts: Sequence[Encoded],
        *,
        place: Path,
        about: Mapping[str, Any],
        score: Callable[[Any], dict[str, float]] | None,
        padded_to: int,
    ) -> None:
        self.folder = folder  # of the weights that peers read
        self.model = model  # carries the traversal; its pruner is None where nothing is pruned
        self.texts = texts
        self.place = place  # where raw timings go unless told
        self.about = dict(about)
        self.score = score
        self.padded_to = padded_to
        self.quick = False

    @property
    def prunes(self) -> bool:
        """Whether there is a pruned model to compare with the dense one."""
        from prunekit.tokens.encoder import encoder_of

        return encoder_of(self.model).pruner is not None


def _benched(given: str) -> OpenedRun:
    """The run in a folder, if its texts are read one by one.

    Raises:
        ConfigError: it is none, is not finished, or finds answers or translates.
    """
    from prunekit.opened import open_run

    run = open_run(given)
    if run.spec.kind not in ("classification", "regression"):
        does = "finds answers in texts, which it reads in windows" if run.spec.kind == "span" else "translates"
        raise ConfigError(
            f"run={given} {does}; bench does not measure that.\n"
            "Allowed: a run of classification or regression.\nWhat the run measured itself is in its result.json."
        )
    return run


def _of_run(run: OpenedRun, given: Mapping[str, Any]) -> Subject:
    """A run's model and its validation set."""
    import torch

    from prunekit import pretrained
    from prunekit.data.metrics import build_metrics
    from prunekit.pipeline import quieten
    from prunekit.runtime.protocol import Encoded

    quieten()
    data = run.data()
    split = data.split("validation")
    chosen = _sample(len(split), given["examples"], given["seed"])
    texts = []
    for row in chosen:
        text = Encoded(split.row(row))
        if split.segments is not None:
            start, end = int(split.offsets[row]), int(split.offsets[row + 1])
            types = split.segments[start:end].tolist()
            text.types = types if any(types) else None
        texts.append(text)
    labels = split.labels[chosen]

    def score(logits: Any) -> dict[str, float]:
        metrics = build_metrics(run.spec, data.num_labels)
        metrics.update(torch.from_numpy(logits), labels)
        return {name: float(value) for name, value in metrics.compute().items()}

    about = {
        "title": f"{run.result['method']} on {run.result['task']}",
        "method": run.result["method"],
        "task": run.result["task"],
        "budget": run.cfg["budget"],
        "run": run.result["hash"],
        "metric": run.spec.score,
        "split": "validation",
    }
    return Subject(
        run.model, pretrained.load(run.model), texts,
        place=run.path, about=about, score=score, padded_to=run.spec.padded_length,
    )  # fmt: skip


def _of_model(given: Mapping[str, Any]) -> Subject:
    """A user's dense model and texts of a file; nothing is trained."""
    from transformers import AutoTokenizer

    from prunekit import pretrained
    from prunekit.data.encoding import load_tokenizer
    from prunekit.data.tables import read_table
    from prunekit.heads import CLASSIFIER, stored_head
    from prunekit.pipeline import quieten
    from prunekit.runtime.protocol import Encoded
    from prunekit.tokens.backbones import most_tokens
    from prunekit.tokens.encoder import install

    folder = Path(given["model"])
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"model={folder} is no model: it has no config.json.\n"
            "Allowed: a folder written by save_pretrained, with its tokenizer.\nGive such a folder."
        )
    if not Path(given["data"]).is_file():
        raise ConfigError(
            f"data={given['data']} does not exist (looked in {Path.cwd()}).\n"
            "Allowed: a .csv, .tsv, .jsonl or .parquet file.\nGive its path."
        )
    quieten()
    load_tokenizer(folder)  # says what is missing
    tokenizer = AutoTokenizer.from_pretrained(folder)
    table = read_table(Path(given["data"]))
    column = given["text"] or _text_column(table.columns)
    entries = [str(entry) for entry in table.column(column)]
    examples = MODEL_EXAMPLES if given["examples"] is None else given["examples"]
    chosen = _sample(len(entries), examples, given["seed"])
    if (folder / pretrained.SETTINGS).is_file():
        model = pretrained.load(folder)
    else:
        if stored_head(folder) is not CLASSIFIER:
            raise ConfigError(
                f"model={folder} has no classifier: its architecture is {stored_head(folder)}.\n"
                "Allowed: a fine-tuned ...ForSequenceClassification.\nGive the folder of a fine-tuned model."
            )
        model = install(pretrained.load_stock(folder), None, "pack")
    reads = min(MODEL_TOKENS, tokenizer.model_max_length, most_tokens(model))
    width = min(reads, given["max_length"] or reads)
    ids = tokenizer([entries[row] for row in chosen], truncation=True, max_length=width, verbose=False)["input_ids"]
    score = None
    if given["label"] is not None:
        score = _accuracy([table.column(given["label"])[row] for row in chosen], model.config)
    # who pads to a fixed length pads to what was asked for, or at least to the longest text
    widest = given["max_length"] or max(map(len, ids))
    subject = Subject(
        folder, model, [Encoded(row) for row in ids], place=Path.cwd(), score=score, padded_to=min(reads, widest),
        about={"title": f"{folder.name} on {Path(given['data']).name}", "method": "dense", "task": given["data"],
               "metric": "accuracy", "split": f"column {column}"},
    )  # fmt: skip
    subject.quick = True
    return subject


def _text_column(columns: Mapping[str, Sequence[Any]]) -> str:
    if "text" in columns:
        return "text"
    return max(columns, key=lambda name: sum(len(str(entry)) for entry in columns[name][:100]))


def _accuracy(labels: Sequence[Any], config: Any) -> Callable[[Any], dict[str, float]]:
    """Accuracy for labels that are the model's class names, or their numbers.

    Raises:
        ConfigError: a label that the model does not know.
    """
    known = {str(name): int(number) for name, number in (config.label2id or {}).items()}
    numbers = []
    for label in labels:
        place = known.get(str(label), int(str(label)) if str(label).isdigit() else -1)
        if not 0 <= place < config.num_labels:
            raise ConfigError(
                f"label {label!r} is none of the model's.\nAllowed: {', '.join(known)}, or 0 to "
                f"{config.num_labels - 1}.\nName another column with label=..., or leave it out."
            )
        numbers.append(place)

    def score(logits: Any) -> dict[str, float]:
        return {"accuracy": float((logits.argmax(-1) == numbers[: len(logits)]).mean())}

    return score


def _sample(count: int, limit: int | None, seed: int) -> list[int]:
    import numpy as np

    if limit is None or limit >= count:
        return list(range(count))
    return np.random.default_rng((seed, 2)).permutation(count)[:limit].tolist()


# -- measuring ---------------------------------------------------------------------------------------------


def bench(subject: Subject, given: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is measured, as it is stored.

    Raises:
        BenchError: a peer that does not exist, or data with fewer than two texts.
    """
    from prunekit.environment import environment, load_average
    from prunekit.runtime import peers
    from prunekit.runtime.protocol import BenchError, Workload

    if len(subject.texts) < 2:
        raise BenchError(f"{len(subject.texts)} texts are too few to compare anything.\nAllowed: 2 and more.")
    asked = given["peers"] or ("hf" if subject.quick else "all")
    taken, absent = peers.chosen(asked, given["dtypes"])
    sizes = given["batch_sizes"] or list(MODEL_SIZES if subject.quick else RUN_SIZES)
    seconds = given["seconds"] or (MODEL_SECONDS / len(sizes) if subject.quick else None)
    if subject.quick and given["examples"] is None:
        subject.texts = subject.texts[: _affordable(subject, seconds, candidates=4 + 2 * len(taken))]
    flops = Flops.of(subject)
    work = Workload(subject.texts, flops.needed, given["seed"], subject.score)
    around = environment()
    result: dict[str, Any] = {
        "schema": SCHEMA,
        **subject.about,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(around),
        "versions": package_versions(around["versions"]),
        "load_before": load_average(),
        "settings": {name: value for name, value in given.items() if name not in ("out", "from", "into", "block")},
        "workload": _about_texts(work, sizes, subject.padded_to),
        "flops_ratio": flops.ratio,
        "flops_ratio_executed": flops.executed_ratio,
        "absent": absent,
        "blocks": [],
    }
    plan = Plan(sizes, given["rounds"], seconds, given["dtypes"], given["attention"], given["warm"])
    for threads in [1, *([given["wall_threads"]] if given["wall_threads"] else [])]:
        result["blocks"].append(_block(subject, work, taken, result["absent"], threads, flops, plan))
    result["load_after"] = load_average()
    return result


@dataclass(frozen=True)
class Plan:
    """What is asked of a measurement, whatever the number of threads."""

    sizes: Sequence[int]  # of batches
    rounds: int
    seconds: float | int | None  # after which a batch size ends early
    dtypes: Sequence[str]
    attend_by: str  # backend of the packed engine
    warm: bool  # whether that is warmed up first


def _block(
    subject: Subject,
    work: Workload,
    taken: Sequence[Peer],
    absent: dict[str, str],
    threads: int,
    flops: Flops,
    plan: Plan,
) -> dict[str, Any]:
    """One number of threads: engines are made, then all batch sizes are timed."""
    from prunekit.progress import track
    from prunekit.runtime import protocol
    from prunekit.runtime.threads import threads as computing_with

    clock = "cpu" if threads == 1 else "wall"
    block: dict[str, Any] = {"threads": threads, "clock": clock, "engines": {}}
    with tempfile.TemporaryDirectory() as scratch, computing_with(threads):
        block["gemm_peak"] = {"before": {dtype: gemm_peak(dtype, clock) for dtype in plan.dtypes}}
        shop = Workshop(subject, work, threads, Path(scratch), flops, absent, block["engines"], plan)
        own = list(_own(shop, plan.dtypes))
        others = list(_peers(shop, taken))
        timed = []
        for size in plan.sizes:
            found = protocol.time_candidates(
                list(_candidates(own, others, size)),
                work,
                size,
                track(
                    protocol.rounds_within(plan.rounds, plan.seconds), f"batch {size}, {threads} thr", plan.rounds + 1
                ),
            )
            timed.append((size, found))
        block["gemm_peak"]["after"] = {dtype: gemm_peak(dtype, clock) for dtype in plan.dtypes}
    peaks = {dtype: _highest(when[dtype] for when in block["gemm_peak"].values()) for dtype in plan.dtypes}
    block["sizes"] = [_measured(found, work, size, clock, peaks) for size, found in timed]
    return block


def _measured(
    found: Sequence[Timed], work: Workload, size: int, clock: str, peaks: Mapping[str, Any]
) -> dict[str, Any]:
    from prunekit.runtime import protocol

    # Hugging Face's own model where it takes part, which knows nothing of ours
    trust = ("padded", "unpruned")
    reference = min(
        (timed for timed in found if timed.candidate.role in trust), key=lambda t: trust.index(t.candidate.role)
    )
    value = protocol.control(found, clock)
    return {
        "batch_size": size,
        "rounds": len(found[0].cpu) - 1,
        "control": value,
        "trusted": protocol.trusted(value),
        "candidates": [
            protocol.summary(timed, work, size, clock, peaks.get(timed.candidate.dtype))
            | protocol.quality(timed, work, reference.logits)
            for timed in found
        ],
        "ratios": protocol.comparisons(found, size, clock),
    }


@dataclass(frozen=True)
class Workshop:
    """Where engines are made to be timed: for whom and on how many threads, and where is noted what became of them."""

    subject: Subject
    work: Workload
    threads: int
    scratch: Path  # for files of graphs and conversions
    flops: Flops
    absent: dict[str, str]  # name -> why it could not be made
    engines: dict[str, Any]  # name -> what is known about it
    plan: Plan


def _own(shop: Workshop, dtypes: Sequence[str]) -> Iterator[Candidate]:
    """prunekit's own engines: packed, pruned and unpruned, with a second copy as the control; and the graph."""
    from prunekit.runtime.engine import PackedEngine
    from prunekit.runtime.protocol import Candidate

    for position, dtype in enumerate(dtypes):

        def packed(dtype: str = dtype) -> Runs:
            engine = PackedEngine(shop.subject.model, dtype=dtype, threads=shop.threads, attention=shop.plan.attend_by)
            return Packed(f"prunekit packed {dtype}", engine, prune=False)

        dense: Any = _built(shop, packed)
        if shop.plan.warm:
            dense.engine.warm()
        name = f"prunekit packed {dtype}"
        fused = dense.engine.fused
        shop.engines[name] |= {
            "linears": dense.engine.layers[0].output.backend,
            "attention": "torch" if fused is None else fused.name,
        }
        unpruned, pruned = shop.flops.packed
        yield Candidate(f"{name}, unpruned", dense, "unpruned", dtype, weight=unpruned)
        if position == 0:
            yield Candidate("control", dense, "control", dtype, weight=unpruned)
        if shop.subject.prunes:
            ours = Packed(name, dense.engine, prune=True)
            twin = f"{name}, unpruned"
            yield Candidate(f"{name}, pruned", ours, "pruned", dtype, weight=pruned, twin=twin)
        if dtype == "bf16" or shop.subject.quick:  # ONNX Runtime has no bf16 on a CPU
            continue
        yield from _graphs(shop, dtype)


def _graphs(shop: Workshop, dtype: str) -> Iterator[Candidate]:
    """The graph of one text, unpruned and pruned, at a precision."""
    from prunekit.runtime import onnx_engine
    from prunekit.runtime.extras import MissingPackage
    from prunekit.runtime.graph import NotExportable
    from prunekit.runtime.protocol import Candidate

    dense = f"prunekit onnx {dtype}, unpruned"
    for prune in (False, True) if shop.subject.prunes else (False,):
        name = f"prunekit onnx {dtype}, pruned" if prune else dense
        path = shop.scratch / name.replace(", ", "_").replace(" ", "_")
        try:
            inputs = onnx_engine.graph_inputs(shop.subject.folder)
            onnx_engine.write(shop.subject.model, path, inputs, int8=dtype == "int8", prune=prune)
            file = path / onnx_engine.FILES[dtype]

            def opened(file: Path = file, name: str = name) -> Runs:
                return onnx_engine.GraphEngine(onnx_engine.OnnxRuntime(file, shop.threads), name)

            engine = _built(shop, opened)
        except (MissingPackage, NotExportable) as error:
            shop.absent[name] = str(error).splitlines()[0]
            continue
        if prune:
            yield Candidate(name, engine, "pruned", dtype, weight=shop.flops.graph[1], twin=dense)
        else:
            yield Candidate(name, engine, "unpruned", dtype, weight=shop.flops.graph[0])


class Packed:
    """The packed engine as the protocol calls it."""

    def __init__(self, name: str, engine: Any, prune: bool) -> None:
        self.name = name
        self.engine = engine
        self.prune = prune

    def logits(self, batch: Sequence[Sequence[int]]) -> Any:
        """Logits of token ids; pairs of texts, which have token types, go in as a padded batch."""
        import torch

        if all(getattr(ids, "types", None) is None for ids in batch):
            return self.engine(list(batch), prune=self.prune).logits
        from prunekit.runtime.peers import Inputs

        given = Inputs(0, True).padded(batch)
        return self.engine({key: torch.from_numpy(array) for key, array in given.items()}, prune=self.prune).logits


def _peers(shop: Workshop, taken: Sequence[Peer]) -> Iterator[Candidate]:
    """Every peer that can run, and who is padded as papers pad; the others are noted in `absent`."""
    from prunekit.progress import say
    from prunekit.runtime.extras import version
    from prunekit.runtime.peers import Absent, eager_padded
    from prunekit.runtime.protocol import Candidate

    subject = shop.subject
    for peer in taken:
        try:
            peer.prepare(subject.folder, shop.scratch)
            engine = _built(shop, lambda peer=peer: peer.build(subject.folder, shop.threads, shop.scratch))  # type: ignore[misc]
        except Exception as error:  # somebody else's runtime must not end the measurement
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            shop.absent[peer.name] = reason if isinstance(error, Absent) else f"fails here: {reason[:120]}"
            say(f"absent     {peer.name}: {shop.absent[peer.name]}")
            continue
        shop.engines[peer.name]["version"] = f"{peer.package} {version(peer.package)}"
        yield Candidate(peer.name, engine, "peer", peer.dtype, padded=peer.padded)
    if taken:
        eager = _built(shop, lambda: eager_padded(subject.folder, shop.threads, subject.padded_to))
        yield Candidate(eager.name, eager, "padded", "fp32", padded=True)


def _candidates(own: Sequence[Candidate], others: Sequence[Candidate], size: int) -> Iterator[Candidate]:
    """Who runs at a batch size: graphs of one text at batch 1 alone, padded peers also on batches of like lengths."""
    from dataclasses import replace

    for candidate in own:
        if size == 1 or not candidate.name.startswith("prunekit onnx"):
            yield candidate
    for candidate in others:
        yield candidate
        if size > 1 and candidate.padded and candidate.role == "peer":
            yield replace(candidate, name=f"{candidate.name}, sorted", order="sorted")


def _built(shop: Workshop, make: Callable[[], Runs]) -> Runs:
    """An engine, and how much memory making it and its largest batch took at most beside what was there before."""
    longest = sorted(shop.work.texts, key=len)[-32:]
    with _memory() as peak:
        engine = make()
        engine.logits(longest)
    shop.engines[engine.name] = {"peak_mb": peak[0]}
    return engine


@contextmanager
def _memory() -> Iterator[list[float | None]]:
    """The rise of this process's resident memory at its highest, in MB, put in the list at the end; None where the
    system cannot say.
    """
    from prunekit.runtime.memory import give_back

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

    from prunekit.runtime.linears import QuantisedLinear, choose, dtype_of
    from prunekit.runtime.protocol import clocks

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


@dataclass(frozen=True)
class Flops:
    """Of all texts, whose padding costs none: what the dense model needs, and which share of it is executed.

    Our engines compute of the last layer only what the head reads, pruned or not: that is no merit of pruning, so
    what can be realised of a method is the ratio of what the two execute. The packed engine computes keys and values
    of all tokens and the rest of [CLS], a graph all but the feed-forward half of all tokens.
    """

    needed: float
    method: float  # share that the pruned model is left with, as the method's budget counts
    packed: tuple[float, float]  # shares that our engines execute, unpruned and pruned
    graph: tuple[float, float]

    @property
    def ratio(self) -> float:
        """Times fewer FLOPs by the method."""
        return 1 / self.method

    @property
    def executed_ratio(self) -> float:
        """Times fewer FLOPs of the packed engine than of itself unpruned."""
        return self.packed[0] / self.packed[1]

    @classmethod
    def of(cls, subject: Subject) -> Flops:
        """Counted on the texts; a pruned model decides on each."""
        import torch

        from prunekit.cost import Shape, dense_macs, encoder_macs
        from prunekit.evaluation import predict
        from prunekit.runtime.engine import first_is_enough
        from prunekit.runtime.peers import Inputs
        from prunekit.tokens.state import Trace

        shape, alone = Shape.from_config(subject.model.config), first_is_enough(subject.model)
        inputs = Inputs.of(subject.model.config)
        needed, method = 0.0, 0.0
        shares = torch.zeros(2, 2, dtype=torch.float64)  # packed and graph, unpruned and pruned
        ordered = sorted(subject.texts, key=len)
        for start in range(0, len(ordered), 32):
            given = ordered[start : start + 32]
            lengths = torch.tensor([len(text) for text in given])
            whole = lengths.expand(shape.layers, -1).float()
            needed += float(dense_macs(shape, lengths).sum())
            counts = [(whole, whole, 0.0)]
            if subject.prunes:
                batch = {key: torch.from_numpy(array) for key, array in inputs.padded(given).items()}
                _, trace = predict(subject.model, batch, "pack")
                method += float(encoder_macs(shape, trace.tokens_in, trace.tokens_out).sum() + trace.scorer_macs.sum())
                # the packed engine takes no decision in a last layer that it computes for [CLS] alone
                decided = Trace(layers=trace.layers[:-1] if alone else trace.layers)
                counts.append((trace.tokens_in, trace.tokens_out, float(decided.scorer_macs.sum())))
            for pruned, (tokens_in, tokens_out, scoring) in enumerate(counts):
                shares[0, pruned] += encoder_macs(shape, tokens_in, tokens_out, first_only=alone).sum() + scoring
                read = torch.cat([tokens_out[:-1], torch.ones_like(tokens_out[-1:])]) if alone else tokens_out
                shares[1, pruned] += encoder_macs(shape, tokens_in, read).sum() + scoring
        if not subject.prunes:
            method, shares[:, 1] = needed, shares[:, 0]
        packed, graph = (shares / needed).tolist()
        return cls(2 * needed, method / needed, (packed[0], packed[1]), (graph[0], graph[1]))


def _affordable(subject: Subject, seconds: float | int | None, candidates: int) -> int:
    """How many texts leave time for three rounds and a first pass, judged by one text of middle length."""
    import torch

    from prunekit.runtime.protocol import LEAST_ROUNDS, clocks
    from prunekit.runtime.threads import threads as computing_with

    middle = sorted(subject.texts, key=len)[len(subject.texts) // 2]
    ids = torch.tensor([middle])
    with torch.inference_mode(), computing_with(1):
        subject.model(input_ids=ids)
        start = clocks()[0]  # of the process: who else is there must not decide how much is read
        subject.model(input_ids=ids)
        spent = clocks()[0] - start
    passes = candidates * (LEAST_ROUNDS + 1)
    return max(2, min(len(subject.texts), int((seconds or MODEL_SECONDS) / (passes * spent))))


def _about_texts(work: Workload, sizes: Sequence[int], padded_to: int) -> dict[str, Any]:
    """Lengths, and how many tokens padding makes of each real one."""
    import numpy as np

    lengths = np.array([len(text) for text in work.texts])
    orders: tuple[Any, ...] = ("random", "sorted")
    waste = {
        order: {
            str(size): float(
                sum(len(batch) * max(lengths[place] for place in batch) for batch in work.batches(size, order))
                / lengths.sum()
            )
            for size in sizes
        }
        for order in orders
    }
    return {
        "texts": len(lengths),
        "tokens": int(lengths.sum()),
        "mean": float(lengths.mean()),
        "p90": float(np.quantile(lengths, 0.9)),
        "max": int(lengths.max()),
        "padded_to": padded_to,
        "computed_per_real_token": {**waste, "padded_to": float(np.maximum(lengths, padded_to).sum() / lengths.sum())},
    }


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
