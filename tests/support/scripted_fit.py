"""A fit of a module whose evaluations are given, one per epoch."""

import lightning.pytorch as L
import torch
from torch import nn


class Scripted(L.LightningModule):
    """A module that evaluates to the given metrics, one triple per epoch; its weight is the number of the epoch."""

    def __init__(self, script, names=("score", "feasible", "budget_gap")):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.script = script
        self.names = names

    def training_step(self, batch, batch_idx):
        return self.weight.sum()

    def on_train_epoch_start(self):
        with torch.no_grad():
            self.weight.fill_(float(self.current_epoch))

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        self.log_dict(dict(zip(self.names, map(float, self.script[self.current_epoch]), strict=False)))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Steps:
    """Batches 0, 1, 2, ..., from a position."""

    def __init__(self, steps=1):
        self.steps = steps

    def __len__(self):
        return self.steps

    def __iter__(self):
        yield from torch.arange(self.steps)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def fit(module, callbacks, *, epochs, resume=None, **options):
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, Steps(), Steps(), ckpt_path=resume)
    return trainer
