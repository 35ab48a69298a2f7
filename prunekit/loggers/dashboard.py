"""`prunekit dashboard`: the W&B workspace that compares pruned models, as code.

    prunekit dashboard entity=my-team                       saves it on the server, needs a key
    prunekit dashboard entity=my-team out=workspace.json    writes its definition, needs neither key nor network

It shows what prunekit logs: final/* of the summary, budget/*, keep/layer_*, threshold/layer_*, tokens/*. Built with
wandb-workspaces, a public preview: the golden file of the test fails when its format changes.
"""

from __future__ import annotations

import json
import re
from typing import Any

from prunekit.config.errors import ConfigError

MAX_RUNS = 300  # the preview shows ten by default, too few for a grid
# axes of the parallel coordinates: keys of any method
COLUMNS = ("trainer.lr", "method.reg_lr", "method.rank_alpha", "method.reg_lambda", "method.temperature", "method.rate")
STEP = "trainer/global_step"


def build(entity: str, project: str, name: str) -> Any:
    """Return the workspace, not saved.

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
            title="measured against nominal speed-up, batch 32",
            x=summary("final/flops_vs_unpadded"),
            y=summary("final/speedup_vs_packed_b32"),
            regression=True,
        ),
        wr.BarPlot(title="score", metrics=["final/score"]),
    ]
    budget = [
        _line(wr, "budget: target, expected", ["budget/target", "budget/expected"]),
        _line(wr, "budget: measured on validation", ["val/flops_vs_unpadded"]),
        wr.LinePlot(title="multipliers", x=STEP, metric_regex="lagrange/.*"),
        wr.BarPlot(title="budget reached", metrics=["final/budget_reached"]),
    ]
    layers = [
        wr.LinePlot(title="keep ratio by layer", x=STEP, metric_regex="keep/layer_.*"),
        wr.LinePlot(title="tokens by layer", x=STEP, metric_regex="tokens/layer_.*"),
        wr.LinePlot(title="threshold by layer", x=STEP, metric_regex="threshold/layer_.*"),
    ]
    training = [wr.LinePlot(title="losses", x=STEP, metric_regex="train/.*"), _line(wr, "score", ["score"])]
    ends = [summary("final/flops_vs_unpadded"), summary("final/score")]
    axes = [config("method.name"), *(config(column) for column in COLUMNS), *ends]
    search = [
        wr.ParallelCoordinatesPlot(columns=[wr.ParallelCoordinatesPlotColumn(metric=axis) for axis in axes]),
        wr.ParameterImportancePlot(with_respect_to="final/score"),
        wr.RunComparer(diff_only=True),
    ]
    tokens = [
        wr.MediaBrowser(title="tokens that stayed", media_keys=["tokens/heatmap"], num_columns=2),
        wr.WeavePanelSummaryTable(table_name="tokens/table"),
    ]
    titled = {"1 Pareto": pareto, "2 Budget": budget, "3 Layers": layers}
    titled |= {"4 Training": training, "5 Search": search, "6 Tokens": tokens}
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(
                name=title,
                panels=panels,
                is_open=panels is pareto,
                panel_settings=_settings_of(ws, grouped=panels not in (pareto, tokens)),
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


def _without_ids(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _without_ids(entry, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [_without_ids(entry) for entry in value]
    if isinstance(value, str) and (key in ("id", "__id__", "name") and re.fullmatch(r"[0-9a-z-]{8,}", value)):
        return "<id>"
    return value
