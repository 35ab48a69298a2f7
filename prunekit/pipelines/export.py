"""Export a run's pruned model for another runtime, and measure how far what was written is from the model itself.

The comparison runs over the run's validation set; `parity.json` beside the files holds its numbers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.bench import parity
from prunekit.bench.result import ExportedFile, ExportReport, Parity
from prunekit.config.errors import ConfigError, first_line
from prunekit.console import say, silence_libraries, track
from prunekit.data.encoding import Batch
from prunekit.data.loading import generator_of
from prunekit.data.module import TokenPruningDataModule
from prunekit.evaluation.metrics import build_metrics
from prunekit.files import atomic_write_text
from prunekit.models import loading, pretrained
from prunekit.models.answers import answers_of
from prunekit.runs.finished import FinishedRun
from prunekit.runtime import onnx_engine
from prunekit.runtime.engine import PackedEngine
from prunekit.runtime.extras import need
from prunekit.tokens.cutting import cut
from prunekit.tokens.encoder import encoder_of, install
from prunekit.tokens.families.registry import family_of

PARITY = "parity.json"
BATCH = 16  # texts of the reference at a time; the graphs read one by one


@dataclass(frozen=True)
class ExportOptions:
    """What is written, as cli/export.yaml explains it."""

    format: str = "onnx"
    int8: bool = True
    prune: bool = True
    budget: str | None = None
    rows: int | None = None
    out: str | Path | None = None
    data: str | Path | None = None


@dataclass(frozen=True)
class Variant:
    """A file that was written: its name in the report, whether all of it computes in float32, and how to open it."""

    name: str
    exact: bool
    path: Path
    open: Callable[[], parity.Runtime]


def export(run: FinishedRun, options: ExportOptions) -> ExportReport:
    """Write the files of a run and compare each with the model; return and store the report.

    Raises:
        MissingPackageError: the chosen format needs a package that is not installed.
        NotExportableError: the method has a decision that cannot be written as a graph.
        ConfigError: the data is no longer where it was.
    """
    silence_libraries()
    _check_packages(options)
    model = pretrained.load_hf(run.model, execution="mask")
    _choose_budget(model, options)
    folder = _folder(run, options)
    data = _read_data(run, options)  # before anything is written: it may no longer be where it was
    variants = list(WRITERS[options.format](run, model, folder, options))
    files = {} if data is None else _compare(run, model, data, variants, options)
    packed = None if data is None else _compare_packed(model, data, options)
    report = ExportReport(
        format=options.format,
        run=run.result.hash,
        method=run.result.method,
        task=run.result.task,
        prune=options.prune,
        split="validation",
        metric=run.spec.score,
        folder=str(folder),
        variants=files,
        faithful=all(
            map(parity.is_faithful, [*(file for file in files.values() if file.exact), *([packed] if packed else [])])
        ),
        packed=packed,
    )
    atomic_write_text(folder / PARITY, json.dumps(report.to_json(), indent=2) + "\n")
    return report


def _choose_budget(model: PreTrainedModel, options: ExportOptions) -> None:
    """Give the model the pruner of the budget that is exported, in place of the default's.

    Raises:
        ConfigError: it serves no such budget, or the whole table is copied.
    """
    encoder, budget = encoder_of(model), options.budget
    if budget is None:
        return
    if options.format == "hf":
        raise ConfigError(
            f"format=hf copies the model with all of its budgets, not budget={budget} alone.\n"
            "Allowed: budget with onnx and openvino.\nLeave it out; model(..., budget=...) chooses."
        )
    if encoder.pruner is None:
        raise ConfigError(f"budget={budget}, but this model drops no tokens.\nAllowed: no budget.\nLeave it out.")
    try:
        encoder.pruner = encoder.pruner.at(budget)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _read_data(run: FinishedRun, options: ExportOptions) -> TokenPruningDataModule | None:
    """Return the run's data; None where what is written is a copy, which needs no comparison, and the data is gone."""
    try:
        data: TokenPruningDataModule = run.data(options.data)
    except ConfigError as error:
        if options.format != "hf" or options.data is not None:
            raise
        say(f"not compared with the model: {first_line(error)}")
        return None
    return data


