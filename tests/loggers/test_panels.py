"""Each panel of the dashboard on runs: on literal ones, on a real offline sweep, and as drawn in docs/wandb.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT, TESTS
from support.processes import Training

from prunekit.cli.dashboard import main
from prunekit.config.errors import ConfigError
from prunekit.loggers import drawing
from prunekit.loggers.offline import OfflineRun, read_runs
from prunekit.loggers.panels import Panel, evaluate, lookup, to_text

DEFINITION = json.loads((TESTS / "fixtures" / "golden" / "workspace.json").read_text())
DOCS = ROOT / "docs" / "wandb"
PANELS = 16


def run(number: int, lr: float | None, score: float) -> OfflineRun:
    config = {"method": {"name": "top", "reg_lr": 0.02}, "trainer": {"lr": lr}, "seed": number}
    about = {"run_id": f"id{number}", "display_name": "top-cola", "config": {"update": config}}
    history = [{"trainer/global_step": 9, "train/loss": 0.123456789, "k/layer_00": 2}, {"_step": 1}]
    return OfflineRun(Path(), about, history, {"final/score": score, "final/flops_kept": 0.5})


RUNS = [run(1, 0.1, 0.5), run(2, 0.2, 0.7), run(3, None, 0.6)]


def panel(kind: str, config: dict[str, Any]) -> Panel:
    section = {"name": "1", "panels": [{"viewType": kind, "config": config}]}
    return evaluate({"spec": {"section": {"panelBankConfig": {"sections": [section]}}}}, RUNS)[0]


def test_an_accessor_names_a_value_of_the_summary_or_of_the_nested_configuration():
    assert lookup(RUNS[0], "summary:final/score") == 0.5
    assert lookup(RUNS[0], "config:trainer.value.lr") == 0.1
    assert lookup(RUNS[0], "config:seed.value") == 1
    assert lookup(RUNS[0], "config:method.value.rate") is lookup(RUNS[0], "summary:score") is None


def test_a_scatter_plot_has_a_row_per_run_and_a_point_where_it_is_whole():
    config = {"chartTitle": "t", "xAxis": "config:trainer.value.lr", "yAxis": "summary:final/score"}
    shown = panel("Scatter Plot", config)
    assert shown.columns == ["run", "trainer.lr", "final/score"]
    assert shown.rows[0] == ["top-cola id1", 0.1, 0.5]
    assert [row[1] for row in shown.whole_rows] == [0.1, 0.2]
    assert shown.empty_keys == []
    assert panel("Scatter Plot", config | {"yAxis": "summary:final/none"}).empty_keys == ["final/none"]


def test_lines_are_of_the_metrics_that_a_pattern_finds():
    config = {"chartTitle": "t", "xAxis": "trainer/global_step", "metrics": [], "metricRegex": "(train/.*|k/.*)"}
    shown = panel("Run History Line Plot", config)
    assert shown.columns[2:] == ["k/layer_00", "train/loss"]
    assert shown.rows[0] == ["top-cola id1", 9, 2, 0.12346]
    assert panel("Run History Line Plot", config | {"metricRegex": "keep/.*"}).empty_keys[-1] == "keep/.*"


def test_correlations_are_of_numbers_that_differ():
    shown = panel("Parameter Importance", {"targetKey": "final/score"})
    assert shown.rows == [["seed", 0.5], ["trainer.lr", 1.0]]
    assert panel("Run Comparer", {}).columns == ["run", "seed", "trainer.lr"]


def committed() -> list[Panel]:
    return [Panel(**stored) for stored in json.loads((DOCS / "panels.json").read_text())]


def test_the_pictures_of_the_page_show_the_committed_numbers_of_today_s_panels():
    stored = committed()
    today = evaluate(DEFINITION, [])
    assert [(one.section, one.kind) for one in stored] == [(one.section, one.kind) for one in today]
    titles = [(one.title, one.columns[:2]) for one in stored if one.kind in ("Scatter Plot", "Bar Chart")]
    assert titles == [(one.title, one.columns[:2]) for one in today if one.kind in ("Scatter Plot", "Bar Chart")]
    assert to_text(stored) == (DOCS / "panels.json").read_text()
    page = (ROOT / "docs" / "wandb.md").read_text()
    for name, group in drawing.sections(stored).items():
        file = f"{name.lower().replace(' ', '_')}.svg"
        assert drawing.digest(group) in (DOCS / file).read_text(), f"draw {file} again"
        assert file in page or name == "6 Tokens"


def test_what_is_drawn_are_the_numbers():
    figure = drawing.draw_section([one for one in committed() if one.section == "1 Pareto"])
    points, _, _, bars = figure.axes
    stored = committed()[0]
    assert sorted(map(list, points.collections[0].get_offsets().tolist())) == sorted(row[1:] for row in stored.rows)
    assert sorted(bar.get_width() for bar in bars.patches) == sorted(row[1] for row in committed()[3].rows)


@pytest.mark.slow
def test_pictures_are_drawn_again_from_their_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([f"runs={DOCS / 'panels.json'}", f"out={tmp_path}"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    again = (tmp_path / "5_search.svg").read_text()
    found = re.findall(r"<dc:description>(\w+)</dc:description>", again)
    assert found == re.findall(r"<dc:description>(\w+)</dc:description>", (DOCS / "5_search.svg").read_text())


@pytest.mark.filterwarnings("ignore")  # of the preview's own
@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["runs={}", "out={}/x"], "no offline W&B run is in it."), (["runs={}", "entity=x"], "out is not given")],
)
def test_without_runs_or_a_place_for_pictures_it_says_so(arguments: list[str], said: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=said):
        main([argument.format(tmp_path) for argument in arguments])


GRID = ["trainer.lr=2e-3,2e-4", "method.reg_lr=0.2,0.05", "method.rank_alpha=1e-1,1e-3"]
TINY = [
    "task=synthetic",
    "task.synthetic_rows=200",
    "backbone=tiny",
    "trainer=debug",
    "plots=false",
    "trainer.epochs=2",
]
TINY += ["teacher.epochs=2", "teacher.lr=2e-3", "budget=2x", "method.target_sparsity=null", "budget_tolerance=0.5"]
TINY += ["method.sparsity_of=measured", "method.prune_location=[1,2,3]", "method.warmup_epochs=0.5"]
TINY += [
    "method.init=open",
    "method.hard_fraction=0.2",
    "bench.enabled=true",
    "bench.rounds=1",
    "logger.texts=1",
    "wandb.project=grid",
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_panel_is_empty_on_the_grid_of_the_published_search(tmp_path: Path):
    places = [f"runs_dir={tmp_path / 'runs'}", f"data.cache_dir={tmp_path / 'cache'}"]
    log = tmp_path / "log.txt"
    code = Training(["-m", "sweeps=top_cola", *TINY, *GRID, *places], ROOT, log).wait(1200)
    assert code == 0, log.read_text()
    runs = read_runs(tmp_path / "runs")
    pruned = [one for one in runs if one.config["method"]["name"] == "top"]
    assert (len(runs), len(pruned)) == (9, 8)  # and their teacher
    assert {one.run["project"] for one in runs} == {"grid"}
    assert {one.run["job_type"] for one in runs} == {"train"}
    assert {tuple(one.run["tags"]) for one in pruned} == {("top", "synthetic", "tiny", "2x")}
    assert len({one.run["run_group"] for one in pruned}) == 8  # a group is what only the seed tells apart
    swept = {(one.config["trainer"]["lr"], one.config["method"]["reg_lr"], one.config["method"]["rank_alpha"])
             for one in pruned}  # fmt: skip
    assert swept == {(lr, rate, alpha) for lr in (2e-3, 2e-4) for rate in (0.2, 0.05) for alpha in (0.1, 1e-3)}

    shown = evaluate(DEFINITION, runs)
    assert len(shown) == PANELS
    for one in shown:
        if one.kind != "Run Comparer":
            assert one.empty_keys == [], (one.title, one.empty_keys)
        assert one.rows
        if one.kind in ("Scatter Plot", "Bar Chart", "Parallel Coordinates Plot"):
            assert len(one.whole_rows) >= 8, one.title
    runset = DEFINITION["spec"]["section"]["runSets"][0]
    asked = [*runset["grouping"], *(entry["key"] for entry in runset["sort"]["keys"])]
    accessors = [f"{key['section']}:{key['name']}" for key in asked]
    accessors += re.findall(r"\$\{(config:[\w.]+)\}", json.dumps(DEFINITION))  # of legends
    assert "config:seed" in accessors
    for accessor in accessors:
        assert all(lookup(one, accessor) is not None for one in pruned), accessor
    assert main([f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'pictures'}"]) == 0
    assert json.loads((tmp_path / "pictures" / "panels.json").read_text()) == [one.to_json() for one in shown]
    assert (tmp_path / "pictures" / "tokens.png").read_bytes().startswith(b"\x89PNG")
