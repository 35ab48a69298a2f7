"""The numbers of a report: everything its page draws, as plain JSON. Needs numpy, not torch."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np

from prunekit import __version__
from prunekit.report import examples
from prunekit.report.curves import budget_over_steps
from prunekit.report.examples import Examples
from prunekit.report.fairness import CHECKED, lint
from prunekit.report.results import DENSE, Found, Row, differences, one_per_seed, variant, with_teachers
from prunekit.report.seeds import summary
from prunekit.report.table import Cell, compared, one_metric, rank
from prunekit.runs import RunFolder

BUCKETS = 4  # of equally many texts
POINTS = 60  # of a curve
COMMON = 5  # times that a word must occur to be listed
WORDS = 20
PAGE_BYTES = 1_700_000  # of texts and scores in the explorer; the rest of a page is small
SIGNS = (
    string.digits + string.ascii_uppercase + string.ascii_lowercase + "-_"
)  # a score's 64 levels, a depth's 64 layers


def study(found: Found, title: str, texts: int = 500) -> dict[str, Any]:
    """What a page about these runs shows; `texts` are at most so many in the explorer.

    Anything that cannot be read is said in its "problems", and left out.
    """
    problems = list(found.problems)
    runs, mixed = one_metric(one_per_seed(found.rows))
    runs, other = with_teachers(runs)
    problems += mixed + other
    groups = _configurations(runs)
    place = {id(row): number for number, group in enumerate(groups) for row in group}
    stored = {id(row): _examples(row, problems) for row in runs}
    return {
        "title": title,
        "version": __version__,
        "tasks": sorted({row["task"] for row in runs}),
        "hardware": sorted({row["hardware"] for row in runs if row["hardware"]}),
        "configs": [_config(group, groups) for group in groups],
        "marks": _marks(groups),
        "runs": [_run(row, place[id(row)], stored[id(row)]) for group in groups for row in group],
        "lint": [vars(unfair) for unfair in lint(found.rows)],
        "checked": CHECKED,
        "problems": problems,
        "unfinished": [_unfinished(folder) for folder in found.unfinished],
        "lengths": _by_task(groups, stored, _lengths),
        "labels": _by_task(groups, stored, _labels),
        "agreement": _by_task(groups, stored, _agreement),
        "explorer": _explorer(groups, stored, texts),
        "signs": SIGNS,
    }


# -- runs and configurations -----------------------------------------------------------------------------


def _configurations(runs: Sequence[Row]) -> list[list[Row]]:
    """Runs that differ in nothing but the seed, together; in the order of tables."""
    groups: dict[str, list[Row]] = {}
    for row in runs:
        groups.setdefault(variant(row), []).append(row)
    names = ("task", "backbone", "budget", "method")

    def order(group: list[Row]) -> list[Any]:
        first, own = group[0], _own_keys(group[0], groups.values())
        return [rank(name, str(first[name]), ()) for name in names] + [
            rank(key, str(first["config"].get(key)), ()) for key in own
        ]

    ordered = sorted(groups.values(), key=lambda group: (group[0]["task"], group[0]["method"] != DENSE, order(group)))
    return [sorted(group, key=lambda row: row["seed"]) for group in ordered]


def _own_keys(first: Row, groups: Iterable[Sequence[Row]]) -> list[str]:
    """What tells a configuration from those of its task, method, backbone and budget."""
    alike = [
        other[0] for other in groups if all(other[0][n] == first[n] for n in ("task", "method", "backbone", "budget"))
    ]
    return list(differences(alike)) if len(alike) > 1 else []


def _config(group: Sequence[Row], groups: Sequence[Sequence[Row]]) -> dict[str, Any]:
    first = group[0]
    own = ", ".join(f"{key.removeprefix('method.')}={first['config'].get(key)}" for key in _own_keys(first, groups)[:3])
    return {
        **{name: first[name] for name in ("task", "method", "backbone", "budget", "metric", "split", "rows")},
        "own": own,
        "seeds": [row["seed"] for row in group],
        "score": _summary(group, lambda row: 100 * row["score"]),
        "drop": _summary(group, lambda row: None if row["dense"] is None else 100 * (row["score"] - row["dense"])),
        "reduction": _summary(group, lambda row: row["flops"]["vs_unpadded"]),
        "padded": _summary(group, lambda row: row["flops"]["vs_padded"]),
        "kept": [round(float(kept), 4) for kept in np.mean([_kept(row) for row in group], axis=0)],
        "missed": sum(row["status"] == "budget_missed" for row in group),
    }


def _kept(row: Row) -> np.ndarray:
    return np.array(row["tokens_per_layer"]) / row["mean_length"]


def _summary(group: Sequence[Row], read: Callable[[Row], Any]) -> dict[str, Any] | None:
    values = [value for row in group if (value := read(row)) is not None]
    if not values:
        return None
    found = summary(values)
    return {"n": found.n, "mean": found.mean, "sd": found.sd, "half": found.half}


def _marks(groups: Sequence[Sequence[Row]]) -> list[dict[str, Any]]:
    """The best configuration of each task, backbone and budget, and the others' p against it, as in tables."""
    rows = ("task", "backbone", "budget")
    heads = [tuple(str(group[0][name]) for name in rows) for group in groups]
    cells = [Cell({row["seed"]: row["score"] for row in group}, dense=group[0]["method"] == DENSE) for group in groups]
    return [{"best": cell.best, "p": cell.p} for cell in compared(rows, heads, cells)]


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
    if (folder / "metrics.jsonl").is_file() and row["method"] != DENSE:
        try:
            curves = budget_over_steps(folder / "metrics.jsonl", row["asked"])
            found["curves"] = {name: _thin(curves[name]) for name in ("target", "expected", "measured")}
        except ValueError:
            pass  # a damaged record: the run's own result stands without it
    if stored is not None and stored.classification and row["method"] != DENSE:
        before, after = stored.dense == stored.labels, stored.predicted == stored.labels
        found["flips"] = {
            "rows": len(before),
            "lost": int((before & ~after).sum()),
            "won": int((~before & after).sum()),
            "both_wrong": int((~before & ~after).sum()),
        }
    return found


