"""The numbers of a report: everything that its page draws, as plain JSON. Needs numpy, not torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np

from prunekit import __version__
from prunekit.config.identity import is_dense
from prunekit.report.comparison import Cell, mark_best
from prunekit.report.explorer import SIGNS, explorer, stores_same_texts
from prunekit.report.fairness import CHECKED, GRAVITIES, lint
from prunekit.report.rows import Collection, Row, differences, one_per_seed, variant, with_teachers
from prunekit.report.seeds import summary
from prunekit.report.table import one_metric, rank
from prunekit.results import examples
from prunekit.results.curves import budget_over_steps
from prunekit.results.examples import Examples
from prunekit.runs.folder import RunFolder

BUCKETS = 4  # of equally many texts
POINTS = 60  # of a curve


def study(collection: Collection, title: str, texts: int = 500) -> dict[str, Any]:
    """Compute what a page about these runs shows, with at most `texts` texts in the explorer.

    What cannot be read is left out, and listed in "problems".
    """
    runs, mixed = one_metric(one_per_seed(collection.rows))
    runs, teachers = with_teachers(runs)
    groups = _configurations(runs)
    place = {id(row): number for number, group in enumerate(groups) for row in group}
    loaded = {id(row): _examples(row) for row in runs}
    stored = {key: examples_of for key, (examples_of, _) in loaded.items()}
    unreadable = [problem for _, problem in loaded.values() if problem is not None]
    return {
        "title": title,
        "version": __version__,
        "tasks": sorted({row["task"] for row in runs}),
        "hardware": sorted({row["hardware"] for row in runs if row["hardware"]}),
        "configs": [_config(group, groups) for group in groups],
        "marks": _marks(groups),
        "runs": [_run(row, place[id(row)], stored[id(row)]) for group in groups for row in group],
        "lint": [vars(difference) | {"gravity": difference.gravity} for difference in lint(collection.rows)],
        "checked": CHECKED,
        "gravities": GRAVITIES,
        "problems": [*collection.problems, *mixed, *teachers, *unreadable],
        "unfinished": [_unfinished(folder) for folder in collection.unfinished],
        "lengths": _by_task(groups, stored, _lengths),
        "labels": _by_task(groups, stored, _labels),
        "agreement": _by_task(groups, stored, _agreement),
        "explorer": explorer(groups, stored, texts),
        "signs": SIGNS,
    }


# -- runs and configurations -----------------------------------------------------------------------------


def _configurations(runs: Sequence[Row]) -> list[list[Row]]:
    """Group runs that differ in nothing but the seed; in the order of tables."""
    groups: dict[str, list[Row]] = {}
    for row in runs:
        groups.setdefault(variant(row), []).append(row)
    names = ("task", "backbone", "budget", "method")

    def order(group: list[Row]) -> tuple[str, bool, list[Any]]:
        first, own = group[0], _own_keys(group[0], groups.values())
        fields = [rank(name, str(first[name]), ()) for name in names]
        fields += [rank(key, str(first["config"].get(key)), ()) for key in own]
        return first["task"], not is_dense(first["method"]), fields

    ordered = sorted(groups.values(), key=order)
    return [sorted(group, key=lambda row: row["seed"]) for group in ordered]


def _own_keys(first: Row, groups: Iterable[Sequence[Row]]) -> list[str]:
    """Return the keys in which a configuration differs from others of its task, method, backbone and budget."""
    alike = [
        other[0] for other in groups if all(other[0][n] == first[n] for n in ("task", "method", "backbone", "budget"))
    ]
    return list(differences(alike)) if len(alike) > 1 else []


def _config(group: Sequence[Row], groups: Sequence[Sequence[Row]]) -> dict[str, Any]:
    first = group[0]
    own = ", ".join(f"{key.removeprefix('method.')}={first['config'].get(key)}" for key in _own_keys(first, groups))
    return {
        **{name: first[name] for name in ("task", "method", "backbone", "budget", "metric", "split", "rows")},
        "is_dense": is_dense(first["method"]),
        "own": own,
        "seeds": [row["seed"] for row in group],
        "score": _summary(group, lambda row: 100 * row["score"]),
        "drop": _summary(group, lambda row: None if row["dense"] is None else 100 * (row["score"] - row["dense"])),
        "reduction": _summary(group, lambda row: row["flops"]["vs_unpadded"]),
        "padded": _summary(group, lambda row: row["flops"]["vs_padded"]),
        "kept": [round(float(kept), 4) for kept in np.mean([_kept_shares(row) for row in group], axis=0)],
        "missed": sum(row["status"] == "budget_missed" for row in group),
    }


def _kept_shares(row: Row) -> np.ndarray:
    """Return the share of its tokens that each layer of a run keeps."""
    return np.array(row["tokens_per_layer"]) / row["mean_length"]


def _summary(group: Sequence[Row], read: Callable[[Row], Any]) -> dict[str, Any] | None:
    values = [value for row in group if (value := read(row)) is not None]
    if not values:
        return None
    seeds = summary(values)
    return {"n": seeds.n, "mean": seeds.mean, "sd": seeds.sd, "half": seeds.half}


def _marks(groups: Sequence[Sequence[Row]]) -> list[dict[str, Any]]:
    """Mark the best configuration of each task, backbone and budget, with the others' p against it, as in tables."""
    rows = ("task", "backbone", "budget")
    heads = [tuple(str(group[0][name]) for name in rows) for group in groups]
    cells = [Cell({row["seed"]: row["score"] for row in group}, dense=is_dense(group[0]["method"])) for group in groups]
    return [{"best": cell.best, "p": cell.p} for cell in mark_best(rows, heads, cells)[0]]


