"""Paired tests of two configurations over the test rows that both predicted, for studies with few seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from prunekit.results.examples import Examples

RESAMPLES = 1999  # of the bootstrap: p comes in steps of 0.001
SEED = 0  # the same runs have the same p


def p_over_rows(one: Mapping[int, Examples], other: Mapping[int, Examples], metric: str) -> float | None:
    """Return the two-sided p value for the difference in a metric, over the test rows that both predicted.

    Runs are given by seed. One run each and accuracy: McNemar's test, exact (Psychometrika 12, 1947). Otherwise a
    paired bootstrap over rows: all runs are scored on the same redrawn rows, and their scores averaged over seeds. It
    tests whether these runs would differ on other texts, not whether other seeds would. None where the rows or the
    metric do not allow a test.
    """
    shared = sorted(one.keys() & other.keys())
    left = [one[seed] for seed in shared] or list(one.values())
    right = [other[seed] for seed in shared] or list(other.values())
    runs = [*left, *right]
    if not left or not right or metric not in METRICS or not all(_same_rows(runs[0], run) for run in runs):
        return None
    # in question answering rows are windows, several to a question
    if (metric in OF_CLASSES) != runs[0].classification or len(runs[0].answers):
        return None
    if metric in ("accuracy", "agreement") and len(left) == len(right) == 1:
        return mcnemar(left[0].predicted == left[0].labels, right[0].predicted == right[0].labels)
    return _bootstrap(left, right, METRICS[metric])


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """Return the two-sided p value of two lists of right and wrong answers to the same questions; 1 where equal."""
    # scipy is slow to import, and most tables need no test over rows
    from scipy.stats import binomtest

    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _same_rows(one: Examples, other: Examples) -> bool:
    return (
        one.classes == other.classes
        and np.array_equal(one.labels, other.labels)
        and np.array_equal(one.lengths, other.lengths)
    )


Score = Callable[[np.ndarray, np.ndarray, int], float]


def _bootstrap(left: list[Examples], right: list[Examples], score: Score) -> float:
    rng = np.random.default_rng(SEED)
    labels, classes = left[0].labels, len(left[0].classes)
    below = above = 0
    for _ in range(RESAMPLES):
        rows = rng.integers(0, len(labels), len(labels))
        here = labels[rows]
        means = [np.mean([score(here, run.predicted[rows], classes) for run in runs]) for runs in (left, right)]
        below += means[0] <= means[1]
        above += means[0] >= means[1]
    return min(1.0, 2 * (1 + min(below, above)) / (RESAMPLES + 1))


# -- metrics as prunekit.evaluation.metrics computes them with torch; 0 where undefined -----------------------------


def _confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count rows as [true, predicted]."""
    cells = labels.astype(int) * classes + predicted.astype(int)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes).astype(float)


def _f1(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    counts = _confusion(labels, predicted, classes)
    both = counts.sum(0) + counts.sum(1)
    return 2 * counts.diagonal() / np.maximum(both, 1)


def _macro_f1(labels: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    occur = np.union1d(labels, predicted).astype(int)  # a class that neither has does not count
    return float(_f1(labels, predicted, classes)[occur].mean())


def _matthews(labels: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    counts = _confusion(labels, predicted, classes)
    rows, true, guessed = counts.sum(), counts.sum(1), counts.sum(0)
    spread = (rows**2 - (guessed**2).sum()) * (rows**2 - (true**2).sum())
    return float((counts.trace() * rows - guessed @ true) / np.sqrt(spread)) if spread > 0 else 0.0


def _pearson(labels: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    if labels.std() == 0 or predicted.std() == 0:
        return 0.0
    return float(np.corrcoef(labels, predicted)[0, 1])


def _spearman(labels: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    from scipy.stats import rankdata  # slow to import, and needed for this metric alone

    return _pearson(rankdata(labels), rankdata(predicted), classes)


OF_CLASSES: dict[str, Score] = {
    "accuracy": lambda labels, predicted, classes: float((labels == predicted).mean()),
    "f1": lambda labels, predicted, classes: float(_f1(labels, predicted, classes)[1]),
    "macro_f1": _macro_f1,
    "matthews": _matthews,
}

OF_CLASSES["agreement"] = OF_CLASSES["accuracy"]  # with the answers of the dense model
OF_CLASSES["mean_of_accuracy_f1"] = lambda *given: (OF_CLASSES["accuracy"](*given) + OF_CLASSES["f1"](*given)) / 2

METRICS: dict[str, Score] = OF_CLASSES | {
    "pearson": _pearson,
    "spearman": _spearman,
    "mean_of_pearson_spearman": lambda *given: (_pearson(*given) + _spearman(*given)) / 2,
}
