"""Where metrics go: metrics.jsonl is the record; CSV, W&B, trackio and TensorBoard are views of it.

None of them can stop a run, or asks for anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from prunekit.loggers.base import Sink
from prunekit.loggers.tensorboard import start_tensorboard
from prunekit.loggers.trackio import start_trackio
from prunekit.loggers.wandb import start_wandb
from prunekit.runs.folder import RunFolder
from prunekit.runs.result import AnyResult
from prunekit.training.metrics_log import JsonlLogger


@contextmanager
def tracking(cfg: Mapping[str, Any], folder: RunFolder) -> Iterator[list[Logger]]:
    """The loggers of one job, for Lightning's Trainer; closes them whatever happens.

    metrics.jsonl always; metrics.csv when the job ends; W&B, trackio and TensorBoard as `logger` says.
    """
    settings = cfg["logger"]
    record = JsonlLogger(folder.metrics)
    sinks: list[Sink | None] = []
    if rank_zero_only.rank == 0:
        sinks.append(start_wandb(cfg, folder) if settings["wandb"]["enabled"] else None)
        sinks.append(start_trackio(cfg, folder) if settings["trackio"] else None)
    started = [sink for sink in sinks if sink is not None]
    board = start_tensorboard(folder) if settings["tensorboard"] else None
    exit_code = 1
    try:
        yield [record, *started, *([board] if board is not None else [])]
        exit_code = 0
    finally:
        for sink in started:
            sink.finish(exit_code)
        if board is not None:
            board.finalize("success" if exit_code == 0 else "failed")
        if settings["csv"] and record.path.is_file():
            record.write_csv(folder.path / "metrics.csv")


def log_result(loggers: Sequence[Logger], result: AnyResult) -> None:
    """Gives the numbers of result.json to the loggers that keep a summary, as final/<name>."""
    numbers = final_numbers(result)
    for logger in loggers:
        if isinstance(logger, Sink):
            logger.summarize(numbers)


def final_numbers(result: AnyResult) -> dict[str, float | str]:
    """The numbers of a result under flat names, such as final/score and final/speedup_vs_packed_b32."""
    numbers: dict[str, Any] = {
        "status": result.status,
        "score": result.score.pruned,
        "score_dense": result.score.dense,
        "budget_asked": result.budget.asked,
        "budget_reached": result.budget.reached,
        **{key: value for key, value in result.flops.to_json().items() if isinstance(value, int | float)},
        "flops_kept": 1 / result.flops.flops_vs_unpadded,
    }
    for row in result.speed:
        numbers[f"speedup_vs_padded_b{row.batch_size}"] = row.speedup_vs_padded
        numbers[f"speedup_vs_packed_b{row.batch_size}"] = row.speedup_vs_packed
    return {f"final/{key}": value for key, value in numbers.items() if value is not None}
