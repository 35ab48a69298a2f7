"""TensorBoard event files in the run's folder."""

from __future__ import annotations

from lightning.pytorch.loggers import TensorBoardLogger

from prunekit.console import say
from prunekit.runs.folder import RunFolder


def start_tensorboard(folder: RunFolder) -> TensorBoardLogger | None:
    """Lightning's TensorBoard logger, or None and a line that says that it is not installed."""
    try:
        return TensorBoardLogger(save_dir=folder.path, name="tensorboard", version="")
    except ModuleNotFoundError:
        say("TensorBoard: not installed, so not used (pip install 'prunekit[tensorboard]').")
        return None
