"""How far exported graphs are from their models, on trained checkpoints and whole validation sets.

PRUNEKIT_DATA=... python benchmarks/export_parity.py 'runs=[runs/mrpc/topk/minilm/4x/s1-...,runs/sst2/ltp/...]'
python benchmarks/export_parity.py    # the table again, from benchmarks/results/export_parity_*.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from prunekit.bench.machine import hardware, package_versions
from prunekit.bench.result import ParityResult
from prunekit.bench.table import put_table
from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script
from prunekit.config.errors import DONE
from prunekit.environment import environment
from prunekit.files import atomic_write_text
from prunekit.pipelines.export import ExportOptions, export, format_score
from prunekit.runs.finished import FinishedRun, open_run

ROOT = Path(__file__).parents[1]
SETTINGS = Path(__file__).with_suffix(".yaml")
RESULTS = ROOT / "benchmarks" / "results"


def measure(run: FinishedRun, formats: Sequence[str], rows: int | None) -> ParityResult:
    """Return the parity of every file that `prunekit export` writes of a run, and remove the files."""
    reports = []
    for form in formats:
        with TemporaryDirectory() as scratch:
            reports.append(export(run, ExportOptions(format=form, rows=rows, out=scratch)))
    around = environment()
    return ParityResult(
        **{name: getattr(reports[0], name) for name in ("run", "method", "task", "split", "metric")},
        budget=run.result.budget.reached,
        variants={name: file for report in reports for name, file in report.variants.items()},
        date=datetime.now(UTC).date().isoformat(),
        hardware=hardware(around),
        versions=package_versions(around["versions"]),
    )


def table(results: Sequence[ParityResult]) -> str:
    """Return a row per file of each checkpoint, and the versions that they were measured with."""
    lines = [
        "| checkpoint | file | texts | labels agree | the same tokens | logits, at most | score | the model's |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        budget = f" {result.budget:.2f}x" if result.budget else ""
        checkpoint = f"`{result.method}`{budget} on {result.task}, {result.metric}"
        for name, file in result.variants.items():
            scores = (format_score(file, of, result.metric) for of in ("export", "model"))
            lines.append(
                f"| {checkpoint} | {name} | {file.rows} | {100 * file.labels_agree:.2f} % "
                f"| {100 * file.tokens_equal:.2f} % | {file.max_difference:.1e} | {' | '.join(scores)} |"
            )
    made = {
        ", ".join(f"{name} {number}" for name, number in result.versions.items() if number): result.date
        for result in results
    }
    return "\n".join([*lines, "", *(f"{versions}; {day}." for versions, day in made.items())]) + "\n"


def load_stored(folder: Path = RESULTS) -> list[ParityResult]:
    """Return what was measured."""
    return [
        ParityResult.from_json(json.loads(path.read_text())) for path in sorted(folder.glob("export_parity_*.json"))
    ]


def main(arguments: Sequence[str]) -> int:
    """Measure the runs that are given, and write the table. Return 0.

    Raises:
        ConfigError: a setting, a run or a package that is missing.
    """
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    for run in [open_run(folder) for folder in given["runs"]]:
        result = measure(run, given["formats"], given["rows"])
        out = RESULTS / f"export_parity_{result.task}_{result.method}.json"
        atomic_write_text(out, json.dumps(result.to_json(), indent=1) + "\n")
    page = ROOT / given["into"]
    put_table(page, table(load_stored()), "parity")
    print(page)
    return DONE


if __name__ == "__main__":
    run_script(main)
