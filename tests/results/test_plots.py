"""A run's plots: the numbers are right, and the pictures are written beside them."""

import json

import pytest
import torch

from prunekit.evaluation.evaluate import PerRow
from prunekit.evaluation.judging import Predictions
from prunekit.results.curves import budget_over_steps
from prunekit.results.plots import quality_by_length, tokens_by_layer, write_bands, write_pareto, write_plots


def rows(lengths, tokens, right):
    predictions = Predictions()
    if right is not None:
        predictions = Predictions(torch.ones(len(right)).long(), torch.tensor(right).long(), ("wrong", "right"))
    return PerRow(torch.tensor(lengths), torch.tensor(tokens), torch.ones(len(lengths)).long(), predictions)


def test_tokens_by_layer_are_means_over_sentences():
    numbers = tokens_by_layer(rows([10, 20], [[10, 4], [20, 6]], [True, True]))
    assert numbers["mean"] == [15, 5]
    assert numbers["mean_length"] == 15
    assert numbers["p90"] == pytest.approx([19, 5.8])


def test_sentences_are_grouped_by_length_and_compared():
    lengths = [5, 6, 7, 8, 20, 21, 22, 23]
    tokens = [[length, length // 2] for length in lengths]
    dense = rows(lengths, tokens, [True] * 8)
    pruned = rows(lengths, tokens, [True, True, False, True, True, True, False, False])
    buckets = quality_by_length(dense, pruned)["buckets"]
    assert [(bucket["from"], bucket["to"], bucket["rows"]) for bucket in buckets] == [
        (5, 6, 2),
        (7, 8, 2),
        (20, 21, 2),
        (22, 23, 2),
    ]
    assert [bucket["pruned"] for bucket in buckets] == [1.0, 0.5, 1.0, 0.0]
    assert [bucket["dense"] for bucket in buckets] == [1.0] * 4
    assert buckets[-1]["tokens_kept"] == pytest.approx(((22 + 11) / 44 + (23 + 11) / 46) / 2)


def test_sentences_of_one_length_are_one_group():
    same = rows([7] * 5, [[7, 3]] * 5, [True] * 5)
    assert [bucket["rows"] for bucket in quality_by_length(same, same)["buckets"]] == [5]


def test_regression_has_no_right_answers():
    scores = rows([3, 4], [[3], [4]], None)
    assert quality_by_length(scores, scores) == {"buckets": []}


def test_the_budget_is_read_from_the_record(tmp_path):
    lines = [
        {"step": 1, "budget/target": 0.0, "budget/expected": 0.5},
        {"step": 2, "val/flops_vs_unpadded": 1.5},
        {"step": 3, "budget/target": 0.75},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    numbers = budget_over_steps(tmp_path / "metrics.jsonl", 4.0)
    assert numbers == {"asked": 4.0, "target": [(1, 1.0), (3, 4.0)], "expected": [(1, 2.0)], "measured": [(2, 1.5)]}


@pytest.mark.parametrize("right", [[True, False], None])
def test_each_plot_has_its_numbers_beside_it(tmp_path, right):
    found = rows([4, 8], [[4, 2], [8, 3]], right)
    write_plots(tmp_path, "top on x, test", found, found, tmp_path / "none.jsonl", None)
    names = ["budget", "quality_by_length", "tokens_by_layer"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}.{end}" for name in names for end in ("json", "png")
    ]
    for name in names:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert json.loads((tmp_path / f"{name}.json").read_text())


def test_without_plots_there_are_their_numbers(tmp_path):
    found = rows([4, 8], [[4, 2], [8, 3]], [True, False])
    write_plots(tmp_path, "top on x, test", found, found, tmp_path / "none.jsonl", None, drawn=False)
    write_pareto(tmp_path, "top on x", {"measured": []}, drawn=False)
    write_bands(tmp_path, "top on x", "accuracy", [], drawn=False)
    names = ["bands", "budget", "pareto", "quality_by_length", "tokens_by_layer"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.json" for name in names]