def _run(row: Row, config: int, stored: Examples | None) -> dict[str, Any]:
    folder = Path(row["source"])
    found = {
        "config": config,
        **{name: row[name] for name in ("seed", "hash", "status", "asked", "reached", "seconds", "commit")},
        "command": row.get("command"),  # a results file keeps none
        "score": 100 * row["score"],
        "dense": None if row["dense"] is None else 100 * row["dense"],
        "reduction": row["flops"]["vs_unpadded"],
        "speed": row["speed"],
    }
    if (folder / "metrics.jsonl").is_file() and not is_dense(row["method"]):
        try:
            curves = budget_over_steps(folder / "metrics.jsonl", row["asked"])
            found["curves"] = {name: _thin(curves[name]) for name in ("target", "expected", "measured")}
        except ValueError:
            pass  # a damaged record: the run's own result stands without it
    if stored is not None and stored.classification and not is_dense(row["method"]):
        before, after = stored.dense == stored.labels, stored.predicted == stored.labels
        found["flips"] = {
            "rows": len(before),
            "lost": int((before & ~after).sum()),
            "won": int((~before & after).sum()),
            "both_wrong": int((~before & ~after).sum()),
        }
    return found


def _thin(points: Sequence[tuple[int, Any]]) -> list[list[float | int]]:
    """Return at most `POINTS` points of a curve, including its ends."""
    chosen = np.unique(np.linspace(0, len(points) - 1, min(POINTS, len(points))).round().astype(int))
    return [[points[i][0], round(float(points[i][1]), 4)] for i in chosen.tolist()]


def _examples(row: Row) -> tuple[Examples | None, str | None]:
    """Load what a run stored of its test texts; or None and why it cannot be read."""
    try:
        return examples.load(Path(row["source"])), None
    except ValueError as error:
        return None, str(error)


def _unfinished(folder: Path) -> dict[str, Any]:
    """Describe a run without a result: its state, and the last step in its record."""
    step = None
    try:
        lines = (folder / "metrics.jsonl").read_bytes().splitlines()[-1:]
        step = json.loads(lines[0]).get("step") if lines else None
    except (OSError, ValueError, AttributeError):
        pass
    try:
        command = json.loads((folder / "manifest.json").read_text(encoding="utf-8")).get("command")
    except (OSError, ValueError, AttributeError):
        command = None
    state = "running, or killed" if (folder / ".lock.owner").exists() else "stopped"
    if (failure := RunFolder(folder, "").failure()) is not None:
        state = (
            f"failed: {str(failure.get('message', '')).splitlines()[0][:120]}" if failure.get("message") else "failed"
        )
    return {"folder": "/".join(folder.parts[-5:]), "state": state, "step": step, "command": command}


# -- what happened to the test texts -----------------------------------------------------------------------


