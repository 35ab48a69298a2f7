"""Ends of a training before its last epoch."""

from __future__ import annotations

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback, EarlyStopping


class StopAfter(Callback):
    """Callback that ends training after `steps` optimizer steps of the whole run, with an evaluation; None = never.

    Replaces the Trainer's own max_steps, which does not resume exactly and does not evaluate.
    """

    def __init__(self, steps: int | None) -> None:
        self.steps = steps

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once if a resumed run has already reached the number of steps."""
        self._stop(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Stop if this was the last step."""
        self._stop(trainer)

    def _stop(self, trainer: L.Trainer) -> None:
        if self.steps is not None and trainer.global_step >= self.steps:
            trainer.should_stop = True


class StopWithoutProgress(EarlyStopping):
    """Callback that ends training after `patience` evaluations in a row without a better `score`.

    Evaluations that do not meet the budget (`feasible` is 0) do not count: their scores are those of other models.
    """

    def __init__(self, patience: int) -> None:
        super().__init__("score", mode="max", patience=patience, check_on_train_epoch_end=False, check_finite=False)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once if a resumed run has already waited that long."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True

    def _run_early_stopping_check(self, trainer: L.Trainer) -> None:
        if float(trainer.callback_metrics["feasible"]) > 0.5:
            super()._run_early_stopping_check(trainer)
