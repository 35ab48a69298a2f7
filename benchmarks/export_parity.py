"""How far exported graphs are from their models, on trained checkpoints and whole validation sets.

PRUNEKIT_DATA=... python benchmarks/export_parity.py 'runs=[runs/mrpc/topk/minilm/4x/s1-...,runs/sst2/ltp/...]'
python benchmarks/export_parity.py    # the table again, from benchmarks/results/export_parity_*.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prunekit.bench.machine import hardware, package_versions
from prunekit.bench.table import put_table
from prunekit.cli.export import export, score_of
from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script
from prunekit.config.errors import DONE
from prunekit.environment import environment
from prunekit.files import atomic_write_text
from prunekit.runs.finished import FinishedRun, open_run

ROOT = Path(__file__).parents[1]
SETTINGS = Path(__file__).with_suffix(".yaml")
RESULTS = ROOT / "benchmarks" / "results"


def measure(run: FinishedRun, formats: Sequence[str], rows: int | None) -> dict[str, Any]:
    """The reports of `prunekit export` on a run, a variant per file that was written; nothing is left behind."""
    variants: dict[str, Any] = {}
    for form in formats:
        with TemporaryDirectory() as scratch:
            given = {"format": form, "int8": True, "prune": True, "rows": rows, "out": scratch}
            report = export(run, given)
        variants |= report["variants"]
    around = environment()
    return {
        **{name: report[name] for name in ("run", "method", "task", "split", "metric")},
        "budget": (run.result.get("budget") or {}).get("reached"),
        "variants": variants,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(around),
        "versions": package_versions(around["versions"]),
    }


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """A row per file of each checkpoint, and what they were measured with."""
    lines = [
        "| checkpoint | file | texts | labels agree | the same tokens | logits, at most | score | the model's |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        budget = result["budget"]
        what = f"`{result['method']}`{f' {budget:.2f}x' if budget else ''} on {result['task']}, {result['metric']}"
        for name, found in result["variants"].items():
            scores = (score_of(found, who, result["metric"]) for who in ("export", "model"))
            lines.append(
                f"| {what} | {name} | {found['rows']} | {100 * found['labels_agree']:.2f} % "
                f"| {100 * found['tokens_equal']:.2f} % | {found['max_difference']:.1e} | {' | '.join(scores)} |"
            )
    made = {
        ", ".join(f"{name} {number}" for name, number in result["versions"].items() if number): result["date"]
        for result in results
    }
    return "\n".join([*lines, "", *(f"{versions}; {day}." for versions, day in made.items())]) + "\n"


def stored(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """What was measured."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("export_parity_*.json"))]


def main(arguments: Sequence[str]) -> int:
    """Measures the runs that are given, and writes the table; 0 when done.

    Raises:
        ConfigError: a setting, a run or a package that is not there.
    """
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    for run in [open_run(folder) for folder in given["runs"]]:
        found = measure(run, given["formats"], given["rows"])
        out = RESULTS / "export_parity_{task}_{method}.json".format(**found)
        atomic_write_text(out, json.dumps(found, indent=1) + "\n")
    page = ROOT / given["into"]
    put_table(page, table(stored()), "parity")
    print(page)
    return DONE


if __name__ == "__main__":
    run_script(main)
