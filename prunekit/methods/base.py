"""What every token-pruning method shares: the training step, the evaluation that removes tokens, the optimiser.

A method subclasses `TokenPruningMethod`, says which scorer and policy it is (`build_pruner`), and which terms its
loss has (`terms`). Everything else has a default.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as L
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.cost import Shape
from prunekit.evaluation.evaluate import Batch, Evaluation, predict
from prunekit.losses import task_loss
from prunekit.methods.context import MethodContext, Training
from prunekit.models.forward import decodes, forward_logits
from prunekit.tokens.budget import bisect
from prunekit.tokens.encoder import encoder_of
from prunekit.tokens.families.embeddings import embeddings_of
from prunekit.tokens.policies import KeepRatio
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.state import Execution, Trace


class TokenPruningMethod(L.LightningModule):
    """One method on one model. Validation runs under "mask", the test under "pack"; both are deterministic."""

    uses_teacher: ClassVar[bool] = False
    keys: ClassVar[frozenset[str] | None] = None  # of the method's file; None where an Options class knows them

    def __init__(self, model: PreTrainedModel, context: MethodContext, **options: Any) -> None:
        super().__init__()
        unknown = sorted(set(options) - self.keys) if self.keys is not None else []
        if unknown:
            raise TypeError(
                f"{type(self).__name__} does not know {', '.join(unknown)}; "
                f"it takes {', '.join(sorted(self.keys or ()))}."
            )
        self.model = model
        self.context = context
        if context.training.freeze_embeddings:
            embeddings_of(model).requires_grad_(False)
        self.given = options  # the keys of the method's file
        self.asked: float | None = self.asks(context, **options)
        self.trains: bool = options.get("train", True) and context.training.epochs > 0
        self.hard_steps = self.count_hard_steps(context.training, **options)
        self.soft_steps = max(0, context.training.steps - self.hard_steps)
        self._found: dict[int, Evaluation] = {}

    # -- what a method says about itself ---------------------------------------------------------------

    @classmethod
    def build_pruner(cls, shape: Shape, **options: Any) -> TokenPruner | None:
        """Scorer, policy and layers, for a backbone of this shape; None prunes nothing."""
        return None

    @classmethod
    def completed(cls, context: MethodContext, **options: Any) -> dict[str, Any]:
        """The options, with those filled in that are null and follow from the texts; by default as they are."""
        return options

    @classmethod
    def feasible(cls, context: MethodContext, **options: Any) -> tuple[float, float]:
        """Smallest and largest FLOPs reduction that the method can reach on the validation sentences."""
        return 1.0, 1.0

    @classmethod
    def likely_counts(
        cls, context: MethodContext, reduction: float, **options: Any
    ) -> tuple[Float[Tensor, "layers rows"], Float[Tensor, "layers rows"]]:
        """Tokens of each validation sentence in the two halves of each layer, where this FLOPs reduction is reached.

        What training will decide is not known, so this is a guess: at each layer that prunes the same share of those
        that are left goes. A latency is predicted from it.
        """
        shape, lengths = context.shape, context.lengths["validation"]
        pruner = cls.build_pruner(shape, **options)
        layers = sorted(pruner.layers) if pruner is not None else []

        def counts(share: float) -> tuple[Tensor, Tensor]:
            policy = KeepRatio({layer: share ** (number + 1) for number, layer in enumerate(layers)})
            return policy.counts(lengths, shape.layers, context.protected_count)

        def reached(share: float) -> float:
            tokens_in, tokens_out = counts(share)
            spent = sum((pruner.scorer.macs(tokens_in[layer]) for layer in layers), 0.0) if pruner is not None else 0.0
            return context.reduction(tokens_in, tokens_out, spent)

        return counts(bisect(reached, reduction, low=0.0, high=1.0, tolerance=1e-3).knob)

    @classmethod
    def asks(cls, context: MethodContext, **options: Any) -> float | None:
        """The FLOPs reduction that the run is to reach, by the budget or by a knob of the method; None = none."""
        return context.budget

    @classmethod
    def count_hard_steps(cls, training: Training, **options: Any) -> int:
        """How many steps at the end train the weights alone, with what is pruned fixed; 0 = none."""
        return 0

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the training loss, already weighted; they are logged one by one and summed."""
        logits = self(batch)
        return {"task": task_loss(logits, batch["labels"], self.context.spec.kind)}

    def calibrate(self) -> None:
        """Turns the method's knob until the model, with its weights as they are, meets the budget on validation.

        Called instead of a fit where the method does not train. Nothing by default.
        """

    def finalise(self, workplace: Path) -> dict[str, Any]:
        """Decides what only the weights that the run keeps can tell: called once, after the fit or in place of one.

        What takes long is kept in the folder `workplace`, so that an interrupted run goes on; it is removed when the
        run is done. Returns numbers for the result and the plots, by default none.
        """
        return {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups beside the weights; each has a constant learning rate and its own `name`."""
        return []

    def meets_budget(self, reduction: float) -> bool:
        """Whether an evaluation that measured this FLOPs reduction may become the best checkpoint."""
        return self.budget_error(reduction) <= self.context.tolerance

    @property
    def test_execution(self) -> Execution:
        """How the trained model is tested, and runs from then on; "pack" wherever that equals "mask"."""
        return "pack"

    def budget_report(self, reduction: float) -> dict[str, Any]:
        """What was asked and what a measured reduction on validation means for it, for the result."""
        return {"asked": self.asked, "reached": reduction, "met": self.meets_budget(reduction)}

    def budget_error(self, reduction: float) -> float:
        """How far a measured FLOPs reduction is from what was asked, as a fraction of FLOPs; 0 = met."""
        return 0.0 if self.asked is None else abs(self.asked / reduction - 1)

    @property
    def hard(self) -> bool:
        """Whether training is in its hard stage: what is pruned is fixed, and only the weights learn."""
        return self.hard_steps > 0 and self.global_step >= self.soft_steps

    # -- the model -------------------------------------------------------------------------------------

    @property
    def pruner(self) -> TokenPruner | None:
        """The pruner that the traversal carries."""
        return encoder_of(self.model).pruner

    def forward(self, batch: Batch, execution: Execution = "mask", trace: Trace | None = None) -> Tensor:
        """Logits of a batch, as `heads.forward_logits` gives them."""
        return forward_logits(self.model, batch, execution, trace)

    # -- fitting ---------------------------------------------------------------------------------------

    def freeze_decisions(self) -> None:
        """Fixes what is pruned, so that it meets the budget: called once, where the hard stage begins."""

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Where the hard stage begins: fixed decisions, and an optimiser that knows nothing of the soft stage."""
        if self.hard and self.global_step == self.soft_steps:
            self.freeze_decisions()
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """The sum of the method's terms as "loss", and their names as "terms", which differ from stage to stage."""
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
        """Trainable parameters of the model, without the pruner's."""
        own = {id(parameter) for parameter in self.pruner.parameters()} if self.pruner is not None else set()
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and id(parameter) not in own:
                yield name, parameter

    def _is_head(self, name: str) -> bool:
        """Whether a parameter belongs to what a fresh checkpoint does not bring along: the pooler and the head."""
        if decodes(self.model):
            return False  # a decoder comes with its encoder
        body = f"{self.model.base_model_prefix}."
        return not name.startswith(body) or name.startswith(f"{body}pooler.")

    @property
    def hard_peak(self) -> float:
        """Peak learning rate of the hard stage as a multiple of the soft one's."""
        return 1.0

    def weights_rate(self, step: int) -> float:
        """Factor of the weights' learning rate at a step: a schedule of its own for each stage."""
        training = self.context.training
        if step < self.soft_steps or self.hard_steps == 0:
            return training.rate(step, self.soft_steps)
        return self.hard_peak * training.rate(step - self.soft_steps, training.steps - self.soft_steps)

    def configure_optimizers(self) -> dict[str, Any]:
        """One AdamW: weights by `weights_rate`, the method's own groups at a constant rate."""
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
        """Clips the weights alone: multipliers and gates must not rescale them, nor be rescaled."""
        if self.context.training.clip > 0:
            nn.utils.clip_grad_norm_([p for _, p in self.weights()], self.context.training.clip)

    # -- evaluation ------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Starts afresh: an evaluation knows nothing of the last one."""
        self._found = {}

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluates under "mask"."""
        if dataloader_idx not in self._found:
            context = self.context
            questions = context.questions[dataloader_idx] if context.questions else None
            self._found[dataloader_idx] = Evaluation(
                context.spec, context.shape, context.classes, self.device, questions
            )
        logits, trace = predict(self.model, batch, "mask")
        self._found[dataloader_idx].update(logits, batch, trace)

    def on_validation_epoch_end(self) -> None:
        """Logs every metric of every validation split, and whether the first one meets the budget."""
        for number, evaluation in self._found.items():
            found = evaluation.compute()
            prefix = "val" if number == 0 else f"val_{number}"
            self.log_dict({f"{prefix}/{name}": value for name, value in (found.metrics | found.cost).items()})
            if number == 0:
                self.log_dict({f"tokens/layer_{i:02d}": count for i, count in enumerate(found.tokens_per_layer)})
                self.log("score", found.metrics[self.context.spec.chosen_by])
                self.log("feasible", float(self.meets_budget(found.reduction)))
                self.log("budget_gap", self.budget_error(found.reduction))