def _thin(points: Sequence[tuple[int, Any]]) -> list[list[float | int]]:
    """At most so many points of a curve, its ends among them."""
    chosen = np.unique(np.linspace(0, len(points) - 1, min(POINTS, len(points))).round().astype(int))
    return [[points[i][0], round(float(points[i][1]), 4)] for i in chosen.tolist()]


def _examples(row: Row, problems: list[str]) -> Examples | None:
    try:
        return examples.load(Path(row["source"]))
    except ValueError as error:
        problems.append(str(error))
        return None


def _unfinished(folder: Path) -> dict[str, Any]:
    """A run without a result: how far it came, by its record."""
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
    """`make` of the pruned configurations with stored examples, of each task and backbone on the same test rows."""
    places: dict[tuple[str, str, bytes], list[tuple[int, list[tuple[Row, Examples]]]]] = {}
    for number, group in enumerate(groups):
        if group[0]["method"] == DENSE:
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
    """Share of right answers of each configuration in each of `count` groups of rows, and of the dense models."""

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
    """Right answers by length of the text, in quarters of equally many texts."""
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
    """Right answers by true label."""
    first = members[0][1][0][1]
    if not first.classification:
        return None
    labels = first.labels.astype(int)
    count = len(first.classes)
    rows = np.bincount(labels, minlength=count)
    occur = np.unique(labels)  # a class that no text has, as "wrong" of answers, is not shown
    number = np.searchsorted(occur, labels)
    names = [first.classes[place] for place in occur.tolist()]
    return {"names": names, "rows": rows[occur].tolist(), "configs": _shares(members, number, len(occur))}