def _compare(
    run: FinishedRun,
    model: PreTrainedModel,
    data: TokenPruningDataModule,
    variants: Iterable[Variant],
    options: ExportOptions,
) -> dict[str, ExportedFile]:
    """Compare each file that was written with the model."""
    batches = _batches(model, data, options)
    reference = parity.model_runtime(model, prune=options.prune)
    has_labels = run.spec.kind.labels_texts and not run.spec.kind.asks_teacher
    metrics = partial(build_metrics, run.spec, data.label_names) if has_labels else None
    files = {}
    for variant in variants:
        rounds = track(batches, f"parity {variant.name}", len(batches))
        files[variant.name] = ExportedFile(
            **vars(parity.compare(reference, variant.open(), rounds, answers_of(model.config), metrics)),
            exact=variant.exact,
            file=variant.path.name,
            bytes=variant.path.stat().st_size,
        )
    return files


def _compare_packed(model: PreTrainedModel, data: TokenPruningDataModule, options: ExportOptions) -> Parity | None:
    """Compare the packed engine, which servers use, with the model; None for families that it cannot read."""
    if family_of(model).parts is None:
        return None
    batches = _batches(model, data, options)
    engine, reference = PackedEngine(model, cls_last=False), parity.model_runtime(model, prune=options.prune)
    rounds = track(batches, "parity packed", len(batches))
    return parity.compare(
        reference, parity.packed_runtime(engine, prune=options.prune), rounds, answers_of(model.config)
    )


def _batches(model: PreTrainedModel, data: TokenPruningDataModule, options: ExportOptions) -> list[Batch]:
    """Return the rows of the validation split that are compared, as the model reads them."""
    split = data.split("validation")
    return [cut(split.batch(rows), encoder_of(model).longest) for rows in _batches_of_rows(len(split), options.rows)]


def _check_packages(options: ExportOptions) -> None:
    """Check that every package is installed, before anything is loaded."""
    if options.format in ("onnx", "openvino"):
        need("onnxruntime", f"format={options.format}")
    if options.format == "openvino":
        need("openvino", "format=openvino")
    if options.format != "hf" and options.int8:
        need("onnx", "int8=true")


def _folder(run: FinishedRun, options: ExportOptions) -> Path:
    if options.out is not None:
        return Path(options.out)
    dense = "" if options.prune else "_dense"  # what loads as pruned must be pruned
    dense += f"_{options.budget}" if options.budget else ""
    return run.path / f"hf{dense}" if options.format == "hf" else run.model / f"{options.format}{dense}"


def _batches_of_rows(count: int, limit: int | None) -> Iterable[Int[Tensor, "rows"]]:
    """Return row numbers in batches: all, or the first `limit` of a fixed order."""
    chosen = torch.arange(count)
    if limit is not None and limit < count:
        chosen = torch.randperm(count, generator=generator_of("parity"))[:limit].sort().values
    return chosen.split(BATCH)


# -- the formats -------------------------------------------------------------------------------------------


def _write_graphs(run: FinishedRun, model: PreTrainedModel, folder: Path, options: ExportOptions) -> list[Path]:
    """Write the graph of one text in float32, and in int8 if that is asked for; return the paths."""
    inputs = onnx_engine.graph_inputs(run.model, protected=run.spec.kind.protects(run.spec))
    paths = onnx_engine.write(model, folder, inputs, int8=options.int8, prune=options.prune)
    onnx_engine.note_origin(folder, run.model, {"prune": options.prune, "inputs": list(inputs)})
    return paths


def write_onnx(run: FinishedRun, model: PreTrainedModel, folder: Path, options: ExportOptions) -> Iterator[Variant]:
    """Write the graphs for ONNX Runtime."""

    def open_graph(path: Path, name: str) -> parity.Runtime:
        runtime = onnx_engine.OnnxRuntime(path, torch.get_num_threads())
        return parity.engine_runtime(onnx_engine.GraphEngine(runtime, name))

    for name, path in zip(("onnx fp32", "onnx int8"), _write_graphs(run, model, folder, options), strict=False):
        yield Variant(name, name == "onnx fp32", path, partial(open_graph, path, name))


