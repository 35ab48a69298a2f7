"""Finished runs as rows: read from run folders, kept in one committed file, filtered by configuration.

A row is a plain mapping, the same whether it comes from a run's folder or from a results file. Imports no torch.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prunekit.config.budget import amount_label
from prunekit.config.errors import ConfigError, shown
from prunekit.config.identity import DENSE, is_dense
from prunekit.config.keys import machine_keys, without_machine_keys
from prunekit.files import atomic_write_text
from prunekit.runs.folder import RunFolder
from prunekit.runs.result import AnyResult, WeightRunResult

Row = Mapping[str, Any]
FORMAT = "prunekit results"
SCHEMA = 1  # of a results file
FIELDS = ("task", "method", "backbone", "budget", "seed", "hash", "status")
NAMES = (*FIELDS, "variant")  # what a line or column may be named by; variant: the method in a few words
# what cannot change a score; runs that differ in nothing else are one configuration
NEUTRAL = ("seed", "bench.", "budget_tolerance", "logger.", "hardware")
# the place of a model whose weights count by their digest
PLACES = {"teacher.path": "own.teacher", "backbone.path": "own.backbone"}


@dataclass(frozen=True)
class Collection:
    """Rows of finished runs; `problems` has a sentence for each run or file that could not be read, `unfinished` the
    folders without a result.
    """

    rows: Sequence[Row] = ()
    problems: Sequence[str] = ()
    unfinished: Sequence[Path] = ()


# -- reading -----------------------------------------------------------------------------------------


def collect(paths: Sequence[str | Path]) -> Collection:
    """Collect all runs below these folders and in these results files, each once, in a stable order.

    Raises:
        ConfigError: a path does not exist.
    """
    whole = _join(_read(path) for path in map(Path, paths))
    once = {(row["task"], row["method"], row["backbone"], row["hash"]): row for row in whole.rows}
    rows = sorted(once.values(), key=lambda row: [str(row[name]) for name in FIELDS])
    return Collection(rows, whole.problems, sorted(whole.unfinished))


def _join(parts: Iterable[Collection]) -> Collection:
    every = list(parts)
    return Collection(
        [row for part in every for row in part.rows],
        [problem for part in every for problem in part.problems],
        [folder for part in every for folder in part.unfinished],
    )


def _read(path: Path) -> Collection:
    if path.is_file():
        return _read_file(path)
    if path.is_dir():
        return _read_folder(path)
    raise ConfigError(
        f"{path} does not exist.\nAllowed: folders of runs, and files written by prunekit table save=FILE.\n"
        "Train something first, as in python train.py, or name the folder that runs_dir= named."
    )


def _read_folder(path: Path) -> Collection:
    """Read every run in a folder or below it."""
    machine = machine_keys()
    folders = {file.parent for name in ("result.json", "manifest.json") for file in path.rglob(name)}
    runs = [folder for folder in sorted(folders) if "_sweeps" not in folder.parts and folder.name != "model"]
    return _join(_read_run(folder, machine) for folder in runs)


def _read_run(folder: Path, machine: Set[str]) -> Collection:
    if not (folder / "result.json").exists():
        return Collection(unfinished=[folder])
    try:
        result, problem = RunFolder(folder, "").read_result()
        if result is not None:
            return Collection([row_of(folder, result, machine)])
    except ValueError as error:
        problem = str(error)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        problem = f"{folder}: config.yaml or manifest.json is not as prunekit writes it ({what})"
    return Collection(problems=[str(problem).partition("; ")[0]])


def _read_file(path: Path) -> Collection:
    """Read a results file, or the run whose result.json was named."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return Collection(problems=[f"{path} is not readable as JSON ({error})"])
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        if isinstance(content, dict) and "schema" in content and "method" in content:
            return _read_folder(path.parent)
        return Collection(
            problems=[f"{path} is no results file; {shlex.join(['prunekit', 'table', f'save={path}'])} writes one"]
        )
    if content.get("schema") != SCHEMA:
        return Collection(problems=[f"{path} has schema {content.get('schema')}, this prunekit reads {SCHEMA}"])
    rows, problems = [], []
    for number, row in enumerate(content.get("runs", []), start=1):
        if not isinstance(row, dict) or (lacking := {*FIELDS, "metric", "score", "flops"} - set(row)):
            what = f"lacks {', '.join(sorted(lacking))}" if isinstance(row, dict) else "is no object"
            problems.append(f"{path}: run {number} {what}")
            continue
        config = {**content.get("config", {}), **row.get("config", {})}
        rows.append({**row, "config": {k: v for k, v in config.items() if v != ABSENT}, "source": str(path)})
    return Collection(rows, problems)


