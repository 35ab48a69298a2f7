"""The page's table is that of the committed runs."""

from pathlib import Path

from prunekit.report.results import collect
from prunekit.report.table import build, markdown

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "methods" / "dpruner.md").read_text(encoding="utf-8")
PILOT = ROOT / "benchmarks" / "results" / "weights_pilot.json"


def test_the_pilot_s_table_is_that_of_its_file():
    found = collect([PILOT])
    assert found.problems == []
    measures = ["open_perplexity", "domain_perplexity", "memory"]
    shown = markdown(build(found.rows, ["variant"], ["task"], measures))
    assert shown[shown.index("| variant") :].strip() in PAGE
    assert all(abs(run["sparsity"]["of_prunable"] - 0.5) < 0.001 for run in found.rows)
