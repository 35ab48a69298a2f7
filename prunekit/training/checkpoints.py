"""Checkpoints that are always complete, load without unpickling, and resume to the weights of an uninterrupted run.

Besides the weights and the optimizer, an exact resume needs all four of these: a loader with `state_dict` whose order
is a function of its position, and whose `__iter__` reads that position when the first batch is requested (as a
generator does); the states of the random generators (`RngState`); a checkpoint taken at a moment from which Lightning
can resume (`LastCheckpoint`); and no part of a step done after that moment.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import Container, OmegaConf
from torch import Tensor

from prunekit.config.errors import first_line
from prunekit.console import say
from prunekit.files import damage, move_sealed, remove_sealed, write_sealed
from prunekit.runs.folder import BEST, CLOSEST, LAST, PREVIOUS
from prunekit.training.metrics_log import JsonlLogger

_PLAIN = (Tensor, str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device, torch.Size)


def to_plain_types(value: Any, where: str = "checkpoint") -> Any:
    """Convert a value to types that `torch.load(weights_only=True)` reads, from configs, paths, enums and numpy.

    Raises:
        TypeError: an object that would need unpickling; the message names its place.
    """
    if isinstance(value, Enum):
        return to_plain_types(value.value, where)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Container):
        return to_plain_types(OmegaConf.to_container(value, resolve=True), where)
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):
        return {to_plain_types(key, where): to_plain_types(entry, f"{where}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        kind = type(value) if type(value) in (list, tuple, set) else list if isinstance(value, list) else tuple
        return kind(to_plain_types(entry, f"{where}[{i}]") for i, entry in enumerate(value))
    raise TypeError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be loaded without unpickling; "
        f"allowed are tensors, numbers, strings, and lists, tuples, sets and dicts of these: convert it in the "
        f"state_dict that returns it."
    )


class PlainCheckpointIO(TorchCheckpointIO):
    """Checkpoint writer that only writes what loads safely, sealed as a file of the run with the hash `owner`.

    A kill while writing leaves the old file intact.
    """

    def __init__(self, owner: str = "") -> None:
        super().__init__()
        self.owner = owner

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write to a temporary file, flush it to the disk, then rename it.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        # the hyperparameters' class is of no use to a reader of plain dicts
        content = to_plain_types({key: value for key, value in checkpoint.items() if key != "hparams_type"})

        def write(beside: Path) -> None:
            with beside.open("wb") as stream:  # given a path, torch does not say what is wrong with the disk
                torch.save(content, stream)

        write_sealed(path, write, self.owner)


def find_resumable(folder: str | Path, owner: str = "") -> str | None:
    """Return the newest whole checkpoint in `folder`, for `fit(ckpt_path=...)`; None = start from the beginning.

    A checkpoint is of use only with the best one so far beside it, which nothing could bring back. `owner` is the hash
    of the run. Prints which file cannot be used and what is used instead.
    """
    paths = [Path(folder) / name for name in (LAST, PREVIOUS)]
    for path, next_best in zip(paths, (f"the one before ({PREVIOUS})", "the start"), strict=True):
        if not path.is_file():
            continue
        try:
            state = _read_checkpoint(path, owner)
            state["loops"]["fit_loop"]
            for needed in _kept_beside(state):
                _read_checkpoint(path.with_name(needed), owner)
        except Exception as error:  # truncated zip, foreign pickle, missing key: in any case not a checkpoint
            is_named = isinstance(error, DamagedCheckpointError)
            reason = str(error) if is_named else f"{path} cannot be read ({first_line(error)})"
            say(f"{reason}; training continues from {next_best}.")
            continue
        return str(path)
    return None


class DamagedCheckpointError(ValueError):
    """A checkpoint that is not what was written."""


def load_weights(path: str | Path, owner: str = "") -> dict[str, Tensor]:
    """Return the weights in a checkpoint.

    Raises:
        DamagedCheckpointError: it is gone, damaged, or that of another run than `owner`.
    """
    try:
        weights: dict[str, Tensor] = _read_checkpoint(Path(path), owner)["state_dict"]
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(f"{error}; the same command trains again from the start.") from error
    return weights


def _read_checkpoint(path: Path, owner: str) -> dict[str, Any]:
    wrong = damage(path, owner) or (None if path.is_file() else "is gone")
    if wrong is not None:
        raise DamagedCheckpointError(f"{path} {wrong}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DamagedCheckpointError(f"{path} cannot be read ({first_line(error)})") from error
    return state


def _kept_beside(state: Mapping[str, Any]) -> list[str]:
    """Return the names of the checkpoints that a resumed run may end with, by the state of `FeasibleCheckpoint`."""
    for name, stored in (state.get("callbacks") or {}).items():
        if name.startswith(FeasibleCheckpoint.__name__):
            return [BEST] if stored["best_score"] is not None else [CLOSEST] if stored["closest"] else []
    return []


class LastCheckpoint(Checkpoint):
    """Callback that keeps last.ckpt, and its predecessor as previous.ckpt: every `seconds` and at each epoch's end.

    A checkpoint is taken after a step, but never when an evaluation follows, and takes effect once the step's metrics
    have been written. At the start of a fit the loggers drop the rows of steps that will be run again.
    """

    def __init__(self, folder: str | Path, *, seconds: float | int = 60.0, owner: str = "") -> None:
        self.folder = Path(folder)
        self.seconds = seconds
        self.owner = owner
        self._taken = 0.0
        self._loader_states: list[Any] = []

    @property
    def _staged_path(self) -> Path:
        return self.folder / f"{LAST}.staged"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that nothing would make a resumed run differ, and install the safe checkpoint writer.

        Raises:
            TypeError: the module changes its state after the checkpoint of a step is taken.
            ValueError: the Trainer has max_steps.
        """
        if is_overridden("on_train_batch_end", pl_module):
            raise TypeError(
                f"{type(pl_module).__name__}.on_train_batch_end runs after the step's checkpoint is taken, so a "
                f"resumed run would miss it; do it in optimizer_step, after super().optimizer_step(...)."
            )
        if trainer.max_steps != -1:
            raise ValueError(
                f"Trainer(max_steps={trainer.max_steps}) makes Lightning count an epoch twice when it resumes at an "
                f"epoch's end; leave it at -1 and add the callback StopAfter({trainer.max_steps})."
            )
        if not isinstance(trainer.strategy.checkpoint_io, PlainCheckpointIO):
            trainer.strategy.checkpoint_io = PlainCheckpointIO(self.owner)
        if trainer.is_global_zero:
            remove_sealed(self._staged_path)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read the loaders' positions, which Lightning drops when it resumes at an epoch's end."""
        self._loader_states = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Rewind loaders and loggers to where the checkpoint was taken, or to the beginning if there is none."""
        self._taken = time.monotonic()
        loader = trainer.train_dataloader
        if self._loader_states and not trainer.fit_loop.restarting and hasattr(loader, "load_state_dict"):
            loader.load_state_dict(self._loader_states[0])
        self._loader_states = []
        for logger in trainer.loggers:
            if isinstance(logger, JsonlLogger):
                logger.rewind(trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take a checkpoint when it is due, unless an evaluation follows or gradients are being accumulated."""
        due = trainer.strategy.broadcast(time.monotonic() - self._taken >= self.seconds)
        if not due or trainer.is_last_batch or trainer.should_stop:
            return
        evaluate_every = trainer.val_check_batch
        if evaluate_every is not None and (batch_idx + 1) % evaluate_every == 0:
            return
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._take(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take a checkpoint after the epoch's evaluation."""
        self._take(trainer)

    def _take(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self._staged_path, weights_only=False)
        self._taken = time.monotonic()

    def _commit(self, trainer: L.Trainer) -> None:
        # only now is the step's row in metrics.jsonl, so that the checkpoint cannot be ahead of it
        if trainer.is_global_zero and self._staged_path.is_file():
            for logger in trainer.loggers:
                if isinstance(logger, JsonlLogger):
                    logger.seal()
            last = self.folder / LAST
            if last.is_file():
                move_sealed(last, self.folder / PREVIOUS)
            move_sealed(self._staged_path, last)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Commit the checkpoint of the last step."""
        self._commit(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Commit the checkpoint of the last epoch."""
        self._commit(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Commit the checkpoint of the last epoch."""
        self._commit(trainer)


class FeasibleCheckpoint(ModelCheckpoint):
    """Callback that keeps best.ckpt: the highest `score` of evaluations that met the budget (`feasible` is 1).

    The earlier one wins a tie. As long as no evaluation has met the budget, closest.ckpt is kept instead: the smallest
    `budget_gap`, and on a tie the higher score. Both hold weights only. `best_model_path` is "" until an evaluation
    meets the budget; `closest_model_path` is "" from then on.
    """

    METRICS = ("score", "feasible", "budget_gap")

    def __init__(self, folder: str | Path, owner: str = "") -> None:
        super().__init__(
            dirpath=folder,
            filename=BEST.removesuffix(".ckpt"),
            monitor="score",
            mode="max",
            save_weights_only=True,
            save_on_train_epoch_end=False,
            auto_insert_metric_name=False,
            enable_version_counter=False,  # overwrite the file of a killed run rather than write best-v1.ckpt
        )
        self.owner = owner
        self.closest_model_path = ""
        self._closest: tuple[float, float] | None = None  # budget_gap and negative score: smaller is better

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Prepare the folder, without Lightning's warning that it is not empty, which is normal in a resumed run."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
            super().setup(trainer, pl_module, stage)
        if not isinstance(trainer.strategy.checkpoint_io, PlainCheckpointIO):
            trainer.strategy.checkpoint_io = PlainCheckpointIO(self.owner)

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Check whether the evaluation that just ended is the best one that met the budget."""
        score, feasible, _ = self._read_metrics(trainer)
        if feasible < 0.5 or score != score:  # NaN is no score
            return False
        return super().check_monitor_top_k(trainer, current)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the best checkpoint, or the closest as long as there is no best."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or trainer.fast_dev_run:
            return
        path = Path(str(self.dirpath)) / CLOSEST
        if self.best_model_path:
            self._closest, self.closest_model_path = None, ""
            if trainer.is_global_zero:
                remove_sealed(path)
            return
        score, _, gap = self._read_metrics(trainer)
        rank = (gap if gap == gap else float("inf"), -score if score == score else float("inf"))
        if self._closest is None or rank < self._closest:
            self._closest, self.closest_model_path = rank, str(path)
            trainer.save_checkpoint(path, weights_only=True)

    def _read_metrics(self, trainer: L.Trainer) -> tuple[float, float, float]:
        metrics = trainer.callback_metrics
        missing = [name for name in self.METRICS if name not in metrics]
        if missing:
            raise ValueError(
                f"the evaluation logged {', '.join(sorted(metrics)) or 'nothing'}, but FeasibleCheckpoint needs "
                f"{', '.join(self.METRICS)}: log {', '.join(missing)} in on_validation_epoch_end."
            )
        score, feasible, gap = (float(metrics[name]) for name in self.METRICS)
        return score, feasible, gap

    def state_dict(self) -> dict[str, Any]:
        """Return scores only; the paths follow from the run's folder, which may have been moved."""
        best = float(self.best_model_score) if self.best_model_path and self.best_model_score is not None else None
        return {"best_score": best, "closest": list(self._closest) if self._closest else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore which checkpoint files are tracked."""
        if state_dict["best_score"] is not None:
            path = self.format_checkpoint_name({})
            score = torch.tensor(state_dict["best_score"])
            self.best_model_path = self.kth_best_model_path = path
            self.best_model_score = self.kth_value = self.current_score = score
            self.best_k_models = {path: score}
        if state_dict["closest"] is not None:
            gap, negative_score = state_dict["closest"]
            self._closest = (gap, negative_score)
            self.closest_model_path = str(Path(str(self.dirpath)) / CLOSEST)