def row_of(folder: Path, result: AnyResult, machine: Set[str]) -> dict[str, Any]:
    """Return what a table or a report needs of a finished run; keys of `machine` are left out of its configuration.

    Raises:
        KeyError: the configuration or the manifest lacks something; an older prunekit wrote it.
    """
    config = _read_yaml(folder / "config.yaml")
    manifest = RunFolder(folder, "").manifest()
    score, flops = result.score, result.flops
    own = (
        {
            "variant": result.variant,
            "peak_memory_mib": result.peak_memory_mib,
            "sparsity": result.sparsity.to_json(),
        }
        if isinstance(result, WeightRunResult)
        else {}
    )
    label = amount_label(config) if "budget" in config else folder.parent.name
    return {
        "task": result.task,
        "method": result.method,
        "backbone": result.backbone,
        "budget": DENSE if is_dense(result.method) else label,
        "seed": result.seed,
        "hash": result.hash,
        "status": result.status,
        "metric": score.metric,
        "split": score.split,
        "rows": score.rows,
        "score": score.pruned,
        "dense": score.dense,
        "validation": score.validation,
        "scores": dict(score.pruned_all or {}),
        "dense_scores": dict(score.dense_all or {}),
        "asked": result.budget.asked,
        "reached": result.budget.reached,
        "flops": {
            "vs_unpadded": flops.flops_vs_unpadded,
            "vs_padded": flops.flops_vs_padded,
            "pruned_g": flops.pruned_g,
            "dense_g": flops.dense_unpadded_g,
        },
        "tokens_per_layer": [round(float(count), 2) for count in result.tokens_per_layer],
        "mean_length": round(float(result.mean_length), 2),
        "speed": [
            {
                "batch_size": row.batch_size,
                "vs_packed": row.speedup_vs_packed,
                "vs_padded": row.speedup_vs_padded,
                "noise": 1.0 if row.control is None else row.control,
            }
            for row in result.speed
        ],
        "seconds": round(float((result.seconds or {}).get("total", 0.0)), 1),
        "data": manifest.get("data_fingerprint", "")[:16] or None,
        "teacher": (manifest.get("teacher") or {}).get("weights_sha256", "")[:16] or None,
        "commit": ((manifest.get("git") or {}).get("commit") or "")[:12] or None,
        "hardware": manifest.get("cpu"),
        "command": manifest.get("command") or result.command,
        **own,
        "config": without_machine_keys(config, machine),
        "source": str(folder),
    }


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


# -- the committed file ------------------------------------------------------------------------------

ABSENT = "<absent>"


def save(rows: Sequence[Row], path: Path) -> None:
    """Write rows into one file, a run per line; what most runs have in common is written once, at the top."""
    configs = [dict(row["config"]) for row in rows]
    keys = sorted({key for config in configs for key in config})
    common: dict[str, Any] = {}
    for key in keys:
        values = Counter(json.dumps(config.get(key, ABSENT)) for config in configs)
        common[key] = json.loads(values.most_common(1)[0][0])
    lines = []
    for row, config in zip(rows, configs, strict=True):
        own = {key: config.get(key, ABSENT) for key in keys if config.get(key, ABSENT) != common[key]}
        kept = {key: _round(value) for key, value in row.items() if key not in ("source", "config", "command")}
        lines.append(json.dumps({**kept, "config": own}, ensure_ascii=False))
    head = json.dumps({"format": FORMAT, "schema": SCHEMA, "config": common}, ensure_ascii=False)
    atomic_write_text(path, head[:-1] + ', "runs": [\n' + ",\n".join(lines) + "\n]}\n")


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _round(entry) for key, entry in value.items()}
    return [_round(entry) for entry in value] if isinstance(value, list) else value


# -- choosing ----------------------------------------------------------------------------------------


def value_of(row: Row, name: str) -> Any:
    """Return a field of a row, or a key of its configuration; None where the run has no such key."""
    if name == "variant":
        return row.get("variant", row["method"])
    return row[name] if name in FIELDS else row["config"].get(name)


def check_fields(rows: Iterable[Row], names: Iterable[str], typed: str = "") -> None:
    """Check that each name is a field, or a key of some run's configuration; raises ConfigError.

    `typed` comes before the names on the command line, such as `rows=`.
    """
    keys = {key for row in rows for key in row["config"]}
    for name in names:
        if name not in NAMES and name not in keys:
            ends = [key for key in sorted(keys) if key.rpartition(".")[2] == name]
            near = ends or difflib.get_close_matches(name, [*NAMES, *sorted(keys)], n=1, cutoff=0.5)
            advice = f"Did you mean {' or '.join(near[:3])}?" if near else "python train.py --cfg job prints every key."
            raise ConfigError(
                f"{typed}{name}: no run has it.\n"
                f"Allowed: {', '.join(NAMES)}, and keys of the configuration, as in trainer.lr.\n{advice}"
            )


def select(rows: Sequence[Row], conditions: Mapping[str, Sequence[str]]) -> list[Row]:
    """Select the rows that meet all conditions; a value may hold * and ?.

    A dense run has neither a budget nor a method's options, and passes conditions on them.

    Raises:
        ConfigError: an unknown name, or a value that no run has.
    """
    check_fields(rows, conditions)
    for name, wanted in conditions.items():
        present = sorted({shown(value_of(row, name)) for row in rows})
        for value in wanted:
            if not any(_is_same(known, value) for known in present):
                raise ConfigError(
                    f"{name}={value}: no run has it.\nAllowed: {', '.join(present[:20])}.\n"
                    "Choose among these, or read another folder."
                )
    return [row for row in rows if all(_meets(row, name, wanted) for name, wanted in conditions.items())]


