"""What a pipeline is given: one run, before anything was built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.runs.folder import RunFolder
from prunekit.runs.result import AnyResult


@dataclass(frozen=True)
class RunInputs:
    """One run: its configuration and folder, the checked task with its data, and the backbone.

    `data` is what was read from `source`. `train_dense` runs a dense configuration, or finds its finished run, and
    returns its result. `after_fit` are the estimated seconds from the end of the training to the end of what the user
    waits for; None where nothing tells.
    """

    cfg: dict[str, Any]
    folder: RunFolder
    spec: Any  # TaskSpec or TextSpec, as the kind of run has it
    source: Any  # TaskSource or TextSource
    data: Any  # TaskRows or Texts; None reads them when they are needed
    backbone: Path | str  # a folder, or an id on the hub
    train_dense: Callable[[dict[str, Any]], AnyResult]
    after_fit: float | None = None
