"""The page's table is that of the committed runs."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "methods" / "dpruner.md").read_text(encoding="utf-8")


def benchmark():
    spec = importlib.util.spec_from_file_location("weights", ROOT / "benchmarks" / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pilot_s_table_is_that_of_its_file():
    runs = json.loads((ROOT / "benchmarks" / "results" / "weights_pilot.json").read_text())["runs"]
    assert benchmark().table(runs).strip() in PAGE
    assert all(abs(run["sparsity"]["of_prunable"] - 0.5) < 0.001 for run in runs)


def test_the_best_of_a_column_is_bold_and_seeds_are_averaged():
    def run(variant, seed, value):
        numbers = {"open_perplexity": value, "domain_perplexity": 2 * value}
        return {"task": "t", "variant": variant, "seed": seed, "dense": dict.fromkeys(numbers, 1.0), "pruned": numbers}

    found = benchmark().table([run("a", 1, 2.0), run("a", 2, 4.0), run("b", 1, 5.0)])
    assert "| a | **3.00 (2.00-4.00)** | **6.00 (4.00-8.00)** |" in found
    assert "| b | 5.00 | 10.00 |" in found
