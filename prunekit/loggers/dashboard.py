"""`prunekit dashboard`: the W&B workspace that compares pruned models, as code.

    prunekit dashboard entity=my-team     saves it on the server, needs a key
    prunekit dashboard out=workspace.json    writes its definition, needs neither key nor account nor network

It shows what prunekit logs, and every panel has something to show for a sweep of any method that learns what to prune.
Built with wandb-workspaces, a public preview: the golden file of the test fails when its format changes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from prunekit.config.errors import ConfigError
from prunekit.loggers.names import project_name

MAX_RUNS = 300  # the preview shows ten by default, too few for a grid
STEP = "trainer/global_step"
LEARNED = "(lagrange/.*|threshold/layer_.*|k/layer_.*|budget/multiplier)"


def build(entity: str, project: str, name: str, axes: Sequence[str]) -> Any:
    """Return the workspace, not saved; `axes` are the swept keys, and every run shown in parallel coordinates has them.

    Raises:
        ConfigError: wandb-workspaces is not installed.
    """
    try:
        # an optional extra
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise ConfigError(
            f"wandb-workspaces is not installed ({error}).\nAllowed: the extra [dashboard].\n"
            "pip install 'prunekit[dashboard]'"
        ) from error
    summary, config = wr.SummaryMetric, wr.Config
    pareto = [
        # the cheapest runs are on the left, so the running maximum is the Pareto front
        wr.ScatterPlot(
            title="score against FLOPs kept",
            x=summary("final/flops_kept"),
            y=summary("final/score"),
            log_x=True,
            running_ymax=True,
            legend_template="${config:method.name} ${config:task.name}",
        ),
        # a front per seed, in a colour of its own, shows how much is due to the seed
        wr.ScatterPlot(
            title="score against FLOPs kept, by seed",
            x=summary("final/flops_kept"),
            y=summary("final/score"),
            z=config("seed"),
            log_x=True,
            running_ymax=True,
            legend_template="${config:method.name} ${config:task.name} seed ${config:seed}",
        ),
        wr.ScatterPlot(
            title="measured against nominal speed-up, batch 32 (runs with bench.enabled)",
            x=summary("final/flops_vs_unpadded"),
            y=summary("final/speedup_vs_packed_b32"),
            regression=True,
        ),
        wr.BarPlot(title="score", metrics=["final/score"]),
    ]
    budget = [
        # of methods that steer by it; the gap is every method's
        _line(wr, "share of FLOPs removed: target, expected; gap", ["budget/target", "budget/expected", "budget_gap"]),
        _line(wr, "budget: measured on validation", ["val/flops_vs_unpadded"]),
        wr.BarPlot(title="fewer FLOPs on the test, x", metrics=["final/flops_vs_unpadded"]),
    ]
    layers = [
        wr.LinePlot(title="tokens by layer", x=STEP, metric_regex="tokens/layer_.*"),
        # ToP's multipliers, LTP's thresholds, TS-DTP's multiplier and k: one panel, as a sweep may have one method
        wr.LinePlot(title="what the method learns", x=STEP, metric_regex=LEARNED),
    ]
    training = [wr.LinePlot(title="losses", x=STEP, metric_regex="train/.*"), _line(wr, "score", ["score"])]
    ends = [summary("final/flops_vs_unpadded"), summary("final/score")]
    columns = [config("method.name"), *(config(axis) for axis in axes), *ends]
    search = [
        wr.ParallelCoordinatesPlot(columns=[wr.ParallelCoordinatesPlotColumn(metric=column) for column in columns]),
        wr.ParameterImportancePlot(with_respect_to="final/score"),
        wr.RunComparer(diff_only=True),
    ]
    tokens = [
        wr.MediaBrowser(title="kept tokens", media_keys=["tokens/heatmap"], num_columns=2),
        wr.WeavePanelSummaryTable(table_name="tokens/table"),
    ]
    titled = {"1 Pareto": pareto, "2 Budget": budget, "3 Layers": layers}
    titled |= {"4 Training": training, "5 Search": search, "6 Tokens": tokens}
    return ws.Workspace(
        entity=entity,
        project=project_name(project),
        name=name,
        sections=[
            ws.Section(
                name=title,
                panels=panels,
                is_open=panels is pareto,
                panel_settings=_settings_of(ws, grouped=panels in (budget, layers, training)),
            )
            for title, panels in titled.items()
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=MAX_RUNS),
        runset_settings=ws.RunsetSettings(
            # averaged within a group: seeds, and backbones where there are several
            groupby=[ws.Config("method.name"), ws.Config("task.name"), ws.Config("budget")],
            order=[ws.Ordering(ws.Summary("final/score"), ascending=False)],
        ),
    )


def _settings_of(ws: Any, *, grouped: bool) -> Any:
    """Settings of a section; without grouping, each run is a point or a picture."""

    class Settings(ws.SectionPanelSettings):
        def _to_model(self) -> Any:
            model = super()._to_model()
            model.use_runs_table_grouping_in_panels = grouped  # a setting of the page that the library lacks
            return model

    return Settings()


def _line(wr: Any, title: str, keys: list[str]) -> Any:
    return wr.LinePlot(title=title, x=STEP, y=keys)


def definition(workspace: Any) -> Any:
    """Return what would be sent to the server, without the ids that are drawn each time."""
    return _without_ids(json.loads(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True)))


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: "<id>" if name == "__id__" else _without_ids(entry) for name, entry in value.items()}
    return [_without_ids(entry) for entry in value] if isinstance(value, list) else value
