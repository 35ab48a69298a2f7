"""Writes the README's tables from committed results.

./run python train.py force=true
./run python benchmarks/readme.py runs/bbc_news/top/minilm/3x/s1-<hash>  # takes over the main job's result, and writes
./run python benchmarks/readme.py                                         # writes all tables from what is committed
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from prunekit.report.console import markdown

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MAIN_JOB = RESULTS / "main_job.json"


def main_job() -> str:
    """The main job's own table, and where it was measured."""
    result = json.loads(MAIN_JOB.read_text())
    hardware = result.get("hardware")
    return markdown(result) + (f"\nMeasured on {hardware}.\n" if hardware else "")


# the README has each between `<!-- NAME: ... -->` and `<!-- end of NAME -->`
BLOCKS: dict[str, Callable[[], str]] = {"main job": main_job}


def with_block(readme: str, name: str, text: str) -> str:
    """The README with the text between the markers of a block replaced.

    Raises:
        ValueError: the README does not have exactly one such block.
    """
    block = re.compile(rf"(<!-- {name}:[^\n]*\n).*?(<!-- end of {name} -->)", re.DOTALL)
    found = block.subn(lambda match: match[1] + text + match[2], readme)
    if found[1] != 1:
        raise ValueError(f"README.md has {found[1]} blocks named {name!r}; it must have one.")
    return found[0]


def rewritten(readme: str) -> str:
    """The README with all its blocks as the committed results have them."""
    for name, text in BLOCKS.items():
        readme = with_block(readme, name, text())
    return readme


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
    path = ROOT / "README.md"
    path.write_text(rewritten(path.read_text()))
