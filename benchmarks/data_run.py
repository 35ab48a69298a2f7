r"""Memory of whole runs on files of many rows: reading, the dense teacher, training with pruning, evaluation and test.

    python benchmarks/data_run.py                 # results/data_run.json, and the table and figure of docs/data.md

A file of random words whose class a marker word gives is written for each size, and `python train.py task=csv` runs on
it with the tiny backbone and an empty cache, on one thread. Its memory is looked at several times a second: what it
holds for itself (RssAnon), and the pages of files that it maps (RssFile), which the system may drop.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from prunekit.bench.table import put_table_and_figure
from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script
from prunekit.config.errors import DONE, ConfigError
from prunekit.data.synthetic import FILLERS, MARKERS
from prunekit.environment import environment
from prunekit.files import atomic_write_text

ROOT = Path(__file__).parents[1]
SETTINGS = Path(__file__).with_suffix(".yaml")
POINTS = 300  # of a curve
COLOURS = ("tab:green", "tab:blue", "tab:orange")
RUN = (
    "task=csv", "method=topk", "budget=1.2x", "backbone=tiny", "task.max_length=32", "trainer.epochs=1",
    "teacher.epochs=1", "trainer.threads=1", "wandb.enabled=false", "bench.enabled=false", "plots=false",
    "logger.texts=0",
)  # fmt: skip
# the stages of a run, each with the beginning of the line that is printed when it begins, in this order
STAGES = (
    ("plan ", "tokens"), ("teacher ", "dense teacher"), ("teacher    trained", "training with pruning"),
    ("validation (", "evaluation, test"),
)  # fmt: skip


def write_rows(path: Path, rows: int, words: int) -> None:
    """Write a CSV of so many rows of short texts, each with a marker of its class."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write("text,label\n")
        for row in range(rows):
            drawn = random.Random(row)
            text = drawn.choices(FILLERS, k=drawn.randint(words - 2, words + 2))
            text[drawn.randrange(len(text))] = MARKERS[row % 2]
            stream.write(f"{' '.join(text)} {row},{'ab'[row % 2]}\n")


def run_once(file: Path, folder: Path, batch: int, pause: float) -> dict[str, Any]:
    """Train on a file in a process of its own, and return its memory over time, and when each of its stages began."""
    given = [f"task.file={file}", f"trainer.batch_size={batch}", f"trainer.eval_batch_size={batch}"]
    places = [f"runs_dir={folder / 'runs'}", f"data.cache_dir={folder / 'cache'}"]
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *RUN, *given, *places],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **settings},
    )
    curve: list[list[float]] = []

    def watch() -> None:
        while process.poll() is None:
            curve.append([time.monotonic() - begun, *memory(process.pid)])
            time.sleep(pause)

    watcher = threading.Thread(target=watch)
    watcher.start()
    printed = []
    assert process.stdout is not None
    for line in process.stdout:
        printed.append([round(time.monotonic() - begun, 1), line.rstrip().replace(f"{folder}/", "")])
    watcher.join()
    if process.returncode not in (0, 3):
        raise ConfigError(f"the run on {file.name} failed.\nAllowed: one that ends.\n{printed[-5:]}")
    return {"curve": thinned([point for point in curve if point[1]]), "printed": printed, "seconds": curve[-1][0]}


def memory(process: int) -> tuple[float, float]:
    """Return the MiB that a process holds for itself, and those of files that it maps; zeros when it has ended."""
    found = {"RssAnon": 0.0, "RssFile": 0.0}
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in found:
                found[name] = int(value.split()[0]) / 1024
    except OSError:
        pass
    return found["RssAnon"], found["RssFile"]


def thinned(curve: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return, of each of some equal parts of a curve's time, the last moment and the highest values."""
    end = curve[-1][0]
    parts: dict[int, list[float]] = {}
    for second, *values in curve:
        part = int(POINTS * second / end)
        known = parts.get(part, [0.0] * (1 + len(values)))
        parts[part] = [round(second, 1), *(round(max(pair), 1) for pair in zip(known[1:], values, strict=True))]
    return list(parts.values())


def measure(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the runs, one per size."""
    runs = []
    for rows in given["rows"]:
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "rows.csv"
            write_rows(file, rows, given["words"])
            found = run_once(file, Path(place), given["batch"], given["pause"])
            runs.append({"rows": rows, "file_mib": file.stat().st_size / 2**20, **found})
            print(rows, highest(runs[-1]), flush=True)
    return {"environment": environment(), "settings": [*RUN, f"trainer.batch_size={given['batch']}"], "runs": runs}


def stages(run: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return each stage of a run with the second in which it began."""
    found = [("reading", 0.0)]
    for second, line in run["printed"]:
        beginning, stage = STAGES[min(len(found), len(STAGES)) - 1]
        if stage != found[-1][0] and line.startswith(beginning):
            found.append((stage, second))
    return found


def highest(run: Mapping[str, Any], first: int = 0) -> tuple[float, float]:
    """Return the most memory of a run, its own and that of mapped files, from a point of its curve on."""
    own, mapped = zip(*(point[1:] for point in run["curve"][first:]), strict=True)
    return max(own), max(mapped)


def table(found: Mapping[str, Any]) -> str:
    """Return the memory of each run, in Markdown, and how it grows with the rows."""
    lines = [
        "| rows | file, MiB | minutes | memory at most, MiB | mapped files at most, MiB |",
        f"|{'---:|' * 5}",
    ]
    for run in found["runs"]:
        own, mapped = highest(run)
        lines.append(
            f"| {run['rows']:,} | {run['file_mib']:.0f} | {run['seconds'] / 60:.1f} | {own:.0f} | {mapped:.0f} |"
        )
    first, last = found["runs"][0], found["runs"][-1]
    if last["rows"] > first["rows"]:
        grown = (highest(last)[0] - highest(first)[0]) * 2**20 / (last["rows"] - first["rows"])
        lines += ["", f"From {first['rows']:,} to {last['rows']:,} rows that is {grown:.0f} bytes a row."]
    return "\n".join(lines) + "\n"


def draw(found: Mapping[str, Any]) -> Figure:
    """Return the figure: memory over the time of each run, and where its stages begin."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    for run, colour in zip(found["runs"], COLOURS, strict=False):
        seconds, own, mapped = zip(*run["curve"], strict=True)
        share = [100 * second / seconds[-1] for second in seconds]
        axes.plot(share, own, color=colour, label=f"memory of its own, {run['rows']:,} rows")
        axes.plot(share, mapped, ":", color=colour, label=f"mapped files, {run['rows']:,} rows")
    last = found["runs"][-1]
    most = 1.5 * max(value for run in found["runs"] for value in highest(run))
    for stage, second in stages(last):
        place = 100 * second / last["seconds"]
        axes.axvline(place, color="0.6", linewidth=0.5)
        axes.text(place + 0.3, 0.02 * most, stage, rotation=90, fontsize=7, color="0.4", va="bottom")
    axes.set(xlabel="share of the run's time, %; thin lines: stages of the longest run", ylabel="MiB", ylim=(0, most))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, frameon=False, ncols=2, loc="upper left")
    return figure


def main(arguments: Sequence[str]) -> int:
    """Measure and store if asked to, and write the table and the figure. Return 0."""
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    results = ROOT / given["results"]
    if given["measure"]:
        atomic_write_text(results, json.dumps(measure(given)) + "\n")
    stored = json.loads(results.read_text(encoding="utf-8"))
    print(table(stored))
    put_table_and_figure(ROOT / given["into"], table(stored), "data_run", ROOT / given["figure"], draw(stored))
    return DONE


if __name__ == "__main__":
    run_script(main)
