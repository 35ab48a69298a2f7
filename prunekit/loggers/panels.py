"""What the panels of the dashboard show of offline runs, as numbers.

A definition is read as W&B reads it: which keys of configuration, summary and history each panel names, and what the
runs have under them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prunekit.config.identity import is_dense
from prunekit.config.keys import flatten
from prunekit.loggers.offline import OfflineRun

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Panel:
    """A panel: its section, title and type, and its numbers: rows of one value per column, None where there is none."""

    section: str
    title: str
    kind: str
    columns: list[str]
    rows: list[list[Any]]

    @property
    def empty_keys(self) -> list[str]:
        """The keys under which no run has a value."""
        filled = [any(value is not None for value in column) for column in zip(*self.rows, strict=True)]
        return [key for key, has in zip(self.columns, filled or [False] * len(self.columns), strict=True) if not has]

    @property
    def whole_rows(self) -> list[list[Any]]:
        """The rows with a value in every column: W&B draws no point and no line of any other."""
        return [row for row in self.rows if None not in row]

    def to_json(self) -> dict[str, Any]:
        """Return the panel as plain values."""
        return asdict(self)


def to_text(panels: Sequence[Panel]) -> str:
    """Return panels as JSON with a row per line."""
    text = ",\n".join(
        json.dumps(panel.to_json() | {"rows": []}, ensure_ascii=False).replace(
            '"rows": []', '"rows": [\n' + ",\n".join(json.dumps(row, ensure_ascii=False) for row in panel.rows) + "\n]"
        )
        for panel in panels
    )
    return f"[\n{text}\n]\n"


def evaluate(definition: Mapping[str, Any], runs: Sequence[OfflineRun]) -> list[Panel]:
    """Return every panel of a definition with what it shows of the runs."""
    sections = definition["spec"]["section"]["panelBankConfig"]["sections"]
    panels = [(section["name"], panel) for section in sections for panel in section["panels"]]
    return [_panel(section, panel["viewType"], panel["config"], runs) for section, panel in panels]


def lookup(run: OfflineRun, accessor: str) -> Any:
    """Return what a run has under an accessor, such as `summary:final/score` or `config:method.value.name`."""
    source, _, path = accessor.partition(":")
    if source == "summary":
        return run.summary.get(path)
    first, _, rest = path.partition(".value")
    return flatten(run.config).get(first + rest)


def _panel(section: str, kind: str, config: Config, runs: Sequence[OfflineRun]) -> Panel:
    title, columns, rows = READERS[kind](config, runs)
    return Panel(section, title, kind, columns, [[_rounded(value) for value in row] for row in rows])


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


Reading = tuple[str, list[str], list[list[Any]]]  # title, columns, rows


def _values(title: str, keys: Sequence[str], runs: Sequence[OfflineRun]) -> Reading:
    """One row per run."""
    names = [key.partition(":")[2].replace(".value", "") for key in keys]
    return title, ["run", *names], [[_name(run), *(lookup(run, key) for key in keys)] for run in runs]


def _scatter(config: Config, runs: Sequence[OfflineRun]) -> Reading:
    axes = [config[axis] for axis in ("xAxis", "yAxis", "zAxis") if axis in config]
    return _values(config["chartTitle"], axes, runs)


def _bars(config: Config, runs: Sequence[OfflineRun]) -> Reading:
    return _values(config["chartTitle"], [f"summary:{metric}" for metric in config["metrics"]], runs)


def _parallel(config: Config, runs: Sequence[OfflineRun]) -> Reading:
    return _values("parallel coordinates", [column["accessor"] for column in config["columns"]], runs)


def _lines(config: Config, runs: Sequence[OfflineRun]) -> Reading:
    """One row per run, step and metric; a regular expression stands for the metrics that it finds."""
    step, wanted = config["xAxis"], list(config["metrics"])
    if pattern := config.get("metricRegex"):
        logged = {key for run in runs for row in run.history for key in row}
        wanted = sorted(key for key in logged if re.fullmatch(pattern, key)) or [pattern]
    rows = [
        [_name(run), row[step], *(row.get(key) for key in wanted)]
        for run in runs
        for row in run.history
        if step in row and any(key in row for key in wanted)
    ]
    return config["chartTitle"], ["run", step, *wanted], rows


def _importance(config: Config, runs: Sequence[OfflineRun]) -> Reading:
    """One row per number of the configuration that differs between runs, with its correlation with the target."""
    target = config["targetKey"]
    known = [run for run in runs if isinstance(run.summary.get(target), int | float)]
    scores = [run.summary[target] for run in known]
    rows: list[list[Any]] = []
    for key in _differing(known):
        values = [flatten(run.config).get(key) for run in known]
        pairs = np.array(
            [(value, score) for value, score in zip(values, scores, strict=True) if _is_number(value)], dtype=float
        )
        if len(pairs) > 1 and all(pairs.std(axis=0) > 0):
            rows.append([key, round(float(np.corrcoef(pairs.T)[0, 1]), 3)])
    return f"correlation with {target}", ["key", target], rows


def _comparer(config: Config, runs: Sequence[OfflineRun]) -> Reading:
    """One row per run, with the keys of the configuration that differ."""
    keys = _differing(runs)
    rows = [[_name(run), *(flatten(run.config).get(key) for key in keys)] for run in runs]
    return "run comparer, differences", ["run", *keys], rows


def _media(config: Config, runs: Sequence[OfflineRun]) -> Reading:
    keys = config["mediaKeys"]
    rows = [[_name(run), *(run.summary.get(f"{key}.{side}") for key in keys for side in ("width", "height"))]
            for run in runs if all(f"{key}.path" in run.summary for key in keys)]  # fmt: skip
    columns = [f"{key}.{side}" for key in keys for side in ("width", "height")]
    return config["chartTitle"], ["run", *columns], rows


def _table(config: Config, runs: Sequence[OfflineRun]) -> Reading:
    key = config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"]
    rows = [[_name(run), run.summary[f"{key}.ncols"], run.summary[f"{key}.nrows"]]
            for run in runs if f"{key}.path" in run.summary]  # fmt: skip
    return key, ["run", f"{key}.ncols", f"{key}.nrows"], rows


READERS: dict[str, Callable[[Config, Sequence[OfflineRun]], Reading]] = {
    "Scatter Plot": _scatter,
    "Bar Chart": _bars,
    "Run History Line Plot": _lines,
    "Parallel Coordinates Plot": _parallel,
    "Parameter Importance": _importance,
    "Run Comparer": _comparer,
    "Media Browser": _media,
    "Weave": _table,
}


def _name(run: OfflineRun) -> str:
    return f"{run.run['display_name']} {run.run['run_id']}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _differing(runs: Sequence[OfflineRun]) -> list[str]:
    """Keys of the configurations, W&B's own left out, that are not the same in all pruned runs."""
    configs = [
        {key: repr(value) for key, value in flatten(run.config).items()}
        for run in runs
        if not is_dense(run.config["method"]["name"])  # a teacher differs in all that prunes
    ]
    keys = sorted({key for config in configs for key in config if not key.startswith("_wandb")})
    return [key for key in keys if len({config.get(key) for config in configs}) > 1]
