"""The numbers of the report page's token explorer: which tokens each run kept, layer by layer."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prunekit.report.rows import Row
from prunekit.results import examples
from prunekit.results.examples import Examples

COMMON = 5  # times that a word must occur to be listed
WORDS = 20
PAGE_BYTES = 1_700_000  # of texts and scores in the explorer; the rest of a page is small

# for 64 levels of a score, and for 64 layers
SIGNS = string.digits + string.ascii_uppercase + string.ascii_lowercase + "-_"


def stores_same_texts(one: Examples, other: Examples) -> bool:
    """Return whether the texts that both store are the same tokens; one may store more of them."""
    stop = min(len(one.ids), len(other.ids))
    return bool((one.ids[:stop] == other.ids[:stop]).all())


def explorer(
    groups: Sequence[Sequence[Row]], stored: Mapping[int, Examples | None], texts: int
) -> list[dict[str, Any]]:
    """Return texts with their tokens, and for one seed of each configuration each token's depth and scores."""
    places = _first_seeds(groups, stored)
    if not places or texts == 0:
        return []
    most, size = texts // len(places), PAGE_BYTES // len(places)
    return [_place(key, members, most, size) for key, members in places.items()]


def _first_seeds(
    groups: Sequence[Sequence[Row]], stored: Mapping[int, Examples | None]
) -> dict[tuple[str, str, bytes], list[tuple[int, Row, Examples]]]:
    """Return the first seed with stored tokens of each configuration, by task, backbone and test rows.

    All are cut to as many texts as each of them stores.
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
        short = [(number, row, found.first_texts(most)) for number, row, found in members]
        alike[key] = [one for one in short if stores_same_texts(one[2], short[0][2])]
    return alike


def _place(
    key: tuple[str, str, bytes], members: Sequence[tuple[int, Row, Examples]], most: int, size: int
) -> dict[str, Any]:
    """Return as many texts of a task and backbone as fit in `size` bytes, first those with a changed prediction."""
    task, backbone, _ = key
    first = members[0][2]
    changed = np.zeros(len(first.index), int)
    for _, _, found in members:
        changed += found.predicted[found.index] != found.dense[found.index]
    pieces = [str(piece).replace(" ", "␣") for piece in first.pieces]
    fitting: list[int] = []
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
        fitting.append(number)
    fitting.sort()
    rows = first.index[fitting]
    words = _words(first)
    return {
        "task": task,
        "backbone": backbone,
        "classes": list(first.classes),
        "layers": first.layers,
        "stored": len(first.index),
        "rows": rows.tolist(),
        "labels": _values(first.labels[rows], first),
        "truths": [first.outputs(row)[0] for row in rows.tolist()],
        "tokens": [
            " ".join(pieces[i] for i in np.searchsorted(first.piece_ids, first.ids[first.text(number)]))
            for number in fitting
        ],
        "runs": [_run(config, row, found, fitting, words) for config, row, found in members],
    }


def _values(values: np.ndarray, found: Examples) -> list[float | int]:
    return [int(value) if found.classification else round(float(value), 3) for value in values]


def _run(
    config: int, row: Row, found: Examples, texts: Sequence[int], words: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> dict[str, Any]:
    """Return the predictions of a run on these texts, and each token's depth and scores as `SIGNS`."""
    rows = found.index[list(texts)]
    levels = np.clip((found.scores.astype(int) - examples.MIDDLE) // 2 + 32, 0, 63)
    signs = np.array(list(SIGNS))[levels]
    depths, scores = [], []
    for number in texts:
        where = found.text(number)
        depth = found.depth[where]
        depths.append("".join(SIGNS[min(int(value), 63)] for value in depth))
        scores.append("".join("".join(signs[where, layer][depth >= layer]) for layer in range(found.layers)))
    return {
        "config": config,
        "seed": row["seed"],
        "predicted": _values(found.predicted[rows], found),
        "dense": _values(found.dense[rows], found),
        "said": [found.outputs(row)[1:] for row in rows.tolist()] if len(found.answers) else None,
        "depth": depths,
        "scores": scores,
        **_word_types(found, words),
    }


def words_of(pieces: Sequence[str], special: Sequence[bool]) -> list[int | None]:
    """Return for each piece of a text the number of its word, None for special tokens; understands ##, Ġ and ▁."""
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
    """Return the tokens that are words or parts of words, the start of each word among them, and the words' texts."""
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
    """Return the words dropped earliest and latest: word, occurrences, mean share of layers its best piece passes."""
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
