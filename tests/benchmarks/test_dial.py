"""The table of a model that serves several budgets."""

from support.models import benchmark_script


def test_scores_are_means_over_seeds():
    lines = [
        {"seed": seed, "budget": budget, "metric": "accuracy", "dense": 0.9, "alone": alone, "served": served}
        for seed, budget, alone, served in [
            (1, "3x", 0.80, 0.79),
            (1, "2x", 0.86, 0.87),
            (2, "3x", 0.82, 0.80),
            (2, "2x", 0.86, 0.87),
        ]
    ]
    assert benchmark_script("dial").table(lines).splitlines() == [
        "| budget | accuracy, its own model | one model for all | difference |",
        "|---|---:|---:|---:|",
        "| 3x | 81.00 | 79.50 | -1.50 |",
        "| 2x | 86.00 | 87.00 | +1.00 |",
        "| dense | 90.00 | | |",
    ]
