"""The campaign of attacks at any size, and its table.

python benchmarks/campaign.py cases=100                     # writes benchmarks/results/campaign.json
python benchmarks/campaign.py attacks=damage cases=1000     # one attack; the rows of the others stay
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script
from prunekit.config.errors import DONE, MISSED, ConfigError
from prunekit.environment import cpu_model, versions

ROOT = Path(__file__).parents[1]
SETTINGS = Path(__file__).with_suffix(".yaml")


def measure(given: dict[str, Any], stored: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run the chosen attacks and return all rows, those of other attacks as they are stored."""
    sys.path.insert(0, str(ROOT / "tests"))
    from campaign.frame import attacks, run_attack  # of the tests, which an installation does not have

    known = attacks()
    chosen = given["attacks"] or list(known)
    if unknown := [name for name in chosen if name not in known]:
        raise ConfigError(f"attacks={unknown[0]} is no attack.\nAllowed: {', '.join(known)}.\nGive one of these.")
    rows = dict(stored.get("rows", {}))
    for name in chosen:
        row = run_attack(
            known[name], given["cases"], given["seed"], folder / name, lambda line: print(line, flush=True)
        )
        about = {"date": datetime.now(UTC).date().isoformat(), "cpu": cpu_model(), "seed": given["seed"]}
        rows[name] = row.to_json() | about | {"prunekit": versions().get("prunekit"), "torch": versions().get("torch")}
    return {"rows": dict(sorted(rows.items()))}


def table(found: dict[str, Any]) -> str:
    """Return the rows as Markdown, with what failed below them."""
    lines = [
        "| attack | tried | survived | failed | of the survived: same, repaired, refused |",
        "|---|---:|---:|---:|---|",
    ]
    for row in found["rows"].values():
        kinds = ", ".join(str(row["outcomes"].get(kind, 0)) for kind in ("same result", "repaired", "refused"))
        lines.append(f"| {row['attack']} | {row['tried']} | {row['survived']} | {row['failed']} | {kinds} |")
    for row in found["rows"].values():
        lines += ["", *(f"- {row['attack']}: {one['case']}: {one['outcome']}" for one in row["failures"])] * bool(
            row["failures"]
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Attack and store if asked to, and print the table. Return 0, or 3 where anything failed."""
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    results = ROOT / given["results"]
    stored = json.loads(results.read_text()) if results.is_file() else {}
    if given["measure"]:
        with tempfile.TemporaryDirectory(dir=given["folder"]) as folder:
            stored = measure(given, stored, Path(folder))
        results.write_text(json.dumps(stored, indent=1) + "\n")
    print(table(stored))
    return DONE if all(row["failed"] == 0 for row in stored["rows"].values()) else MISSED


if __name__ == "__main__":
    run_script(main)
