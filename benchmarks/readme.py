"""Writes the tables of the README and of the documentation from committed results.

./run python train.py force=true
./run python benchmarks/readme.py run=runs/bbc_news/top/minilm/3x/s1-<hash>  # takes over the main job's result too
./run prunekit table runs save=benchmarks/results/controls.json           # takes over a sweep's runs
./run python benchmarks/readme.py                                         # writes all tables from what is committed
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from prunekit.bench.result import BenchResult
from prunekit.bench.table import markdown as of_engines
from prunekit.bench.table import replace_block
from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script
from prunekit.config.errors import DONE
from prunekit.report.formats import markdown as over_runs
from prunekit.report.rows import collect, select
from prunekit.report.table import build, default_rows
from prunekit.results.summary import markdown
from prunekit.results.words import format_score, format_significant
from prunekit.runs.result import Flops, RunResult, Score, Translation

ROOT = Path(__file__).parents[1]
SETTINGS = Path(__file__).with_suffix(".yaml")
RESULTS = ROOT / "benchmarks" / "results"
MAIN_JOB = RESULTS / "main_job.json"
# as the page that helps to choose calls an engine -> as `prunekit bench` does
ENGINES = {
    "Hugging Face, fp32": "hf sdpa fp32",
    "`packed`, unpruned": "prunekit packed fp32, unpruned",
    "`packed`, 4x": "prunekit packed fp32, pruned",
    "`onnx`, unpruned": "prunekit onnx fp32, unpruned",
    "`onnx`, 4x": "prunekit onnx fp32, pruned",
    "`packed` int8, unpruned": "prunekit packed int8, unpruned",
    "`packed` int8, 4x": "prunekit packed int8, pruned",
    "`onnx` int8, unpruned": "prunekit onnx int8, unpruned",
    "`onnx` int8, 4x": "prunekit onnx int8, pruned",
}


def main_job() -> str:
    """Return the main job's own table, and where it was measured."""
    content = json.loads(MAIN_JOB.read_text())
    hardware = content.get("hardware")
    return markdown(RunResult.from_json(content)) + (f"\nMeasured on {hardware}.\n" if hardware else "")


def headline() -> str:
    """Return what the main job gained and lost, as one small table."""
    content = json.loads(MAIN_JOB.read_text())
    result = RunResult.from_json(content)
    score, rows = result.score, []
    for speed in result.speed:
        padded, packed, pruned = (
            format_significant(ms / speed.batch_size)
            for ms in (speed.dense_padded_ms, speed.dense_packed_ms, speed.pruned_packed_ms)
        )
        what = "one at a time" if speed.batch_size == 1 else f"in batches of {speed.batch_size}"
        rows.append(f"| ms per text, {what} | {padded} | {packed} | {pruned} ({speed.speedup_vs_packed:.2f}x faster) |")
    before, after = format_score(score.dense), format_score(score.pruned)
    length = f"{result.mean_length:.0f} tokens"
    lines = [
        f"| {result.task}, {score.rows} {score.split} texts, {length} | dense, padded | dense, packed | "
        f"{result.method}, {result.flops.flops_vs_unpadded:.2f}x fewer FLOPs |",
        "|---|---:|---:|---:|",
        f"| {score.metric} | {before} | {before} | {after} ({100 * score.pruned / score.dense:.1f} % of dense) |",
        *rows,
    ]
    clock = f"CPU time on {result.speed[0].threads} thread; {content['hardware']}"
    return "\n".join([*lines, "", f"Packed = without padding, the fair comparison. {clock}."]) + "\n"


def own_model() -> str:
    """Return what `prunekit bench` measured of a dense model."""
    return of_engines(BenchResult.from_json(json.loads((RESULTS / "own_model.json").read_text())))


def engines() -> str:
    """Return milliseconds per text of engines on short, middle and long texts, one at a time and in batches."""
    results = [
        BenchResult.from_json(json.loads((RESULTS / f"goals_{name}.json").read_text()))
        for name in ("sst2_4x", "mrpc_4x", "bbc_news_4x")
    ]
    names = [f"{result.task}, {result.workload.mean:.0f} tokens" for result in results]
    head = [f"{name}, {size}" for name in names for size in ("batch 1", "batch 32")]
    sizes = [
        next(
            size for block in result.blocks if block.clock == "cpu" for size in block.sizes if size.batch_size == batch
        )
        for result in results
        for batch in (1, 32)
    ]
    lines = [f"| ms per text | {' | '.join(head)} |", "|---|" + "---:|" * len(head)]
    for shown, name in ENGINES.items():
        found = [[row for row in size.candidates if row.name == name and row.order == "random"] for size in sizes]
        cells = [format_significant(row[0].ms / row[0].batch_size) if row else "-" for row in found]
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    loud = [name for name, size in zip(head, sizes, strict=True) if not size.trusted]
    note = (
        "CPU time on 1 thread, MiniLM; - was not measured."
        + f" The machine was not quiet at: {'; '.join(loud)}." * bool(loud)
    )
    machine = results[0]
    return (
        "\n".join([*lines, "", f"{note} {machine.hardware.cpus} cores of {machine.hardware.cpu}, {machine.date}."])
        + "\n"
    )


