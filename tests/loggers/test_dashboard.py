"""The W&B workspace as it would be saved, without an account or a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.paths import TESTS
from support.run_result import changed

from prunekit.cli.dashboard import main
from prunekit.config.errors import ConfigError
from prunekit.loggers.dashboard import build, definition
from prunekit.loggers.names import project_name
from prunekit.loggers.session import final_numbers

GRID = ["trainer.lr", "method.reg_lr", "method.rank_alpha"]  # of the published search
GOLDEN = TESTS / "fixtures" / "golden" / "workspace.json"


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


@pytest.mark.filterwarnings("ignore")  # of the preview's own
def test_the_definition_is_the_golden_one(tmp_path: Path):
    """After a change on purpose: prunekit dashboard out=tests/fixtures/golden/workspace.json"""
    out = tmp_path / "workspace.json"
    assert main([f"out={out}"]) == 0  # of nobody: it needs no account
    assert json.loads(out.read_text()) == json.loads(GOLDEN.read_text())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("drawn", ["1a2b3c", "0123456789ab", ""])
def test_the_definition_has_no_drawn_id_however_long_it_is(drawn: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pytest.importorskip("wandb_workspaces.reports.v2.internal"), "_generate_name", lambda: drawn)
    workspace = build("", "prunekit", "Pruning comparison", GRID)
    for section in workspace.sections:
        for panel in section.panels:
            object.__setattr__(panel, "_id", drawn)
    assert definition(workspace) == json.loads(GOLDEN.read_text())


@pytest.mark.filterwarnings("ignore")
def test_the_definition_is_one_by_the_library_s_own_schema_and_loses_nothing_there():
    schema = pytest.importorskip("wandb_workspaces.workspaces.internal", reason="needs the extra [dashboard]").View
    written = json.loads(GOLDEN.read_text())
    read = schema.model_validate(written)
    assert json.loads(read.model_dump_json(by_alias=True, exclude_none=True)) == written


@pytest.mark.filterwarnings("ignore")
def test_owner_project_and_axes_are_those_asked_for(tmp_path: Path):
    out = tmp_path / "workspace.json"
    assert main(["entity=someone", "project=team/a", "axes=method.reg_lambda,seed", f"out={out}"]) == 0
    written = json.loads(out.read_text())
    assert (written["entity"], written["project"]) == ("someone", project_name("team/a"))
    axes = [column["accessor"] for column in panels(written)["Parallel Coordinates Plot"]["columns"]]
    assert axes[1:3] == ["config:method.value.reg_lambda", "config:seed.value"]


def test_what_the_scatter_plots_show_is_in_every_summary():
    shown = GOLDEN.read_text()
    logged = final_numbers(changed(flops__flops_vs_unpadded=2.0))
    assert logged["final/flops_kept"] == 0.5
    for name in ("final/score", "final/flops_kept", "final/flops_vs_unpadded", "final/speedup_vs_packed_b32"):
        assert name in logged
        assert name in shown


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "entity is not given: on the server a workspace has an owner."),
        (["entitty=x"], "Unknown setting of dashboard: entitty=x."),
        (["entity=x"], "there is no key for the W&B server."),
    ],
)
def test_what_is_missing_is_said_in_three_lines_and_nothing_is_asked(arguments, said):
    with pytest.raises(ConfigError) as refused:
        main(arguments)
    lines = str(refused.value).splitlines()
    assert lines[0] == said
    assert len(lines) == 3


def panels(written: Any) -> dict[str, Any]:
    """The configuration of the last panel of each type."""
    sections = written["spec"]["section"]["panelBankConfig"]["sections"]
    return {panel["viewType"]: panel["config"] for section in sections for panel in section["panels"]}


def test_each_run_is_a_point_of_its_own_where_fronts_and_seeds_are_compared():
    sections = {}
    stack = [json.loads(GOLDEN.read_text())]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if "localPanelSettings" in value and "name" in value:
                sections[value["name"]] = value
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
    grouped = {name: one["localPanelSettings"]["useRunsTableGroupingInPanels"] for name, one in sections.items()}
    assert grouped["1 Pareto"] is grouped["5 Search"] is grouped["6 Tokens"] is False
    assert grouped["2 Budget"] is grouped["3 Layers"] is True
    assert "config:seed.value" in [panel["config"].get("zAxis") for panel in sections["1 Pareto"]["panels"]]
    assert sections["6 Tokens"]["panels"][0]["config"]["mediaKeys"] == ["tokens/heatmap"]
