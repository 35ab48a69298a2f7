"""The token explorer of the report page: which tokens each run kept, layer by layer."""

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

SIGNS = (
    string.digits + string.ascii_uppercase + string.ascii_lowercase + "-_"
)  # a score's 64 levels, a depth's 64 layers


def _same_texts(one: Examples, other: Examples) -> bool:
    """Whether the texts that both store are the same tokens; one may store more of them."""
    stop = min(len(one.ids), len(other.ids))
    return bool((one.ids[:stop] == other.ids[:stop]).all())


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