def over_seeds(
    name: str,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] = ("task",),
    metrics: Sequence[str] = ("score",),
    where: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Return the table of the runs in a committed file: mean and standard deviation over seeds."""
    runs = select(collect([RESULTS / f"{name}.json"]).rows, where or {})
    return over_runs(build(runs, rows or default_rows(runs, columns), columns, metrics), "sd")


def translations() -> str:
    """Return the table of a translator's trained runs, beside the dense one that they started from."""
    runs = json.loads((RESULTS / "translation_trained.json").read_text())
    lines = [
        "| method | encoder FLOPs | with the decoder | source kept | BLEU | chrF | length | encoder, s | whole, s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run, is_pruned in [(runs[0], False), *((run, True) for run in runs)]:
        score, flops = Score.from_json(run["score"]), Flops.from_json(run["flops"])
        found = Translation.from_json(run["translation"])
        name, reductions, scores, spent = "dense, as it is", (1, 1, 1), score.dense_all, found.dense
        if is_pruned:
            reductions = flops.flops_vs_unpadded, found.end_to_end.reduction, found.source_kept
            name, scores, spent = run["method"], score.pruned_all, found.pruned
        lines.append(
            f"| {name} | {reductions[0]:.2f}x | {reductions[1]:.2f}x "
            f"| {reductions[2]:.2f} | {100 * scores['bleu']:.1f} | {100 * scores['chrf']:.1f} "
            f"| {scores['length_ratio']:.3f} | {spent.encoder_cpu_seconds:.2f} | {spent.cpu_seconds:.1f} |"
        )
    return "\n".join(lines) + "\n"


def table_of(name: str) -> str:
    """Return the table that a benchmark's script makes of its committed results."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return "Not measured yet.\n"
    table: str = runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"))["table"](json.loads(path.read_text()))
    return table


def embedder() -> str:
    """Return the table of a pruned embedder beside its baselines, and what the dense one reaches."""
    rows = ["method", "method.schedule", "task.pooling"]
    measures = ["spearman", "drop", "cosine", "overlap", "reduction", "speedup_b32_packed", "speedup_b32_padded"]
    return over_seeds("embed", rows, ["budget"], measures)


# page -> its blocks, as `<!-- NAME -->` to `<!-- end of NAME -->`
PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"headline": headline},
    "docs/results.md": {"main job": main_job, "controls": partial(over_seeds, "controls")},
    "docs/bench.md": {"own model": own_model},
    "docs/choose.md": {"engines": engines, "drops": partial(over_seeds, "controls", metrics=["drop"])},
    "docs/methods/dpruner.md": {
        "contracts": partial(
            over_seeds,
            "dpruner_ablation",
            ["variant"],
            metrics=["open_perplexity", "domain_perplexity", "seconds", "memory"],
            where={"task": ["domain_legal"]},
        ),
        "medicine": partial(
            over_seeds,
            "dpruner_ablation",
            ["variant"],
            metrics=["open_perplexity", "domain_perplexity", "choice_accuracy", "choice_macro_f1", "seconds", "memory"],
            where={"task": ["domain_medical"]},
        ),
    },
    "docs/methods/tsdtp.md": {
        "rows": partial(over_seeds, "tsdtp_rows", metrics=["score", "reduction"]),
        "ablation": partial(
            over_seeds, "tsdtp_ablation", ["method", "method.gamma", "method.task_attention"], ["budget"]
        ),
    },
    "docs/methods/top.md": {
        "tried": partial(
            over_seeds,
            "top_init",
            [
                *("method", "method.schedule", "method.dense_layers", "method.train"),
                *("method.init", "method.init_shares", "method.hard_fraction"),
            ],
            metrics=["score", "reduction"],
        )
    },
    "docs/data.md": {"data_layer": partial(table_of, "data_layer")},
    "docs/your_model.md": {"embedder": embedder, "reranker": partial(table_of, "rerank")},
    "docs/translation.md": {"trained": translations},
    "docs/reliability.md": {"campaign": partial(table_of, "campaign")},
    "docs/methods/lat.md": {"more": partial(over_seeds, "controls_more", metrics=["score", "reduction"])},
}


def rewritten(page: str, text: str) -> str:
    """Return a page with the tables of the committed results. Raises ValueError where a block is missing."""
    for name, table in PAGES[page].items():
        text = replace_block(text, table(), name)
    return text


def take_over(folder: Path) -> dict:
    """Return the result in a run's folder, with the date and the machine that it was made on."""
    result = json.loads((folder / "result.json").read_text())
    manifest = json.loads((folder / "manifest.json").read_text())
    return result | {
        "date": manifest["started"][:10],
        "hardware": f"{manifest['cpus']} cores of {manifest['cpu']}, {manifest['started'][:10]}",
    }


def main(arguments: Sequence[str]) -> int:
    """Write all tables, from a new result of the main job if one is given. Return 0."""
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    if given["run"] is not None:
        MAIN_JOB.write_text(json.dumps(take_over(Path(given["run"])), indent=2) + "\n")
    for page in PAGES:
        path = ROOT / page
        path.write_text(rewritten(page, path.read_text()))
    return DONE


if __name__ == "__main__":
    run_script(main)
