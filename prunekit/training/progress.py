"""Progress of a fit: one live line on a terminal, an occasional plain line elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback

from prunekit.console import SEPARATOR, StatusLine, clock, rate, say


class Progress(Callback):
    """Callback that shows step, losses, budget, tokens and ETA of a fit.

    `budget` is the FLOPs reduction asked for, or None; `after` are the estimated seconds from the end of this fit to
    the end of the whole run, whose ETA is then shown, and that of the fit beside it. The values come from what the
    module logs: train/<term>, score, tokens/layer_<i> or keep/layer_<i>, budget/expected (share of FLOPs saved),
    val/flops_vs_unpadded.
    """

    def __init__(
        self, budget: float | int | None = None, max_steps: int | None = None, after: float | None = None
    ) -> None:
        self.budget = budget
        self.after = after
        self.max_steps = max_steps  # where training stops before its last epoch
        self._line: StatusLine | None = None
        self._began = 0.0
        self._first = 0  # optimizer steps taken before this process, in a resumed run
        self._evaluating = 0.0  # seconds spent in evaluations
        self._evaluations = 0  # number of evaluations
        self._evaluation_began = 0.0
        self._expected: tuple[float, int] | None = None
        self._terms: Collection[str] | None = None  # of the last step's loss; None = all that have been logged

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._line = StatusLine() if trainer.is_global_zero else None
        self._began, self._first = time.monotonic(), trainer.global_step
        self._evaluating, self._evaluations, self._expected = 0.0, 0, None
        if self._first and self._line is not None:
            say(f"fit        resumes at step {self._first} of {self._total(trainer)}")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraw the line when it is due."""
        self._terms = outputs.get("terms")
        if self._line is not None and self._line.due:
            self._line.update(self._fit_parts(trainer))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record when the evaluation began."""
        self._evaluation_began = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Redraw the line when it is due."""
        if self._line is not None and self._line.due:
            total = trainer.num_val_batches[dataloader_idx] if trainer.num_val_batches else 0
            self._line.update([f"evaluate {_epoch(trainer)}", f"batch {batch_idx + 1}/{total}"])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print a permanent line with the result of the evaluation."""
        self._evaluating += time.monotonic() - self._evaluation_began
        self._evaluations += 1
        if self._line is not None and not trainer.sanity_checking:
            say(SEPARATOR.join(self._evaluation_parts(trainer)))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the live line."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Remove the live line before the error is printed."""
        self._close()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove the live line."""
        self._close()

    def _close(self) -> None:
        if self._line is not None:
            self._line.close()

    def _total(self, trainer: L.Trainer) -> int:
        total = _total_steps(trainer)
        return total if self.max_steps is None else min(total, self.max_steps)

    def _fit_parts(self, trainer: L.Trainer) -> list[str]:
        steps, total = trainer.global_step, self._total(trainer)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        spent = time.monotonic() - self._began
        training = max(1e-9, spent - self._evaluating)
        parts = [f"fit {_epoch(trainer)}", f"step {steps}/{total}"]
        losses = _loss_parts(metrics, self._terms)
        parts += losses[:1]
        parts += self._budget_parts(metrics, steps)
        if steps > self._first:
            left = training / (steps - self._first) * max(0, total - steps)
            if self._evaluations:
                left += self._evaluating / self._evaluations * _remaining_evaluations(trainer, steps, total)
            parts.append(f"ETA {clock(left + (self.after or 0.0))}")
            if self.after is not None:
                losses = [*losses[:1], f"fit {clock(left)}", *losses[1:]]
        parts.append(rate(steps - self._first, training))
        return parts + losses[1:] + _score_parts(metrics) + _token_parts(metrics)

    def _evaluation_parts(self, trainer: L.Trainer) -> list[str]:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        now = metrics.get("val/flops_vs_unpadded")
        losses = _loss_parts(metrics, self._terms)
        parts = [_epoch(trainer), f"step {trainer.global_step}", *losses, *_score_parts(metrics)]
        if now is not None:
            parts.append(_budget(now, self.budget))
        return [*parts, *_token_parts(metrics), clock(time.monotonic() - self._began)]

    def _budget_parts(self, metrics: Mapping[str, float], step: int) -> list[str]:
        """Return the budget that training expects while it keeps reporting one, else the last measured one."""
        expected = metrics.get("budget/expected")
        if expected is not None and (self._expected is None or self._expected[0] != expected):
            self._expected = (expected, step)
        measured = metrics.get("val/flops_vs_unpadded")
        stale = self._expected is None or step - self._expected[1] > 50
        if self._expected is not None and not (stale and measured is not None) and self._expected[0] < 1:
            return [_budget(1 / (1 - self._expected[0]), self.budget)]
        return [] if measured is None else [_budget(measured, self.budget)]


def _total_steps(trainer: L.Trainer) -> int:
    return _steps_per_epoch(trainer) * max(1, trainer.max_epochs or 1)


def _steps_per_epoch(trainer: L.Trainer) -> int:
    return -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)


def _remaining_evaluations(trainer: L.Trainer, steps: int, total: int) -> float:
    """Return the number of evaluations after this step, including those within an epoch."""
    every = getattr(trainer, "val_check_batch", None)
    if not isinstance(every, int | float) or not math.isfinite(every) or every <= 0:
        every = trainer.num_training_batches
    between = max(1.0, float(every) / trainer.accumulate_grad_batches)
    return max(0.0, total // between - steps // between)


def _epoch(trainer: L.Trainer) -> str:
    return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"


def _budget(now: float, asked: float | int | None) -> str:
    return f"budget {now:.2f}x" if asked is None else f"budget {now:.2f}x -> {asked:.2f}x"


def _loss_parts(metrics: Mapping[str, float], now: Collection[str] | None) -> list[str]:
    """Return the loss and the terms in `now`, because Lightning also keeps the terms of earlier stages."""
    terms = {name[len("train/") :]: value for name, value in metrics.items() if name.startswith("train/")}
    total = terms.pop("loss", None)
    terms = {name: value for name, value in terms.items() if now is None or name in now}
    parts = [] if total is None else [f"loss {total:.3f}"]
    if len(terms) > 1:  # a single term is the loss
        parts.append(" ".join(f"{name} {value:.3f}" for name, value in terms.items()))
    return parts


def _score_parts(metrics: Mapping[str, float]) -> list[str]:
    return [f"score {100 * metrics['score']:.2f}"] if "score" in metrics else []


def _token_parts(metrics: Mapping[str, float]) -> list[str]:
    for prefix, form in (("keep/layer_", "{:.2f}"), ("tokens/layer_", "{:.0f}")):
        names = sorted(name for name in metrics if name.startswith(prefix))
        if names:
            return [prefix.split("/")[0] + " " + " ".join(form.format(metrics[name]) for name in names)]
    return []
