"""Writes the README's table from the committed result of the main job.

./run python train.py force=true
./run python benchmarks/readme.py runs/bbc_news/top/minilm/3x/s1-<hash>   # takes over a new result, then writes
./run python benchmarks/readme.py                                         # writes from the committed one
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from prunekit.report.console import markdown

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "main_job.json"
BEGIN, END = "<!-- main job:", "<!-- end of main job -->"


def readme_with_table(readme: str, result: dict) -> str:
    """The README with the table between its two markers replaced."""
    start = readme.index("\n", readme.index(BEGIN)) + 1
    end = readme.index(END)
    hardware = result.get("hardware")
    where = f"\nMeasured on {hardware}.\n" if hardware else ""
    return readme[:start] + markdown(result) + where + readme[end:]


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
        RESULT.write_text(json.dumps(take_over(Path(sys.argv[1])), indent=2) + "\n")
    path = ROOT / "README.md"
    path.write_text(readme_with_table(path.read_text(), json.loads(RESULT.read_text())))
