"""The figure of docs/methods/top.md: drawn from committed numbers, and the same for the same numbers."""

import pytest
import torch
from safetensors.torch import save_file
from support.models import benchmark_script

top_cause = benchmark_script("top_cause")


def test_the_committed_figure_is_that_of_the_committed_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(top_cause, "FIGURE", tmp_path / "figure.svg")
    assert top_cause.main([]) == 0
    drawn = (tmp_path / "figure.svg").read_text()
    for name in ("top, init=open", "topk, linear"):
        assert name in drawn


def test_open_bins_are_those_of_the_shifted_gates(tmp_path):
    """Expected zeros of 2, 1, 0, -1, -2, -3 are two, those of the lowest: top.md T2; a shift of -2 closes two more."""
    file = tmp_path / "prunekit.safetensors"
    loga = torch.tensor([[2.0, 1, 0, -1, -2, -3], [2.0, 1, 0, -1, -2, -3]])
    save_file({"policy.token_loga": loga, "policy.shift": torch.tensor([0.0, -2.0])}, file)
    assert top_cause.open_bins(file) == [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert top_cause.open_bins(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ({"name": "top"}, "top, init=open"),
        (
            {"name": "top", "init": "topk", "init_shares": None, "hard_fraction": 0.85},
            "top, init=topk, 15% of the steps for the gates",
        ),
        (
            {"name": "top", "init": None, "init_shares": [0.5], "hard_fraction": None},
            "top, init=topk, the profile of open gates, 0% of the steps for the gates",
        ),
        ({"name": "topk", "schedule": "linear"}, "topk, linear"),
    ],
)
def test_a_run_is_named_by_how_it_decides(method, name):
    assert top_cause.name_of(method) == name
