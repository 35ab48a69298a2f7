"""One model that serves several budgets, beside a model for each budget alone.

./run python benchmarks/dial.py                                     # trains, about 20 minutes of a core
./run python benchmarks/dial.py save=benchmarks/results/dial.json   # takes over the numbers
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script, train_apart
from prunekit.config.composition import compose
from prunekit.config.errors import DONE
from prunekit.files import atomic_write_text
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import canonical

SETTINGS = Path(__file__).with_suffix(".yaml")


def main(arguments: Sequence[str]) -> int:
    """Train what is missing, and print the table. Return 0."""
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    lines = [line for seed in given["seeds"] for line in measure(given, seed)]
    if given["save"]:
        atomic_write_text(Path(given["save"]), json.dumps(lines, indent=1) + "\n")
    print(table(lines))
    return DONE


def measure(given: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Return the score and the reduction of each budget, of its own model and of the one that serves all."""
    first, *others = given["budgets"]
    served = {one["budget"]: one for one in train(given, seed, first, f"method.also=[{','.join(others)}]")["budgets"]}
    lines = []
    for budget in given["budgets"]:
        alone, shared = train(given, seed, budget), served[budget]
        lines.append(
            {
                "seed": seed,
                "budget": budget,
                "metric": alone["score"]["metric"],
                "dense": alone["score"]["dense"],
                "alone": alone["score"]["pruned"],
                "served": shared["score"],
                "alone_flops_vs_unpadded": alone["flops"]["flops_vs_unpadded"],
                "served_flops_vs_unpadded": shared["flops_vs_unpadded"],
            }
        )
    return lines


def train(given: dict[str, Any], seed: int, budget: str, *more: str) -> dict[str, Any]:
    """Run train.py, and return the result; a missed budget is a result, too."""
    words = [f"task={given['task']}", f"method={given['method']}", "backbone=minilm", f"budget={budget}", *more]
    words += [f"seed={seed}", f"runs_dir={Path(given['folder']).absolute()}", "bench.enabled=false", "plots=false"]
    words += [f"{key}={value}" for key, value in given["settings"].items()]
    train_apart(words)
    result: dict[str, Any] = json.loads((RunFolder.of(canonical(compose(words)[0])).path / "result.json").read_text())
    return result


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return the means over seeds as Markdown; scores in percent."""
    found = [
        f"| budget | {lines[0]['metric']}, its own model | one model for all | difference |",
        "|---|---:|---:|---:|",
    ]
    for budget in dict.fromkeys(line["budget"] for line in lines):
        own, shared = (
            100 * fmean(line[name] for line in lines if line["budget"] == budget) for name in ("alone", "served")
        )
        found.append(f"| {budget} | {own:.2f} | {shared:.2f} | {shared - own:+.2f} |")
    dense = 100 * fmean(line["dense"] for line in lines)
    return "\n".join([*found, f"| dense | {dense:.2f} | | |"])


if __name__ == "__main__":
    run_script(main)
