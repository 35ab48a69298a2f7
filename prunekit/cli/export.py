"""`prunekit export`: a run's pruned model for another runtime, and how far that is from the model itself.

    prunekit export run=runs/bbc_news/top/minilm/3x/s1-1a2b3c4d                  ONNX: model/onnx/model.onnx
    prunekit export run=runs/... format=openvino                                IR: model/openvino/openvino_model.xml
    prunekit export run=runs/... format=hf out=./upload                         weights and tokenizer, with a note

The comparison runs over the run's validation set; `parity.json` beside what was written holds its numbers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.cli.settings import asks_for_help, parse_settings, print_help
from prunekit.config.errors import DONE, MISSED, ConfigError
from prunekit.files import atomic_write_text
from prunekit.runs.finished import FinishedRun, open_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from prunekit.bench.parity import Runtime


PARITY = "parity.json"
BATCH = 16  # texts of the reference at a time; the graphs read one by one


def main(arguments: Sequence[str]) -> int:
    """Exports and compares; returns 0, or 3 where a float32 file is not the same function as the model.

    Raises:
        ConfigError: a setting, a run or a package is not there, or the method cannot be written as a graph.
    """
    if asks_for_help(arguments):
        return print_help("export")
    given = parse_settings("export", arguments)
    run = open_run(given["run"])
    from prunekit.data.spec import DataError
    from prunekit.runtime.extras import MissingPackageError
    from prunekit.runtime.onnx_graph import NotExportableError

    try:
        report = export(run, given)
    except (MissingPackageError, NotExportableError, DataError) as error:
        raise ConfigError(str(error)) from error
    print(shown_report(report))
    return DONE if report["faithful"] else MISSED


@dataclass(frozen=True)
class Variant:
    """A file that was written: its name in the report, whether it computes in float32 throughout, and how it runs."""

    name: str
    exact: bool
    path: Path
    open: Callable[[], Runtime]


def export(run: FinishedRun, given: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the files that `given` asks for (the settings of verbs/export.yaml), and returns the report.

    Raises:
        MissingPackageError: of the chosen format.
        NotExportableError: the method has a decision that cannot be written as a graph.
    """
    from prunekit.bench import parity
    from prunekit.console import silence_libraries, track
    from prunekit.evaluation.metrics import build_metrics
    from prunekit.models import pretrained

    silence_libraries()
    _check_packages(given)
    model = pretrained.load_hf(run.model, execution="mask")
    folder = _folder(run, given)
    data = run.data()  # before anything is written: it may no longer be where it was
    variants = list({"onnx": _onnx, "openvino": _openvino, "hf": _hf}[given["format"]](run, model, folder, given))
    batches = [data.split("validation").batch(rows) for rows in _rows(len(data.split("validation")), given["rows"])]
    one = parity.reference(model, prune=given["prune"])
    metrics = None if run.spec.kind == "span" else partial(build_metrics, run.spec, data.num_labels)
    found: dict[str, dict[str, Any]] = {}
    for variant in variants:
        other = variant.open()
        numbers = parity.compare(one, other, track(batches, f"parity {variant.name}", len(batches)), metrics)
        found[variant.name] = {
            **numbers,
            "exact": variant.exact,
            "file": variant.path.name,
            "bytes": variant.path.stat().st_size,
        }
    report = {
        "format": given["format"],
        "run": run.result["hash"],
        "method": run.result["method"],
        "task": run.result["task"],
        "prune": given["prune"],
        "split": "validation",
        "metric": run.spec.score,
        "folder": str(folder),
        "variants": found,
        "faithful": all(parity.faithful(numbers) for numbers in found.values() if numbers["exact"]),
    }
    atomic_write_text(folder / PARITY, json.dumps(report, indent=2) + "\n")
    return report


def _check_packages(given: Mapping[str, Any]) -> None:
    """Says what is missing before anything is loaded."""
    from prunekit.runtime.extras import need

    if given["format"] in ("onnx", "openvino"):
        need("onnxruntime", f"format={given['format']}")
    if given["format"] == "openvino":
        need("openvino", "format=openvino")
    if given["format"] != "hf" and given["int8"]:
        need("onnx", "int8=true")


def _folder(run: FinishedRun, given: Mapping[str, Any]) -> Path:
    if given["out"] is not None:
        return Path(given["out"])
    dense = "" if given["prune"] else "_dense"  # what loads as pruned must be pruned
    return run.path / f"hf{dense}" if given["format"] == "hf" else run.model / f"{given['format']}{dense}"


def _rows(count: int, limit: int | None) -> Iterator[Any]:
    """Row numbers in batches; the first `limit` of a fixed order."""
    import torch

    from prunekit.data.loading import generator_of

    chosen = torch.arange(count)
    if limit is not None and limit < count:
        chosen = torch.randperm(count, generator=generator_of("parity"))[:limit].sort().values
    yield from chosen.split(BATCH)


