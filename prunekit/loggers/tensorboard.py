"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from prunekit.console import say
from prunekit.loggers.base import Media, Sink
from prunekit.runs.folder import RunFolder


class TensorBoardSink(Sink):
    """Lightning's TensorBoard logger as a sink; it has no summary and no tables."""

    title = "TensorBoard"

    def __init__(self, board: TensorBoardLogger) -> None:
        super().__init__()
        self.board = board

    def send_metrics(self, metrics: dict[str, float], step: int | None) -> None:
        """Write one row."""
        self.board.log_metrics(metrics, step)

    def send_media(self, media: Media) -> None:
        """Write the picture."""
        self.board.experiment.add_image("tokens/heatmap", media.picture, dataformats="HWC")

    def finalize(self, status: str) -> None:
        """Write what is still in memory; the Trainer calls this at the end of a fit."""
        self._safely(lambda: self.board.finalize(status))

    def close(self, exit_code: int) -> None:
        """Close the event file."""
        self.board.finalize("success" if exit_code == 0 else "failed")


def start(cfg: Mapping[str, Any], folder: RunFolder) -> TensorBoardSink | None:
    """Return a logger that writes to tensorboard/ of the run folder; None, and a line, where it is not installed."""
    try:
        return TensorBoardSink(TensorBoardLogger(save_dir=folder.path, name="tensorboard", version=""))
    except ModuleNotFoundError:
        say("TensorBoard: not installed, so not used (pip install 'prunekit[tensorboard]').")
        return None
