"""Checkpoints that are whole, load without unpickling, and resume to the same weights as without the kill.

What exact resume needs beside the weights and the optimizer (each of the four alone is not enough):
a loader with `state_dict` whose order is a function of its position, and whose `__iter__` looks at that position when
the first batch is asked for (a generator does); the states of the random generators (`RngState`); a checkpoint at a
moment that Lightning can go on from (`LastCheckpoint`); and nothing of a step done after that moment.
"""

from __future__ import annotations

import os
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
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import Container, OmegaConf
from torch import Tensor

from prunekit.console import say
from prunekit.files import replace_durably
from prunekit.runs.folder import BEST, CLOSEST, LAST, PREVIOUS
from prunekit.training.metrics_log import JsonlLogger

_PLAIN = (Tensor, str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device, torch.Size)


def plain(value: Any, where: str = "checkpoint") -> Any:
    """The value in types that `torch.load(weights_only=True)` reads: configs, paths, enums and numpy are converted.

    Raises:
        TypeError: an object that would need unpickling; says where it is.
    """
    if isinstance(value, Enum):
        return plain(value.value, where)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Container):
        return plain(OmegaConf.to_container(value, resolve=True), where)
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):
        return {plain(key, where): plain(entry, f"{where}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        kind = type(value) if type(value) in (list, tuple, set) else list if isinstance(value, list) else tuple
        return kind(plain(entry, f"{where}[{i}]") for i, entry in enumerate(value))
    raise TypeError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be loaded without unpickling; "
        f"allowed are tensors, numbers, strings, and lists, tuples, sets and dicts of them: convert it in the "
        f"state_dict that returns it."
    )


class PlainCheckpointIO(TorchCheckpointIO):
    """Writes only what loads safely, beside the target first: a kill while writing leaves the old file whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes, brings to the disk, then renames."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # what the hyperparameters' class was is of no use to somebody who reads plain dicts
        content = plain({key: value for key, value in checkpoint.items() if key != "hparams_type"})
        beside = target.with_name(f".{target.name}.tmp")
        with beside.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        replace_durably(beside, target)


def resumable(folder: str | Path) -> str | None:
    """The newest checkpoint in `folder` that can be read, to hand to `fit(ckpt_path=...)`; None = from the start.

    Says which file is broken and what is used instead.
    """
    paths = [Path(folder) / name for name in (LAST, PREVIOUS)]
    for path, next_best in zip(paths, (f"the one before ({PREVIOUS})", "the start"), strict=True):
        if not path.is_file():
            continue
        try:
            torch.load(path, map_location="cpu", weights_only=True)["loops"]["fit_loop"]
        except Exception as error:  # torn zip, foreign pickle, missing key: whatever it is, it is no checkpoint
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
            say(f"{path} cannot be read ({reason}); training goes on from {next_best}.")
            continue
        return str(path)
    return None


class LastCheckpoint(Checkpoint):
    """Keeps last.ckpt, and the one before it as previous.ckpt: every `seconds` of training and at each epoch's end.

    A checkpoint is taken after a step, never before an evaluation that is still to come, and takes effect when the
    step's metrics have been written. At the start of a fit the loggers forget the steps that are run again.
    """

    def __init__(self, folder: str | Path, *, seconds: float | int = 60.0) -> None:
        self.folder = Path(folder)
        self.seconds = seconds
        self._taken = 0.0
        self._loader_states: list[Any] = []

    @property
    def _staged(self) -> Path:
        return self.folder / f"{LAST}.staged"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses what would make a resumed run differ.

        Raises:
            TypeError: the module changes itself after the moment of the checkpoint.
            ValueError: the Trainer counts steps.
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
            trainer.strategy.checkpoint_io = PlainCheckpointIO()
        if trainer.is_global_zero:
            self._staged.unlink(missing_ok=True)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes the loaders' positions: Lightning forgets them when it goes on at an epoch's end."""
        self._loader_states = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts loaders and loggers where the checkpoint was taken; without one, at the beginning."""
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
        """Takes a checkpoint when it is time, unless an evaluation follows or gradients are being accumulated."""
        due = trainer.strategy.broadcast(time.monotonic() - self._taken >= self.seconds)
        if not due or trainer.is_last_batch or trainer.should_stop:
            return
        evaluate_every = trainer.val_check_batch
        if evaluate_every is not None and (batch_idx + 1) % evaluate_every == 0:
            return
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._take(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes a checkpoint after the epoch's evaluation."""
        self._take(trainer)

    def _take(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self._staged, weights_only=False)
        self._taken = time.monotonic()

    def _commit(self, trainer: L.Trainer) -> None:
        # only now: the step's row is in metrics.jsonl, so the checkpoint cannot run ahead of it
        if trainer.is_global_zero and self._staged.is_file():
            last = self.folder / LAST
            if last.is_file():
                os.replace(last, self.folder / PREVIOUS)
            replace_durably(self._staged, last)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Lets the checkpoint of the last step take effect."""
        self._commit(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lets the checkpoint of the last epoch take effect."""
        self._commit(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lets the checkpoint of the last epoch take effect."""
        self._commit(trainer)


class StopAfter(Callback):
    """Ends training after `steps` optimizer steps of the whole run, with an evaluation; None never ends it.

    Used in place of the Trainer's own max_steps, which does not resume exactly and does not evaluate.
    """

    def __init__(self, steps: int | None) -> None:
        self.steps = steps

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends at once where the run was already there."""
        self._stop(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts."""
        self._stop(trainer)

    def _stop(self, trainer: L.Trainer) -> None:
        if self.steps is not None and trainer.global_step >= self.steps:
            trainer.should_stop = True


class FeasibleCheckpoint(ModelCheckpoint):
    """best.ckpt: the highest `score` among evaluations that met the budget (`feasible` is 1); the earlier one on a tie.

    As long as none has, closest.ckpt: the smallest `budget_gap`, a higher score on a tie. Both hold weights only.
    `best_model_path` stays "" when no evaluation met the budget; `closest_model_path` is "" once one has.
    """

    METRICS = ("score", "feasible", "budget_gap")

    def __init__(self, folder: str | Path) -> None:
        super().__init__(
            dirpath=folder,
            filename=BEST.removesuffix(".ckpt"),
            monitor="score",
            mode="max",
            save_weights_only=True,
            save_on_train_epoch_end=False,
            auto_insert_metric_name=False,
            enable_version_counter=False,  # a file that a killed run left is overwritten, not kept as best-v1.ckpt
        )
        self.closest_model_path = ""
        self._closest: tuple[float, float] | None = None  # gap and negative score: smaller is better

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Prepares the folder; that it is not empty is what a resumed run expects."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
            super().setup(trainer, pl_module, stage)
        if not isinstance(trainer.strategy.checkpoint_io, PlainCheckpointIO):
            trainer.strategy.checkpoint_io = PlainCheckpointIO()

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Whether the evaluation that just ended is the best one that met the budget."""
        score, feasible, _ = self._measured(trainer)
        if feasible < 0.5 or score != score:  # NaN is no score
            return False
        return super().check_monitor_top_k(trainer, current)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps the best, or as long as there is none the closest."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or trainer.fast_dev_run:
            return
        path = Path(str(self.dirpath)) / CLOSEST
        if self.best_model_path:
            self._closest, self.closest_model_path = None, ""
            if trainer.is_global_zero:
                path.unlink(missing_ok=True)
            return
        score, _, gap = self._measured(trainer)
        rank = (gap if gap == gap else float("inf"), -score if score == score else float("inf"))
        if self._closest is None or rank < self._closest:
            self._closest, self.closest_model_path = rank, str(path)
            trainer.save_checkpoint(path, weights_only=True)

    def _measured(self, trainer: L.Trainer) -> tuple[float, float, float]:
        found = trainer.callback_metrics
        missing = [name for name in self.METRICS if name not in found]
        if missing:
            raise ValueError(
                f"the evaluation logged {', '.join(sorted(found)) or 'nothing'}, but FeasibleCheckpoint needs "
                f"{', '.join(self.METRICS)}: log {', '.join(missing)} in on_validation_epoch_end."
            )
        score, feasible, gap = (float(found[name]) for name in self.METRICS)
        return score, feasible, gap

    def state_dict(self) -> dict[str, Any]:
        """Scores only; where the files lie follows from the run's folder, which may have been moved."""
        best = float(self.best_model_score) if self.best_model_path and self.best_model_score is not None else None
        return {"best_score": best, "closest": list(self._closest) if self._closest else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Knows again which files it keeps."""
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