def write_openvino(run: FinishedRun, model: PreTrainedModel, folder: Path, options: ExportOptions) -> Iterator[Variant]:
    """Write the graphs as OpenVINO's IR."""
    ov = need("openvino", "format=openvino")

    def open_graph(path: Path, name: str) -> parity.Runtime:
        return parity.engine_runtime(onnx_engine.GraphEngine(onnx_engine.OpenVino(path), name))

    for graph, dtype in zip(_write_graphs(run, model, folder, options), ("fp32", "int8"), strict=False):
        path, name = folder / f"openvino_{graph.stem}.xml", f"openvino {dtype}"
        ov.save_model(ov.convert_model(str(graph)), str(path), compress_to_fp16=False)
        graph.unlink()  # the IR holds all of it
        yield Variant(name, dtype == "fp32", path.with_suffix(".bin"), partial(open_graph, path, name))


def write_hf(run: FinishedRun, model: PreTrainedModel, folder: Path, options: ExportOptions) -> Iterator[Variant]:
    """Copy what transformers and prunekit read, with a note how to load it."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(run.model.iterdir()):
        if (
            file.is_file()
            and not file.name.startswith(".")
            and (options.prune or not file.name.startswith("prunekit."))
        ):
            shutil.copy2(file, folder / file.name)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    note = _note(type(model).__name__, options.prune)
    atomic_write_text(card, f"{text.rstrip()}\n\n{note}".lstrip())

    def open_copy() -> parity.Runtime:
        if options.prune:
            return parity.model_runtime(pretrained.load_hf(folder, execution="mask"))
        return parity.model_runtime(install(loading.load_stock(folder), None, "dense"), prune=False)

    yield Variant("hf pruned" if options.prune else "hf dense", True, folder / "model.safetensors", open_copy)


# format -> what writes it
Writer = Callable[[FinishedRun, PreTrainedModel, Path, ExportOptions], Iterator[Variant]]
WRITERS: dict[str, Writer] = {"onnx": write_onnx, "openvino": write_openvino, "hf": write_hf}


def _note(architecture: str, pruned: bool) -> str:
    auto = architecture[architecture.index("For") :]
    dense = f"""```python
from transformers import AutoModel{auto}

model = AutoModel{auto}.from_pretrained("this/folder")   # dense: every token is kept
```
"""
    if not pruned:
        return f"## How to load it\n\n{dense}"
    return f"""## How to load it pruned

```python
import prunekit   # pip install prunekit

model = prunekit.load("this/folder")   # tokens are dropped layer by layer, as in prunekit.json
```

Without prunekit the same files are an ordinary checkpoint:

{dense}"""


# -- the report --------------------------------------------------------------------------------------------


def format_score(file: ExportedFile, of: str, metric: str) -> str:
    """Return a file's score in hundredths, of the `export` or of the `model`; "-" if nothing is scored."""
    return "-" if file.score is None else f"{100 * getattr(file.score, of)[metric]:.2f}"


def format_report(report: ExportReport) -> str:
    """Return the report as it is printed: a line per file, and what the numbers mean."""
    head = ("", "rows", "labels agree", "same tokens kept", "largest logit difference", report.metric, "model's", "MB")
    rows = [head]
    for name, file in report.variants.items():
        rows.append(
            (
                name,
                str(file.rows),
                f"{100 * file.labels_agree:.2f} %",
                f"{100 * file.tokens_equal:.2f} %",
                f"{file.max_difference:.1e}",
                format_score(file, "export", report.metric),
                format_score(file, "model", report.metric),
                f"{file.bytes / 1e6:.1f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [f"{report.method} on {report.task}, {report.split}: the model itself against {report.folder}"]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for name, file in report.variants.items():
        if file.exact and file.kept_differ:
            lines.append(
                f"{name}: {file.kept_differ} texts keep other tokens, by scores that tie up to rounding; "
                f"on the others logits differ by at most {file.max_difference_same_tokens:.1e}"
            )
        if not file.exact:
            lines.append(f"{name}: rounds weights and activations; look at the labels, not at the logits")
    if report.packed is not None:
        lines.append(
            f"the packed engine: {100 * report.packed.labels_agree:.2f} % of labels agree, "
            f"{100 * report.packed.tokens_equal:.2f} % the same tokens kept, logits differ by at most "
            f"{report.packed.max_difference:.1e}"
        )
    if not report.faithful:
        lines.append("NOT the same function: do not use these files; please report the run's method and this table")
    return "\n".join(lines)