def _meets(row: Row, name: str, wanted: Sequence[str]) -> bool:
    if is_dense(row["method"]) and (name == "budget" or name.startswith("method.")):
        return True
    return any(_is_same(shown(value_of(row, name)), value) for value in wanted)


def _is_same(value: str, wanted: str) -> bool:
    if value == wanted or fnmatch.fnmatchcase(value, wanted):
        return True
    try:
        return float(value) == float(wanted)
    except ValueError:
        return False


def _counting_keys(row: Row) -> dict[str, Any]:
    """Return the part of a configuration that can change a score and is no seed; a null key counts as absent."""
    return {
        key: value
        for key, value in row["config"].items()
        # a method's own seed that follows the run's makes no other configuration
        if value is not None
        and not key.startswith(NEUTRAL)
        and row["config"].get(PLACES.get(key, "")) is None
        and not (key.endswith(".seed") and value == row["seed"])
    }


def variant(row: Row) -> str:
    """Return a text that identifies the configuration of a run apart from its seed, by the keys that count."""
    place = [row["task"], row["method"], row["backbone"], row["budget"]]
    return json.dumps([*place, _counting_keys(row)], sort_keys=True, default=str)


def differences(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the fields, or else the keys, in which the configurations of runs differ, with their values."""
    fields = ("task", "method", "backbone", "budget")
    configs = [_counting_keys(row) for row in rows]
    keys = sorted({key for config in configs for key in config})
    for values_of in (
        {name: sorted({str(row[name]) for row in rows}) for name in fields},
        {key: sorted({shown(config.get(key)) for config in configs}) for key in keys},
    ):
        if different := {name: values for name, values in values_of.items() if len(values) > 1}:
            return different
    return {}


def one_per_seed(rows: Sequence[Row]) -> list[Row]:
    """Return one run per configuration and seed: preferably one whose speed was measured."""
    chosen: dict[tuple[str, Any], Row] = {}
    for row in rows:
        key = (variant(row), row["seed"])
        if key not in chosen or len(row["speed"]) > len(chosen[key]["speed"]):
            chosen[key] = row
    return list(chosen.values())


def with_teachers(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Return the rows with one dense run per task, backbone and seed: the one that pruning started from.

    Where its folder is missing, its score is taken from the runs that started from it. The second part has a sentence
    for each task, backbone and seed whose runs started from different teachers.
    """
    pruned = [row for row in rows if not is_dense(row["method"])]
    dense = [row for row in rows if is_dense(row["method"])]
    places = {(row["task"], row["backbone"], row["seed"]): None for row in rows}
    kept: list[Row] = []
    problems = []
    for task, backbone, seed in places:
        here, started = (
            [row for row in some if (row["task"], row["backbone"], row["seed"]) == (task, backbone, seed)]
            for some in (dense, pruned)
        )
        scores = Counter(round(row["dense"], 6) for row in started if row["dense"] is not None)
        if len(scores) > 1:
            listed = ", ".join(
                f"{100 * score:.2f} ({count} run{'s' * (count > 1)})" for score, count in scores.most_common()
            )
            problems.append(f"{task}, {backbone}, seed {seed}: runs start from different teachers: {listed}")
        taught = [row for row in here if round(row["score"], 6) in scores]
        if taught:
            top = scores.most_common(1)[0][0]
            here = [row for row in taught if round(row["score"], 6) == top] or taught
        elif not here and len(scores) == 1:
            here = [_teacher_row(started[0])]
        kept += here
    return [*kept, *pruned], problems


def _teacher_row(row: Row) -> Row:
    """Build the row of the dense run that a pruning run started from, from what the pruning run knows of it."""
    cost = {**row["flops"], "vs_unpadded": 1.0, "pruned_g": row["flops"]["dense_g"]}
    cost["vs_padded"] = row["flops"]["vs_padded"] * row["flops"]["pruned_g"] / row["flops"]["dense_g"]
    config = {key: value for key, value in row["config"].items() if key.startswith(("task.", "backbone.", "data."))}
    layers = len(row["tokens_per_layer"])
    return {
        **row,
        **{"method": DENSE, "budget": DENSE, "status": "done", "hash": row["teacher"] or "teacher", "config": config},
        **{"variant": DENSE, "score": row["dense"], "scores": row.get("dense_scores", {}), "dense_scores": {}},
        **{"validation": None, "asked": None, "reached": 1.0, "flops": cost, "peak_memory_mib": None, "sparsity": None},
        **{"tokens_per_layer": [row["mean_length"]] * layers, "speed": []},
        **{"source": "", "command": None, "seconds": 0.0},
    }
