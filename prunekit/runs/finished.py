"""A finished run, opened again: its model's folder, its configuration and its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prunekit.config.errors import ConfigError
from prunekit.data.spec import TaskSpec
from prunekit.runs.folder import RunFolder
from prunekit.runs.kinds import kind_of
from prunekit.runs.result import AnyResult, RunResult

MODEL = "model"


@dataclass(frozen=True)
class FinishedRun:
    """A run whose result is there; nothing is read yet but its configuration and result."""

    path: Path
    cfg: dict[str, Any]
    result: RunResult
    spec: TaskSpec

    @property
    def model(self) -> Path:
        """The folder of the pruned model."""
        return self.path / MODEL

    def data(self) -> Any:
        """The run's TokenPruningDataModule, set up; rows, labels and lengths are those that the run saw.

        Raises:
            ConfigError: the data is no longer where it was.
        """
        # torch takes seconds to import, and a stored result is told without it
        from prunekit.data.module import TokenPruningDataModule

        trainer, data = self.cfg["trainer"], self.cfg["data"]
        found = TokenPruningDataModule(
            self.spec,
            kind_of(self.cfg).source(self.spec),
            self.model,
            batch_size=trainer["batch_size"],
            eval_batch_size=trainer["eval_batch_size"],
            seed=self.cfg["seed"],
            train_rows=data["train_rows"],
            eval_rows=data["eval_rows"],
            train_band=data.get("train_band"),
            eval_bands=data.get("eval_bands"),
            cache_dir=data["cache_dir"],
        )
        found.setup()
        return found


def open_run(given: str | Path | None) -> FinishedRun:
    """The run in a folder; its model/ will do as well.

    Raises:
        ConfigError: no folder is given, it is no run of token pruning, or the run is not finished.
    """
    if given is None:
        raise ConfigError(
            "no run is given.\nAllowed: run=runs/<task>/<method>/<backbone>/<budget>/s<seed>-<hash>.\n"
            "`prunekit table` lists finished runs; a command line of train.py prints its folder."
        )
    path = Path(given)
    if path.name == MODEL and not (path / "config.yaml").is_file():
        path = path.parent
    if not (path / "config.yaml").is_file():
        raise ConfigError(
            f"run={given} is no run: {path / 'config.yaml'} does not exist.\n"
            "Allowed: the folder of a finished run, with config.yaml, result.json and model/.\n"
            "Give such a folder, or make one with train.py."
        )
    cfg = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    kind = kind_of(cfg)
    if kind.tasks == ("text",):
        raise ConfigError(
            f"run={given} pruned weights ({cfg['method']['name']}), no tokens.\n"
            "Allowed: a run of a token method.\nIts model/ is an ordinary Hugging Face folder already."
        )
    result, problem = RunFolder(path, "").read_result()
    if not isinstance(result, RunResult) or not (path / MODEL / "config.json").is_file():
        raise ConfigError(
            f"run={given} is not finished ({problem or 'it has no result.json or no model/'}).\n"
            "Allowed: a run with a result.\nGive its train.py command again: it goes on where it stopped."
        )
    return FinishedRun(path, cfg, result, kind.spec(cfg["task"]))


def finished_result(folder: RunFolder) -> AnyResult | None:
    """Read the result of a run that need not run again; otherwise None.

    Raises:
        ConfigError: a newer prunekit wrote it.
    """
    try:
        result = folder.result()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    # somebody may have removed the model: the run is not done then
    return result if (folder.path / "model" / "config.json").is_file() else None
