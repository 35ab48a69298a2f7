"""The campaign of attacks at any size, and its table.

python benchmarks/campaign.py                               # goes on with benchmarks/results/campaign.json
python benchmarks/campaign.py attacks=[damage] cases=1000   # one attack; the rows of the others stay
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script
from prunekit.config.errors import DONE, MISSED, ConfigError
from prunekit.environment import environment
from prunekit.files import atomic_write_text

ROOT = Path(__file__).parents[1]
SETTINGS = Path(__file__).with_suffix(".yaml")
PART = 20  # cases of an attack before it is the turn of the next: an interrupted campaign has some of all
AGAIN = "survived only when it was tried again"  # because something was mended
FIRST = 12  # of a row's failures are shown


class Campaign:
    """Rows of attacks in a file that is written after each case."""

    def __init__(self, given: Mapping[str, Any], folder: Path) -> None:
        from campaign.frame import Row, attacks  # type: ignore[import-not-found]  # of the tests, which an installation does not have

        self.given, self.folder, self.known = given, folder, attacks()
        gc.collect()
        gc.freeze()  # every run ends with a collection, which takes longer than a small run
        self.results, self.about = ROOT / given["results"], environment()
        self.stored = json.loads(self.results.read_text()) if self.results.is_file() else {}
        self.chosen: list[str] = given["attacks"] or list(self.known)
        if unknown := [name for name in self.chosen if name not in self.known]:
            raise ConfigError(
                f"attacks={unknown[0]} is no attack.\nAllowed: {', '.join(self.known)}.\nGive one of these."
            )
        rows = {} if given["again"] else self.stored.get("rows", {})
        for name in self.chosen:
            if name in rows and rows[name]["seed"] != given["seed"]:
                raise ConfigError(
                    f"{name} was tried with seed={rows[name]['seed']}.\nAllowed: one seed per row.\n"
                    f"Give that seed, or again=true."
                )
        self.rows: dict[str, Any] = {name: Row.from_json(rows[name]) if name in rows else None for name in self.chosen}

    def run(self) -> None:
        """Go on with all chosen attacks, a few cases of each in turn."""
        if self.given["retry"]:
            for name in self.chosen:
                self._retry(name)
        open_attacks = list(self.chosen)
        while open_attacks:
            open_attacks = [name for name in open_attacks if self._go_on(name)]

    def _go_on(self, name: str) -> bool:
        """Try some cases of an attack; return whether any are left."""
        from campaign.frame import run_attack

        module, row = self.known[name], self.rows[name]
        wanted = self.given["cases"] or module.LONG
        done = 0 if row is None else row.cases
        until = min(wanted, done + getattr(module, "PART", PART))
        for now in run_attack(module, until, self.given["seed"], self.folder / name, row, _say):
            self._store(name, now)
        return until < wanted and done < self.rows[name].cases

    def _retry(self, name: str) -> None:
        from campaign.frame import SURVIVED, judged, numbered

        row = self.rows[name]
        for failure in [] if row is None else row.failures:
            module, folder = self.known[name], self.folder / name
            folder.mkdir(parents=True, exist_ok=True)
            verdict = judged(next(numbered(module, self.given["seed"], failure["number"], folder)))
            _say(f"{module.TITLE}: {failure['case']}: {verdict.outcome} {verdict.reason[-200:]}")
            if verdict.outcome in SURVIVED:
                outcomes = dict(row.outcomes)
                outcomes[failure["outcome"]] -= 1
                outcomes[verdict.outcome] = outcomes.get(verdict.outcome, 0) + 1
                outcomes = {outcome: count for outcome, count in outcomes.items() if count}
                others = [one for one in row.failures if one["number"] != failure["number"]]
                counts = Counter(row.counts) + Counter([AGAIN])
                row = replace(row, outcomes=outcomes, failures=others, counts=dict(counts))
                self._store(name, row)

    def _store(self, name: str, row: Any) -> None:
        self.rows[name] = row
        about, today = self.about, datetime.now(UTC).date().isoformat()
        before = self.stored.get("rows", {}).get(name, {}) if not self.given["again"] else {}
        content = row.to_json() | {
            "seed": self.given["seed"],
            "command": f"python benchmarks/campaign.py attacks=[{name}] cases={row.cases} seed={self.given['seed']}",
            "dates": sorted({*before.get("dates", []), today}),
            "hardware": {"cpu": about["cpu"], "cpus": about["cpus"]},
            "versions": {package: about["versions"].get(package) for package in ("prunekit", "torch", "transformers")},
        }
        self.stored = {"rows": dict(sorted((self.stored.get("rows", {}) | {name: content}).items()))}
        atomic_write_text(self.results, json.dumps(self.stored, indent=1) + "\n")


def _say(line: str) -> None:
    print(line, flush=True)


def table(found: Mapping[str, Any]) -> str:
    """Return the rows as Markdown, with what else was counted, and the first of what failed."""
    lines = [
        "| attack | tried | survived | failed | of the survived: same, repaired, refused |",
        "|---|---:|---:|---:|---|",
    ]
    rows = list(found["rows"].values())
    for row in rows:
        kinds = ", ".join(f"{row['outcomes'].get(kind, 0):,}" for kind in ("same result", "repaired", "refused"))
        numbers = " | ".join(f"{row[name]:,}" for name in ("tried", "survived", "failed"))
        lines.append(f"| {row['attack']} | {numbers} | {kinds} |")
    lines.append("")
    lines += [f"- {row['attack']}: {_counted(row['counts'])}" for row in rows if row["counts"]]
    for row in rows:
        lines += [f"- failed: {row['attack']}: {one['case']}: {one['outcome']}" for one in row["failures"][:FIRST]]
    machine, dates = rows[0]["hardware"], sorted({date for row in rows for date in row["dates"]})
    period = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    lines += ["", f"{machine['cpus']} cores of {machine['cpu']}, {period}, seed {seeds}."]
    return "\n".join(lines) + "\n"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def main(arguments: Sequence[str]) -> int:
    """Attack and store if asked to, and print the table. Return 0, or 3 where anything failed."""
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    results = ROOT / given["results"]
    if given["measure"]:
        sys.path.insert(0, str(ROOT / "tests"))
        with tempfile.TemporaryDirectory(dir=given["folder"], ignore_cleanup_errors=True) as folder:
            Campaign(given, Path(folder)).run()
    stored = json.loads(results.read_text())
    print(table(stored))
    return DONE if all(row["failed"] == 0 for row in stored["rows"].values()) else MISSED


if __name__ == "__main__":
    run_script(main)
