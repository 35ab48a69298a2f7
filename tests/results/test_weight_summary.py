"""The page's table is that of the committed runs."""

import json
from collections import Counter

from support.models import benchmark_script
from support.paths import ROOT

from prunekit.report.rows import collect

PAGE = (ROOT / "docs" / "methods" / "dpruner.md").read_text(encoding="utf-8")
MEMORY = ROOT / "benchmarks" / "results" / "weight_memory.json"
ABLATION = ROOT / "benchmarks" / "results" / "dpruner_ablation.json"


def test_the_ablation_has_every_variant_with_two_seeds_at_half_of_the_weights():
    found = collect([ABLATION])
    assert found.problems == []
    pruned = [run for run in found.rows if run["method"] != "dense"]
    variants, tasks = {run["variant"] for run in pruned}, ("domain_legal", "domain_medical")
    assert len(variants) == 20
    every = {(task, variant) for task in tasks for variant in variants}
    assert Counter((run["task"], run["variant"]) for run in pruned) == dict.fromkeys(every, 2)
    assert all(abs(run["sparsity"]["of_prunable"] - 0.5) < 0.001 for run in pruned)


def test_the_memory_of_the_page_is_that_measured_and_does_not_grow_with_the_number_of_blocks():
    found, own = json.loads(MEMORY.read_text()), benchmark_script("weight_memory")
    assert own.table(found) in PAGE
    # the page says by how much the prediction is missed
    ratios = [row["measured_mib"] / row["predicted_mib"] for row in found["rows"] if row["streamed"]]
    assert f"{min(ratios):.2f} to {max(ratios):.2f} times the formula's value" in PAGE
    few, many, whole, scaled = (row["measured_mib"] for row in found["rows"][1:])
    assert many < 1.1 * few
    assert whole > many + 0.8 * found["rows"][-2]["weights_mib"] * 8 / 9
    # 7B at a quarter of its widths
    row = found["rows"][-1]
    assert scaled < row["aim_mib"]
    assert f"the measured peak is\n{scaled / row['aim_mib']:.2f} of the aim" in PAGE
    outside = row["weights_mib"] - 3 * own.terms(1024, 2752, 512, 0, 0)["block"] / own.MIB
    assert f"Times 16 that is {16 * (scaled - outside) / 1024:.2f} GiB" in PAGE


def test_what_the_page_says_of_7_billion_is_what_the_formula_gives():
    own = benchmark_script("weight_memory")
    stages = own.at_seven_billion()
    outside = stages["outside"]
    shown = {"observe": "2.19", "factorise, score, repair": "2.49", "differentiate": "2.64"}
    for words, gib in shown.items():
        stage = stages[f"stage {words.partition(',')[0]}"] - outside
        assert f"{stage:.2f}" == gib
        assert any(line.startswith(f"| {words} ") and line.endswith(f"{gib} GiB |") for line in PAGE.splitlines())
    assert f"{own.aim(stages) - outside:.2f}" == "2.94"