def overlap(one: Examples, other: Examples) -> float | None:
    """Mean over texts and layers of |both keep| / |either keeps|, special tokens and untouched texts left out.

    1 = the same tokens stay. None where no layer of any text lost a token.
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
        counts = (either > 0) & (both < words)  # where both keep everything nothing was decided
        values.append(both[counts] / either[counts])
    together = np.concatenate(values)
    return float(together.mean()) if len(together) else None


def _same_texts(one: Examples, other: Examples) -> bool:
    """Whether the texts that both store are the same tokens; one may store more of them."""
    stop = min(len(one.ids), len(other.ids))
    return bool((one.ids[:stop] == other.ids[:stop]).all())


def _agreement(members: Members) -> dict[str, Any] | None:
    """Overlap of every two configurations of a budget with the same seed; with itself, of its different seeds."""
    pairs = []
    for (left, some), (right, others) in combinations_with_replacement(members, 2):
        if some[0][0]["budget"] != others[0][0]["budget"]:
            continue
        values = [
            overlap(one, other)
            for row, one in some
            for row_of_other, other in others
            if (row["seed"] < row_of_other["seed"] if left == right else row["seed"] == row_of_other["seed"])
            and _same_texts(one, other)
        ]
        known = [value for value in values if value is not None]
        if known:
            pairs.append([left, right, round(float(np.mean(known)), 4)])
    return {"pairs": pairs} if pairs else None


# -- the token explorer ------------------------------------------------------------------------------------


def _explorer(
    groups: Sequence[Sequence[Row]], stored: Mapping[int, Examples | None], texts: int
) -> list[dict[str, Any]]:
    """Texts with their tokens, and for one seed of each configuration how long each token stayed, with its scores."""
    places = _explored(groups, stored)
    if not places or texts == 0:
        return []
    made = []
    for key, members in places.items():
        made.append(_explored_texts(key, members, texts // len(places), PAGE_BYTES // len(places)))
    return made


def _explored(
    groups: Sequence[Sequence[Row]], stored: Mapping[int, Examples | None]
) -> dict[tuple[str, str, bytes], list[tuple[int, Row, Examples]]]:
    """The first seed with stored tokens of each configuration, by task, backbone and test rows.

    Cut to as many texts as all of them store.
    """
    places: dict[tuple[str, str, bytes], list[tuple[int, Row, Examples]]] = {}
    for number, group in enumerate(groups):
        for row in group:
            found = stored[id(row)]
            if found is not None and len(found.index):
                key = (row["task"], row["backbone"], found.lengths.tobytes() + found.labels.tobytes())
                places.setdefault(key, []).append((number, row, found))
                break
    alike = {}
    for key, members in places.items():
        most = min(len(found.index) for _, _, found in members)
        short = [(number, row, found.first(most)) for number, row, found in members]
        alike[key] = [one for one in short if _same_texts(one[2], short[0][2])]
    return alike


def _explored_texts(
    key: tuple[str, str, bytes], members: Sequence[tuple[int, Row, Examples]], most: int, size: int
) -> dict[str, Any]:
    """As many texts as fit, those first whose prediction pruning changed."""
    task, backbone, _ = key
    first = members[0][2]
    changed = np.zeros(len(first.index), int)
    for _, _, found in members:
        changed += found.predicted[found.index] != found.dense[found.index]
    pieces = [str(piece).replace(" ", "␣") for piece in first.pieces]
    shown: list[int] = []
    for number in np.argsort(changed == 0, kind="stable")[:most].tolist():
        where = first.text(number)
        tokens = where.stop - where.start
        # a token's own text, then per configuration its depth and a sign for each layer that it entered
        size -= sum(len(pieces[i].encode()) + 1 for i in np.searchsorted(first.piece_ids, first.ids[where]))
        size -= sum(
            len(str(text).encode()) for _, _, found in members for text in found.answers[number : number + 1].flat
        )
        size -= (
            sum(tokens + int(np.minimum(found.depth[where] + 1, found.layers).sum()) for _, _, found in members) + 40
        )
        if size < 0:
            break
        shown.append(number)
    shown.sort()
    rows = first.index[shown]
    words = _words(first)
    return {
        "task": task,
        "backbone": backbone,
        "classes": list(first.classes),
        "layers": first.layers,
        "stored": len(first.index),
        "rows": rows.tolist(),
        "labels": _values(first.labels[rows], first),
        "truths": [first.said(row)[0] for row in rows.tolist()],
        "tokens": [
            " ".join(pieces[i] for i in np.searchsorted(first.piece_ids, first.ids[first.text(number)]))
            for number in shown
        ],
        "runs": [_explored_run(config, row, found, shown, words) for config, row, found in members],
    }


def _values(values: np.ndarray, found: Examples) -> list[float | int]:
    return [int(value) if found.classification else round(float(value), 3) for value in values]


def _explored_run(
    config: int, row: Row, found: Examples, shown: Sequence[int], words: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> dict[str, Any]:
    rows = found.index[list(shown)]
    levels = np.clip((found.scores.astype(int) - examples.MIDDLE) // 2 + 32, 0, 63)
    signs = np.array(list(SIGNS))[levels]
    depths, scores = [], []
    for number in shown:
        where = found.text(number)
        depth = found.depth[where]
        depths.append("".join(SIGNS[min(int(value), 63)] for value in depth))
        scores.append("".join("".join(signs[where, layer][depth >= layer]) for layer in range(found.layers)))
    return {
        "config": config,
        "seed": row["seed"],
        "predicted": _values(found.predicted[rows], found),
        "dense": _values(found.dense[rows], found),
        "said": [found.said(row)[1:] for row in rows.tolist()] if len(found.answers) else None,
        "depth": depths,
        "scores": scores,
        **_word_types(found, words),
    }


def words_of(pieces: Sequence[str], special: Sequence[bool]) -> list[int | None]:
    """For each piece of one text the number of its word, None for special tokens; ##, Ġ and ▁ are understood."""
    marked = any(piece.startswith(("Ġ", "▁")) for piece in pieces)
    numbers: list[int | None] = []
    word, fresh = -1, True
    for piece, is_special in zip(pieces, special, strict=True):
        if is_special:
            numbers.append(None)
            fresh = True
            continue
        starts = piece.startswith(("Ġ", "▁")) if marked else not piece.startswith("##")
        if starts or fresh:
            word += 1
        fresh = False
        numbers.append(word)
    return numbers


