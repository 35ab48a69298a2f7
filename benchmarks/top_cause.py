"""Draws why ToP with open gates loses in short schedules: which bins stay open, and the score at each evaluation.

./run python benchmarks/top_cause.py runs=[runs/sst2/top/minilm/3x/s1-<hash>,...]   # takes over the runs' numbers
./run python benchmarks/top_cause.py                                             # draws from what is committed
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safetensors.torch import load_file

from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script
from prunekit.config.errors import DONE
from prunekit.files import atomic_write_bytes, atomic_write_text
from prunekit.tokens.gates import deterministic_fine

ROOT = Path(__file__).parents[1]
SETTINGS = Path(__file__).with_suffix(".yaml")
NUMBERS = ROOT / "benchmarks" / "results" / "top_cause.json"
FIGURE = ROOT / "docs" / "methods" / "top_cause.svg"


def numbers_of(folder: Path) -> dict[str, Any]:
    """Return what a run's folder says: its name, score at each evaluation, tokens per layer, and its open bins."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    result = json.loads((folder / "result.json").read_text())
    manifest = json.loads((folder / "manifest.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "name": name_of(config["method"]),
        "score": result["score"]["pruned"],
        "evaluations": [[row["step"], row["score"]] for row in rows if "score" in row],
        "tokens": result["tokens_per_layer"],
        "open_bins": open_bins(folder / "model" / "prunekit.safetensors"),
        "task": config["task"]["name"],
        "budget": config["budget"],
        "hardware": f"{manifest['cpus']} cores of {manifest['cpu']}",
        "date": manifest["started"][:10],
    }


def name_of(method: dict[str, Any]) -> str:
    """Return a run's name in the figure: its method, and what differs in how it decides."""
    if method["name"] != "top":
        return f"{method['name']}, {method['schedule']}"
    if method.get("init", "open") == "open":
        return "top, init=open"
    shares = "" if method["init_shares"] is None else ", the profile of open gates"
    return f"top, init=topk{shares}, {1 - (method['hard_fraction'] or 1):.0%} of the steps for the gates"


def open_bins(file: Path) -> list[list[int]] | None:
    """Return 1 for each location's open bins and 0 for the others; None where there are no bins."""
    tensors = load_file(file) if file.is_file() else {}
    if "policy.token_loga" not in tensors:
        return None
    log_odds = tensors["policy.token_loga"] + tensors["policy.shift"][:, None]
    return deterministic_fine(log_odds).to(torch.int).tolist()


def draw(runs: Sequence[dict[str, Any]]) -> Figure:
    """Return the figure: the open bins of the first run that has bins, and the curves of all."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    bins, curves = figure.subplots(1, 2)
    _draw_bins(bins, next(run["open_bins"] for run in runs if run["open_bins"]))
    for run in runs:
        steps, scores = zip(*run["evaluations"], strict=True)
        curves.plot(steps, [100 * score for score in scores], marker="o", markersize=3, label=run["name"])
    curves.set(title=f"{runs[0]['task']} at {runs[0]['budget']}: validation", xlabel="step", ylabel="score")
    curves.legend(fontsize=7)
    return figure


def _draw_bins(axes: Axes, bins: list[list[int]]) -> None:
    axes.imshow(bins, cmap="Blues", vmin=0, vmax=1.5, aspect="auto")
    axes.set(title="bins that init=open left open (dark)", xlabel="bin of ranks, best first", ylabel="location")
    axes.set_xticks(range(len(bins[0])))
    axes.set_yticks(range(len(bins)), [str(row + 2) for row in range(len(bins))])


def main(arguments: Sequence[str]) -> int:
    """Take over the runs that are given, and draw. Return 0."""
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    if given["runs"] is not None:
        atomic_write_text(NUMBERS, json.dumps([numbers_of(Path(run)) for run in given["runs"]], indent=1) + "\n")
    stream = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "prunekit", "svg.fonttype": "none"}):  # the same file again
        draw(json.loads(NUMBERS.read_text())).savefig(stream, format="svg", metadata={"Date": None})
    atomic_write_bytes(FIGURE, stream.getvalue())
    return DONE


if __name__ == "__main__":
    run_script(main)