def _onnx(run: FinishedRun, model: PreTrainedModel, folder: Path, given: Mapping[str, Any]) -> Iterator[Variant]:
    import torch

    from prunekit.bench.parity import engine
    from prunekit.runtime import onnx_engine as onnx

    inputs = onnx.graph_inputs(run.model, protected=_protects(run))
    paths = onnx.write(model, folder, inputs, int8=given["int8"], prune=given["prune"])
    onnx.note_origin(folder, run.model, {"prune": given["prune"], "inputs": list(inputs)})
    for name, path in zip(("onnx fp32", "onnx int8"), paths, strict=False):

        def opened(path: Path = path, name: str = name) -> Runtime:
            return engine(onnx.GraphEngine(onnx.OnnxRuntime(path, torch.get_num_threads()), name))

        yield Variant(name, name == "onnx fp32", path, opened)


def _openvino(run: FinishedRun, model: PreTrainedModel, folder: Path, given: Mapping[str, Any]) -> Iterator[Variant]:
    from prunekit.bench.parity import engine
    from prunekit.runtime import onnx_engine as onnx
    from prunekit.runtime.extras import need

    ov = need("openvino", "format=openvino")
    inputs = onnx.graph_inputs(run.model, protected=_protects(run))
    graphs = onnx.write(model, folder, inputs, int8=given["int8"], prune=given["prune"])
    onnx.note_origin(folder, run.model, {"prune": given["prune"], "inputs": list(inputs)})
    for graph, dtype in zip(graphs, ("fp32", "int8"), strict=False):
        path = folder / f"openvino_{graph.stem}.xml"
        ov.save_model(ov.convert_model(str(graph)), str(path), compress_to_fp16=False)
        graph.unlink()  # the IR holds all of it
        name = f"openvino {dtype}"

        def opened(path: Path = path, name: str = name) -> Runtime:
            return engine(onnx.GraphEngine(onnx.OpenVino(path), name))

        yield Variant(name, dtype == "fp32", path.with_suffix(".bin"), opened)


def _hf(run: FinishedRun, model: PreTrainedModel, folder: Path, given: Mapping[str, Any]) -> Iterator[Variant]:
    """Copies what transformers and prunekit read, and holds the copy to the run's model."""
    from prunekit.bench.parity import reference
    from prunekit.models import loading, pretrained

    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(run.model.iterdir()):
        if file.is_file() and (given["prune"] or not file.name.startswith("prunekit.")):
            shutil.copy2(file, folder / file.name)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    atomic_write_text(card, f"{text.rstrip()}\n\n{_note(type(model).__name__, given['prune'])}".lstrip())
    path = folder / "model.safetensors"
    if given["prune"]:
        yield Variant("hf pruned", True, path, lambda: reference(pretrained.load_hf(folder, execution="mask")))
        return
    from prunekit.tokens.encoder import install

    yield Variant(
        "hf dense", True, path, lambda: reference(install(loading.load_stock(folder), None, "dense"), prune=False)
    )


def _note(architecture: str, pruned: bool) -> str:
    auto = architecture[architecture.index("For") :]
    dense = f"""```python
from transformers import AutoModel{auto}

model = AutoModel{auto}.from_pretrained("this/folder")   # dense: every token stays
```
"""
    if not pruned:
        return f"## How to load it\n\n{dense}"
    return f"""## How to load it pruned

```python
import prunekit   # pip install prunekit

model = prunekit.load("this/folder")   # tokens leave layer by layer, as in prunekit.json
```

Without prunekit the same files are an ordinary checkpoint:

{dense}"""


def _protects(run: FinishedRun) -> bool:
    return run.spec.kind == "span" and run.spec.protect_question


def score_of(found: Mapping[str, Any], who: str, metric: str) -> str:
    """A variant's score in hundredths as text, of the `export` or of the `model`; "-" where nothing is scored."""
    return f"{100 * found['score'][who][metric]:.2f}" if "score" in found else "-"


def shown_report(report: Mapping[str, Any]) -> str:
    """The report as it is printed: a line per file, and what it means."""
    lines = [f"{report['method']} on {report['task']}, {report['split']}: the model itself against {report['folder']}"]
    metric = report["metric"]
    head = ("", "rows", "labels agree", "same tokens stay", "largest logit difference", metric, "model's", "MB")
    rows = [head]
    for name, found in report["variants"].items():
        rows.append(
            (
                name,
                str(found["rows"]),
                f"{100 * found['labels_agree']:.2f} %",
                f"{100 * found['tokens_equal']:.2f} %",
                f"{found['max_difference']:.1e}",
                *(score_of(found, who, metric) for who in ("export", "model")),
                f"{found['bytes'] / 1e6:.1f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for name, found in report["variants"].items():
        if found["exact"] and found["kept_differ"]:
            lines.append(
                f"{name}: {found['kept_differ']} texts keep other tokens, by scores that tie up to rounding; "
                f"on the others logits differ by at most {found['max_difference_same_tokens']:.1e}"
            )
        if not found["exact"]:
            lines.append(f"{name}: rounds weights and activations; look at the labels, not at the logits")
    if not report["faithful"]:
        lines.append("NOT the same function: do not use these files; please report the run's method and this table")
    return "\n".join(lines)
