"""The loggers of one job: metrics.jsonl is the record; CSV, W&B, trackio and TensorBoard are views of it.

No logger can stop a run or ask for input.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from prunekit.config.errors import first_line
from prunekit.config.places import free_space
from prunekit.console import say
from prunekit.loggers.base import Media, Sink
from prunekit.results import examples, heatmap
from prunekit.runs.folder import RunFolder
from prunekit.runs.result import AnyResult
from prunekit.training.metrics_log import JsonlLogger


@contextmanager
def tracking(cfg: Mapping[str, Any], folder: RunFolder) -> Iterator[list[Logger]]:
    """Yield the loggers of one job for Lightning's Trainer, metrics.jsonl first, and close them whatever happens.

    Writes metrics.csv at the end where `logger.csv` is set.
    """
    record = JsonlLogger(folder.metrics, folder.hash)
    record.repair()
    sinks = _start_all(cfg, folder) if rank_zero_only.rank == 0 else []
    exit_code = 1
    try:
        yield [record, *sinks]
        exit_code = 0
    finally:
        for sink in sinks:
            sink.finish(exit_code)
        with suppress(OSError):  # a disk that is full has been reported
            record.seal()
        if cfg["logger"]["csv"] and record.path.is_file():
            _write_csv(record, folder.path / "metrics.csv")


def _write_csv(record: JsonlLogger, path: Path) -> None:
    """Write metrics.csv; where that fails, one line says so, and the record is still there."""
    try:
        record.write_csv(path)
    except (OSError, ValueError) as error:
        say(f"{path} was not written ({first_line(error)}; {free_space(path)}); {record.path.name} has everything.")


def _start_all(cfg: Mapping[str, Any], folder: RunFolder) -> list[Sink]:
    """Start every enabled logger, which is a block of `logger` with a `_target_`; leave out those that cannot start."""
    blocks = {name: block for name, block in cfg["logger"].items() if isinstance(block, Mapping)}
    enabled = [name for name, block in blocks.items() if "_target_" in block and block.get("enabled", True)]
    sinks = [_start_one(name, blocks[name], cfg, folder) for name in enabled]
    return [sink for sink in sinks if sink is not None]


def _start_one(name: str, block: Mapping[str, Any], cfg: Mapping[str, Any], folder: RunFolder) -> Sink | None:
    options = {key: value for key, value in block.items() if key not in ("_target_", "enabled")}
    try:
        sink: Sink | None = pkgutil.resolve_name(block["_target_"])(cfg, folder, **options)
    except Exception as error:
        say(f"logger.{name}: {block['_target_']} did not start ({first_line(error)}); the run continues without it.")
        return None
    return sink


def log_result(loggers: Sequence[Logger], result: AnyResult) -> None:
    """Send the numbers of a result to the loggers that keep a summary, as final/<name>."""
    numbers = final_numbers(result)
    for sink in _sinks(loggers):
        sink.summarize(numbers)


def final_numbers(result: AnyResult) -> dict[str, float | str]:
    """Return the numbers of a result under flat names, such as final/score and final/speedup_vs_packed_b32."""
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


def log_tokens(loggers: Sequence[Logger], folder: RunFolder, texts: int) -> None:
    """Send which tokens of at most `texts` test texts were kept to the loggers that show pictures and tables.

    Does nothing where the run stored no tokens, as in a dense run. An error is reported in one line.
    """
    sinks = _sinks(loggers)
    if not sinks or not texts:
        return
    try:
        media = _media(folder, texts)
    except Exception as error:
        say(f"tokens are not shown in {' and '.join(sink.title for sink in sinks)} ({first_line(error)}).")
        return
    if media is not None:
        for sink in sinks:
            sink.show(media)


def _media(folder: RunFolder, texts: int) -> Media | None:
    stored = examples.load(folder.path)
    if stored is None or not len(stored.index):
        return None
    places = heatmap.choose_texts(stored, texts)
    return Media(heatmap.pixels(heatmap.heat_map(stored, places)), *heatmap.token_table(stored, places))


def _sinks(loggers: Sequence[Logger]) -> list[Sink]:
    """The loggers but the record."""
    return [logger for logger in loggers if isinstance(logger, Sink)]