def _words(found: Examples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens that are words or parts of words, where among these each word starts, and the words' texts."""
    which = np.searchsorted(found.piece_ids, found.ids)
    pieces, special = found.pieces.tolist(), found.special.tolist()
    inside: list[int] = []
    starts: list[int] = []
    texts: list[str] = []
    for number in range(len(found.index)):
        where = found.text(number)
        here = which[where].tolist()
        before: int | None = None
        for at, word in enumerate(words_of([pieces[i] for i in here], [special[i] for i in here])):
            if word is None:
                continue
            if word != before:
                starts.append(len(inside))
                texts.append("")
            before = word
            inside.append(where.start + at)
            texts[-1] += pieces[here[at]].removeprefix("##").lstrip("Ġ▁")
    return np.array(inside, int), np.array(starts, int), np.array(texts, dtype=np.str_)


def _word_types(found: Examples, words: tuple[np.ndarray, np.ndarray, np.ndarray]) -> dict[str, Any]:
    """The words that leave earliest and latest: word, occurrences, mean share of layers passed by its best piece."""
    inside, starts, texts = words
    if not len(starts):
        return {"pruned_words": [], "kept_words": []}
    shares = np.maximum.reduceat(found.depth[inside].astype(float), starts) / found.layers
    types, number, counts = np.unique(texts, return_inverse=True, return_counts=True)
    means = np.bincount(number, shares) / counts
    common: list[list[Any]] = [
        [str(types[i]), int(counts[i]), round(float(means[i]), 3)]
        for i in np.flatnonzero(counts >= COMMON).tolist()
        if types[i]
    ]
    return {
        "pruned_words": sorted(common, key=lambda word: (word[2], -word[1]))[:WORDS],
        "kept_words": sorted(common, key=lambda word: (-word[2], -word[1]))[:WORDS],
    }