def _by_task(
    groups: Sequence[Sequence[Row]],
    stored: Mapping[int, Examples | None],
    make: Callable[[list[tuple[int, list[tuple[Row, Examples]]]]], Any],
) -> list[dict[str, Any]]:
    """Apply `make` to the pruned configurations with stored examples, per task and backbone, on the same test rows."""
    places: dict[tuple[str, str, bytes], list[tuple[int, list[tuple[Row, Examples]]]]] = {}
    for number, group in enumerate(groups):
        if is_dense(group[0]["method"]):
            continue
        for row in group:
            if (found := stored[id(row)]) is None:
                continue
            key = (row["task"], row["backbone"], found.lengths.tobytes() + found.labels.tobytes())
            members = places.setdefault(key, [])
            if not members or members[-1][0] != number:
                members.append((number, []))
            members[-1][1].append((row, found))
    made = []
    for (task, backbone, _), members in places.items():
        if (result := make(members)) is not None:
            made.append({"task": task, "backbone": backbone, **result})
    return made


Members = list[tuple[int, list[tuple[Row, Examples]]]]


def _shares(members: Members, number: np.ndarray, count: int) -> list[dict[str, Any]]:
    """Return the share of right answers in each of `count` groups of rows, per configuration and its dense models."""

    def share(right: np.ndarray) -> np.ndarray:
        return np.bincount(number, right, count) / np.maximum(np.bincount(number, minlength=count), 1)

    found = []
    for config, some in members:
        pruned = np.mean([share(one.predicted == one.labels) for _, one in some], axis=0)
        dense = np.mean([share(one.dense == one.labels) for _, one in some], axis=0)
        found.append({"config": config, "pruned": _percent(pruned), "dense": _percent(dense)})
    return found


def _percent(shares: np.ndarray) -> list[float]:
    return [round(100 * float(share), 2) for share in shares]


def _lengths(members: Members) -> dict[str, Any] | None:
    """Return right answers by length of the text, in quarters of equally many texts."""
    first = members[0][1][0][1]
    if not first.classification:
        return None
    lengths = first.lengths.astype(int)
    edges = np.unique(np.ceil(np.quantile(lengths, np.linspace(0, 1, BUCKETS + 1))))[1:-1]
    number = np.digitize(lengths, edges)
    number = np.unique(number, return_inverse=True)[1]
    count = int(number.max()) + 1
    buckets = [lengths[number == place] for place in range(count)]
    names = [f"{here.min()}" if here.min() == here.max() else f"{here.min()}-{here.max()}" for here in buckets]
    return {"names": names, "rows": [len(here) for here in buckets], "configs": _shares(members, number, count)}


def _labels(members: Members) -> dict[str, Any] | None:
    """Return right answers by true label."""
    first = members[0][1][0][1]
    if not first.classification:
        return None
    labels = first.labels.astype(int)
    count = len(first.classes)
    rows = np.bincount(labels, minlength=count)
    occur = np.unique(labels)  # a class that no text has, such as "wrong" of answers, is not shown
    number = np.searchsorted(occur, labels)
    names = [first.classes[place] for place in occur.tolist()]
    return {"names": names, "rows": rows[occur].tolist(), "configs": _shares(members, number, len(occur))}


def overlap(one: Examples, other: Examples) -> float | None:
    """Return the mean over texts and layers of |both keep| / |either keeps|, without special tokens.

    1 = the same tokens are kept. Layers of a text that both keep whole do not count; None where none is left.
    """
    ends = min(len(one.index), len(other.index))
    if ends == 0:
        return None
    stop = int(one.offsets[ends])
    ids = one.ids[:stop]
    word = ~one.special[np.searchsorted(one.piece_ids, ids)].astype(bool)
    starts = one.offsets[:ends]
    words = np.add.reduceat(word.astype(int), starts)
    values = []
    for layer in range(one.layers):
        here, there = ((found.depth[:stop] > layer) & word for found in (one, other))
        both = np.add.reduceat((here & there).astype(int), starts)
        either = np.add.reduceat((here | there).astype(int), starts)
        counts = (either > 0) & (both < words)  # where both keep everything there was no choice
        values.append(both[counts] / either[counts])
    together = np.concatenate(values)
    return float(together.mean()) if len(together) else None


def _agreement(members: Members) -> dict[str, Any] | None:
    """Return the overlap of every two configurations of a budget, seed by seed; of one with itself, across seeds."""
    pairs = []
    for (left, some), (right, others) in combinations_with_replacement(members, 2):
        if some[0][0]["budget"] != others[0][0]["budget"]:
            continue
        values = [
            overlap(one, other)
            for row, one in some
            for row_of_other, other in others
            if (row["seed"] < row_of_other["seed"] if left == right else row["seed"] == row_of_other["seed"])
            and stores_same_texts(one, other)
        ]
        known = [value for value in values if value is not None]
        if known:
            pairs.append([left, right, round(float(np.mean(known)), 4)])
    return {"pairs": pairs} if pairs else None
