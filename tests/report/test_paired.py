"""Whether two configurations differ on the same test examples."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.stored_runs import add_examples, result, store

from prunekit.data.kinds.labelled import CLASSIFICATION, REGRESSION
from prunekit.data.spec import TaskSpec
from prunekit.evaluation.metrics import build_metrics
from prunekit.report.formats import markdown
from prunekit.report.paired import METRICS, mcnemar, p_over_rows
from prunekit.report.rows import collect
from prunekit.report.table import build
from prunekit.results.examples import save


def answers(folder, right):
    """Stored predictions of 24 texts, as many of the first ones wrong as `right` leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    found = add_examples(folder)
    wrong = np.arange(24) < 24 - right
    return replace(found, predicted=np.where(wrong, 1 - found.labels, found.labels))


def test_mcnemar_looks_at_the_answers_that_differ_alone():
    """7 against 1: 2 (1 + 8) / 2^8 = 0.0703; the 16 on which both agree do not count."""
    one, other = np.array([1] * 7 + [0] + [1] * 16, bool), np.array([0] * 7 + [1] + [1] * 16, bool)
    assert mcnemar(one, other) == pytest.approx(18 / 256)
    assert mcnemar(one[7:], other[7:]) == 1.0
    assert mcnemar(one, one) == 1.0


def test_ten_texts_more_are_a_difference_and_one_is_none(tmp_path):
    best, near, far = (answers(tmp_path, right) for right in (24, 23, 14))
    for metric in ("accuracy", "matthews", "macro_f1"):
        assert p_over_rows({1: far}, {1: best}, metric) < 0.01
        assert p_over_rows({1: near}, {1: best}, metric) > 0.1
    assert p_over_rows({1: far, 2: far}, {1: best, 2: near}, "accuracy") < 0.01  # over seeds, by the bootstrap


def test_what_does_not_compare_has_no_p(tmp_path):
    one = answers(tmp_path, 20)
    assert p_over_rows({1: one}, {1: replace(one, labels=1 - one.labels)}, "accuracy") is None
    assert p_over_rows({1: one}, {1: one}, "exact_match") is None
    assert p_over_rows({1: one}, {1: one}, "pearson") is None  # of values, these are classes
    assert p_over_rows({}, {1: one}, "accuracy") is None


@pytest.mark.parametrize("name", sorted({*METRICS} - {"agreement"}))
def test_each_metric_is_the_one_that_runs_report(name):
    generator = torch.Generator().manual_seed(0)
    values = "pearson" in name or "spearman" in name
    labels = torch.rand(40, generator=generator) if values else torch.randint(0, 2, (40,), generator=generator)
    logits = torch.randn(40, 1 if values else 2, generator=generator)
    spec = TaskSpec("some", kind=REGRESSION if values else CLASSIFICATION, metrics=(name,), score=name)
    reported = build_metrics(spec, None if values else ("no", "yes"))
    reported.update(logits, labels)
    told = float(reported.compute()[name])
    predicted = logits.squeeze(-1).numpy() if values else logits.argmax(-1).numpy()
    assert METRICS[name](labels.numpy(), predicted, 0 if values else 2) == pytest.approx(told, abs=1e-5)


def test_the_table_marks_by_examples_where_one_seed_shows_nothing(tmp_path):
    for method, right in (("top", 24), ("topk", 23), ("random", 12)):
        folder = store(tmp_path, result(method, "2x", 1, right / 24))
        save(answers(folder, right), folder)
    runs = collect([tmp_path]).rows
    plain = markdown(build(runs, ["method"], ["task"]))
    assert "\\*" not in plain.split("\n\n")[1]
    found = markdown(build(runs, ["method"], ["task"], test="examples"))
    assert "| random | 50.00\\* |" in found
    assert "| topk | 95.83 |" in found
    assert "paired bootstrap over test examples" in found


def test_a_table_whose_runs_store_no_predictions_says_so(tmp_path):
    for method in ("top", "topk"):
        store(tmp_path, result(method, "2x", 1, 0.5 + len(method) / 100))
    table = build(collect([tmp_path]).rows, ["method"], ["task"], test="examples")
    assert any("matthews is not tested over examples" in problem for problem in table.problems)
    assert "no test: it needs the predictions that runs store" in markdown(table)
