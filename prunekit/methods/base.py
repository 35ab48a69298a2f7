"""The Lightning module that every token-pruning method shares: training step, evaluation, optimiser, life cycle.

A method is two classes. Its `Options`, a frozen dataclass, are the keys of its file in conf/method and everything that
is decided before there is a model: which scorer and policy (`build_pruner`), which budgets are feasible. Its module
subclasses `TokenPruningMethod` and defines the terms of its loss (`terms`). Everything else has a default.

A run calls them in this order:

1. `Options.from_config(keys)` refuses unknown keys; `options.completed(context)` fills in what is null and follows from
   the texts or the budget.
2. With a latency goal instead of a budget, `options.build_pruner`, `feasible` and `likely_counts` turn the goal into a
   budget; then the options are completed again, for that budget.
3. `options.asks(context)`, `options.feasible(context)` and `options.steps(context)`: a reduction out of reach ends the
   run here, before the teacher is trained.
4. `options.equip(model, shape)` installs the pruner of `build_pruner` in the fine-tuned teacher (the dense method: in
   the backbone), or changes it in another way, and `Method(model, context, options)` is built on it.
5. If `options.trains(training)`, the model is fitted:
   - soft stage: `terms(batch)` at each step, while the decisions are learned;
   - where the last `options.count_hard_steps(training)` steps begin: `freeze_decisions()`, once;
   - hard stage: `terms(batch)` at each step, with fixed decisions;
   - at each validation: `on_validation_epoch_start()`, the batches under "mask", and `meets_budget(reduction)`.
     At the end of the fit the checkpoint with the best score among those that meet the budget is restored, or else
     the one closest to the budget.
   Otherwise `calibrate()`, once: the knob is set on the weights as they are.
6. `finalise(workplace)`, once: decisions that need the weights that the run keeps.
7. The test under `test_execution`, and `budget_report(reduction)` with what validation measured.

A run that is interrupted repeats 1 to 4, and restores in 5 what a checkpoint holds: parameters and buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.data.encoding import Batch
from prunekit.evaluation.evaluate import Evaluation, predict
from prunekit.losses import TEMPERATURE, distils, imitation_loss, task_loss
from prunekit.methods.context import Loss, MethodContext
from prunekit.methods.options import MethodOptions as MethodOptions  # a method needs both, also one of another package
from prunekit.models.forward import decodes, forward_logits
from prunekit.tokens.encoder import encoder_of
from prunekit.tokens.families.embeddings import embeddings_of
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.state import Execution, Trace


class TokenPruningMethod(L.LightningModule):
    """One method on one model. Validation runs under "mask", the test under "pack"; both are deterministic."""

    uses_teacher: ClassVar[bool] = False  # whatever the loss
    Options: ClassVar[type[MethodOptions]] = MethodOptions

    def __init__(self, model: PreTrainedModel, context: MethodContext, options: MethodOptions) -> None:
        super().__init__()
        self.model = model
        self.context = context
        self.options = options
        if context.training.freeze_embeddings:
            embeddings_of(model).requires_grad_(False)
        self.asked: float | None = options.asks(context)
        self.trains: bool = options.trains(context.training)
        self.hard_steps = options.count_hard_steps(context.training)
        self.soft_steps = max(0, context.training.steps - self.hard_steps)
        self._evaluations: dict[int, Evaluation] = {}
        if self.pruner is not None:
            self.pruner.scorer.pad_to(context.spec.max_length)

    # -- what a method overrides -----------------------------------------------------------------------

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the training loss, already weighted; they are logged one by one and summed."""
        return self.task_terms(self(batch), batch)

    def freeze_decisions(self) -> None:
        """Fix the decisions so that they meet the budget: called once, where the hard stage begins."""

    def calibrate(self) -> None:
        """Set the method's knob so that the model, with its weights as they are, meets the budget on validation.

        Called instead of a fit where the method does not train. Does nothing by default.
        """

    def finalise(self, workplace: Path) -> dict[str, Any]:
        """Take the decisions that need the weights that the run keeps: called once, after the fit or `calibrate`.

        What takes long is stored in the folder `workplace`, so that an interrupted run resumes; it is removed when the
        run is finished. Return numbers for the result and the plots, by default none.
        """
        return {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimiser groups besides the weights; each has a constant learning rate and its own `name`."""
        return []

    def meets_budget(self, reduction: float) -> bool:
        """Return whether an evaluation that measured this FLOPs reduction may become the best checkpoint."""
        return self.budget_error(reduction) <= self.context.tolerance

    @property
    def test_execution(self) -> Execution:
        """The execution of the test and of the saved model: "pack" wherever that equals "mask"."""
        return "pack"

    def budget_report(self, reduction: float) -> dict[str, Any]:
        """Report what was asked, the measured reduction on validation, and whether it meets the budget."""
        return {"asked": self.asked, "reached": reduction, "met": self.meets_budget(reduction)}

    def budget_error(self, reduction: float) -> float:
        """Return the distance of a measured FLOPs reduction from what was asked, as a fraction of FLOPs; 0 = met."""
        return 0.0 if self.asked is None else abs(self.asked / reduction - 1)

    @property
    def hard(self) -> bool:
        """Whether training is in its hard stage: decisions are fixed, and only the weights learn."""
        return self.hard_steps > 0 and self.global_step >= self.soft_steps

    # -- the model -------------------------------------------------------------------------------------

    @property
    def pruner(self) -> TokenPruner | None:
        """The pruner that the encoder carries."""
        return encoder_of(self.model).pruner

    def forward(
        self, batch: Batch, execution: Execution = "mask", trace: Trace | None = None, budget: str | None = None
    ) -> Tensor:
        """Return the logits of a batch, as in `forward_logits`."""
        return forward_logits(self.model, batch, execution, trace, budget)

    # -- the loss of the task --------------------------------------------------------------------------

    @property
    def loss(self) -> Loss:
        """What the model learns the task from: labels, the teacher's logits, or both."""
        return self.context.loss

    @property
    def kd_temperature(self) -> float:
        """Temperature at which the teacher's logits are learned."""
        return TEMPERATURE

    def task_terms(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the loss on the labels as "task", that on the teacher's logits as "kd", or both, as `loss` says.

        Where these carry no more information than labels, as values do not, labels are used.
        """
        kind, teacher, training = self.context.spec.kind, self.context.teacher, self.context.training

        def on_labels() -> Tensor:
            return task_loss(logits, batch["labels"], kind, training.label_smoothing, training.class_weights)

        if self.loss == "ce" or not distils(kind):
            return {"task": on_labels()}
        assert teacher is not None
        wanted, _ = teacher.batch(batch["index"], batch["input_ids"].shape[1])
        terms = {"kd": imitation_loss(logits, wanted, kind, self.kd_temperature)}
        if self.loss == "kd+ce":
            terms["task"] = on_labels()
        return terms

    # -- fitting ---------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Call `begin_step` before the first batch of each optimiser step."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.begin_step(self.global_step)

    def begin_step(self, step: int) -> None:
        """Begin the hard stage at its first step: freeze the decisions and clear the optimiser's state."""
        if self.hard and step == self.soft_steps:
            self.freeze_decisions()
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()
            # what the soft stage logged would be logged on to the epoch's end, but not after a resume
            self.trainer._results.reset()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return the sum of the method's terms as "loss", and their names, which differ between stages, as "terms"."""
        terms = self.terms(batch)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        if not torch.isfinite(loss):
            parts = ", ".join(f"{name} {float(term.detach()):.3g}" for name, term in terms.items())
            raise FloatingPointError(
                f"the loss is {float(loss.detach())} at step {self.global_step} ({parts}); "
                f"lower trainer.lr={self.context.training.lr:g}, or look for what is wrong in that batch."
            )
        size = len(batch["labels"])
        self.log_dict({f"train/{name}": term.detach().float() for name, term in terms.items()}, batch_size=size)
        self.log("train/loss", loss.detach(), batch_size=size)
        return {"loss": loss, "terms": tuple(terms)}

    def weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate over the trainable parameters of the model, without those of the pruner."""
        own = {id(parameter) for parameter in self.pruner.parameters()} if self.pruner is not None else set()
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and id(parameter) not in own:
                yield name, parameter

    def _is_head(self, name: str) -> bool:
        """Return whether a parameter belongs to the pooler or the head, which a pretrained checkpoint lacks."""
        if decodes(self.model):
            return False  # a decoder comes with its encoder
        body = f"{self.model.base_model_prefix}."
        return not name.startswith(body) or name.startswith(f"{body}pooler.")

    @property
    def hard_peak(self) -> float:
        """Peak learning rate of the hard stage, as a multiple of that of the soft stage."""
        return 1.0

    def weights_rate(self, step: int) -> float:
        """Return the factor of the weights' learning rate at a step; each stage has its own schedule."""
        training = self.context.training
        if step < self.soft_steps or self.hard_steps == 0:
            return training.rate(step, self.soft_steps)
        return self.hard_peak * training.rate(step - self.soft_steps, training.steps - self.soft_steps)

    def configure_optimizers(self) -> dict[str, Any]:
        """Build one AdamW: the weights follow `weights_rate`, the method's groups have a constant rate."""
        training = self.context.training
        groups: list[dict[str, Any]] = []
        for part, rate in (("body", training.lr), ("head", training.head_lr or training.lr)):
            own = [parameter for name, parameter in self.weights() if self._is_head(name) == (part == "head")]
            decayed, plain = [p for p in own if p.dim() > 1], [p for p in own if p.dim() <= 1]
            groups += [
                {"params": decayed, "lr": rate, "weight_decay": training.weight_decay, "name": f"{part} weights"},
                {"params": plain, "lr": rate, "weight_decay": 0.0, "name": f"{part} biases and norms"},
            ]
        extra = [{"weight_decay": 0.0, **group} for group in self.parameter_groups()]
        optimizer = torch.optim.AdamW(groups + extra, lr=training.lr, fused=True)

        def weights_rate(step: int) -> float:  # a plain function: the schedule's state must not hold a method
            return self.weights_rate(step)

        def constant(step: int) -> float:
            return 1.0

        rates: list[Any] = [*[weights_rate] * len(groups), *[constant] * len(extra)]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Clip the weights alone: multipliers and gates must not rescale them, nor be rescaled."""
        if self.context.training.clip > 0:
            nn.utils.clip_grad_norm_([p for _, p in self.weights()], self.context.training.clip)

    # -- evaluation ------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Discard the numbers of the last evaluation."""
        self._evaluations = {}

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluate a batch under "mask"."""
        if dataloader_idx not in self._evaluations:
            context = self.context
            targets = context.targets[dataloader_idx]
            self._evaluations[dataloader_idx] = Evaluation(context.spec, context.shape, targets, self.device)
        logits, trace = predict(self.model, batch, "mask")
        self._evaluations[dataloader_idx].update(logits, batch, trace)

    def on_validation_epoch_end(self) -> None:
        """Log every metric of every validation split, and whether the first one meets the budget."""
        for number, evaluation in self._evaluations.items():
            measured = evaluation.compute()
            prefix = "val" if number == 0 else f"val_{number}"
            self.log_dict({f"{prefix}/{name}": value for name, value in (measured.metrics | measured.cost).items()})
            if number == 0:
                self.log_dict({f"tokens/layer_{i:02d}": count for i, count in enumerate(measured.tokens_per_layer)})
                self.log("score", measured.metrics[self.context.spec.chosen_by])
                self.log("feasible", float(self.meets_budget(measured.reduction)))
                self.log("budget_gap", self.budget_error(measured.reduction))
