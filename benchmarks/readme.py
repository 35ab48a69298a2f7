"""Writes the tables of the README and of the documentation from committed results.

./run python train.py force=true
./run python benchmarks/readme.py runs/bbc_news/top/minilm/3x/s1-<hash>  # takes over the main job's result, and writes
./run prunekit table runs save=benchmarks/results/controls.json           # takes over a sweep's runs
./run python benchmarks/readme.py                                         # writes all tables from what is committed
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from prunekit.bench.result import BenchResult
from prunekit.bench.table import markdown as of_engines
from prunekit.bench.table import replace_block
from prunekit.report.formats import markdown as over_runs
from prunekit.report.rows import collect, matching
from prunekit.report.table import build, default_rows
from prunekit.results.summary import markdown
from prunekit.runs.result import Flops, RunResult, Score, Translation

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MAIN_JOB = RESULTS / "main_job.json"


def main_job() -> str:
    """The main job's own table, and where it was measured."""
    content = json.loads(MAIN_JOB.read_text())
    hardware = content.get("hardware")
    return markdown(RunResult.from_json(content)) + (f"\nMeasured on {hardware}.\n" if hardware else "")


def own_model() -> str:
    """What `prunekit bench` says of a dense model."""
    return of_engines(BenchResult.from_json(json.loads((RESULTS / "own_model.json").read_text())))


def over_seeds(
    name: str,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] = ("task",),
    metrics: Sequence[str] = ("score",),
    where: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The runs of a committed file of `prunekit table save=FILE`: mean and standard deviation over seeds."""
    runs = matching(collect([RESULTS / f"{name}.json"]).rows, where or {})
    return over_runs(build(runs, rows or default_rows(runs, columns), columns, metrics), "sd")


def translations() -> str:
    """Trained runs of a translator beside the dense one that they started from: quality, and what it takes."""
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


# page -> its blocks, as `<!-- NAME -->` to `<!-- end of NAME -->`
PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"main job": main_job, "controls": partial(over_seeds, "controls"), "own model": own_model},
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
    "docs/translation.md": {"trained": translations},
    "docs/methods/lat.md": {"more": partial(over_seeds, "controls_more", metrics=["score", "reduction"])},
}


def rewritten(page: str, text: str) -> str:
    """A page with its tables as the committed results have them. Raises ValueError where a block is missing."""
    for name, table in PAGES[page].items():
        text = replace_block(text, table(), name)
    return text


def take_over(folder: Path) -> dict:
    """The result of a run's folder, with the date and the machine it was made on."""
    result = json.loads((folder / "result.json").read_text())
    manifest = json.loads((folder / "manifest.json").read_text())
    return result | {
        "date": manifest["started"][:10],
        "hardware": f"{manifest['cpus']} cores of {manifest['cpu']}, {manifest['started'][:10]}",
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        MAIN_JOB.write_text(json.dumps(take_over(Path(sys.argv[1])), indent=2) + "\n")
    for page in PAGES:
        path = ROOT / page
        path.write_text(rewritten(page, path.read_text()))
