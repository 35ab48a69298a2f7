"""A toy fit with dropout that kills itself; run as a script by test_checkpoint.py, because a kill needs a process.

    python killed_fit.py FOLDER PLAN

PLAN is a JSON list of [name, spots]: each spot is where a process of run `name` kills itself (SIGKILL), or null for
one that runs through. Every process is forked from this one, so that the imports are paid once.
"""

import hashlib
import json
import os
import random
import signal
import sys
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import lightning.pytorch as L
import numpy as np
import torch
from torch import nn

from prunekit.training.checkpoints import (
    FeasibleCheckpoint,
    LastCheckpoint,
    PlainCheckpointIO,
    find_resumable,
)
from prunekit.training.metrics_log import JsonlLogger
from prunekit.training.progress import Progress
from prunekit.training.rng import RngState
from prunekit.training.stopping import StopAfter

assert "wandb" not in sys.modules  # imported only where it is asked for

torch.set_num_threads(1)
EPOCHS, ROWS = 3, 80


class StepLoader:
    """Batches as a pure function of seed and position; the position is the whole state."""

    def __init__(self, rows, batch_size, seed):
        self.steps, self.batch_size, self.seed, self.position = rows // batch_size, batch_size, seed, 0

    def __len__(self):
        return self.steps

    def __iter__(self):
        while True:
            epoch, step = divmod(self.position, self.steps)
            generator = torch.Generator().manual_seed(self.seed + epoch)
            order = torch.randperm(self.steps * self.batch_size, generator=generator)
            self.position += 1
            yield order[step * self.batch_size : (step + 1) * self.batch_size]
            if self.position % self.steps == 0:
                return

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Toy(L.LightningModule):
    """Dropout, numpy noise and Python noise, so that every generator matters; dies at a spot such as "batch 7"."""

    def __init__(self, spot=None):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.3), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))
        self.register_buffer("inputs", torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(5)))
        self.spot = spot

    def here(self, spot):
        if spot == self.spot:
            die()

    def training_step(self, batch, batch_idx):
        self.here(f"step {self.global_step}")
        rows = self.inputs[batch] + 0.1 * float(np.random.randn()) + 0.1 * random.random()
        loss = self.net(rows).pow(2).mean() + 0.01 * torch.rand(()) * self.net[0].weight.sum()
        self.log("train/loss", loss.detach())
        return loss

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.here(f"after step {self.global_step}")

    def validation_step(self, batch, batch_idx):
        self.here(f"evaluation {self.global_step}.{batch_idx}")

    def on_validation_epoch_end(self):
        score = float(self.net[0].weight.abs().mean())
        torch.rand(3)  # an evaluation that draws numbers
        self.log_dict({"score": score, "feasible": float(self.global_step >= 20), "budget_gap": 1 / self.global_step})

    def on_train_epoch_end(self):
        self.here(f"epoch end {self.current_epoch}")

    def on_train_epoch_start(self):
        torch.rand(2)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 40)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class KilledWhileWriting(PlainCheckpointIO):
    """Dies with half of a checkpoint on the disk, at the given step."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        if checkpoint["global_step"] == self.step:
            super().save_checkpoint(checkpoint, str(path) + ".whole")
            content = Path(str(path) + ".whole").read_bytes()
            Path(path).with_name(f".{Path(path).name}.tmp").write_bytes(content[: len(content) // 2])
            die()
        super().save_checkpoint(checkpoint, path, storage_options)


def fit(folder, spot, steps=None):
    """One process of the run: goes on where the last one was killed."""
    warnings.filterwarnings("ignore")
    L.seed_everything(1, verbose=False)
    module, best = Toy(spot), FeasibleCheckpoint(folder)
    plugins = [KilledWhileWriting(int(spot.split()[-1]))] if spot and spot.startswith("writing") else None
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        plugins=plugins,
        logger=[JsonlLogger(folder / "metrics.jsonl")],
        callbacks=[best, LastCheckpoint(folder, seconds=0.0), RngState(), StopAfter(steps), Progress(3.0)],
        val_check_interval=0.5,
        num_sanity_val_steps=0,
        log_every_n_steps=2,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, StepLoader(ROWS, 8, seed=3), range(3), ckpt_path=find_resumable(folder))
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in module.state_dict().values()))
    best_weights = torch.load(best.best_model_path, weights_only=True)["state_dict"] if best.best_model_path else {}
    answer = {
        "weights": digest.hexdigest(),
        "best": hashlib.sha256(b"".join(t.numpy().tobytes() for t in best_weights.values())).hexdigest(),
        "best_score": float(best.best_model_score) if best.best_model_path else None,
        "step": trainer.global_step,
    }
    (folder / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    root, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
    for name, spots in plan:
        for spot in spots:
            (root / name).mkdir(exist_ok=True)
            child = os.fork()
            if child == 0:
                fit(root / name, spot, steps=17 if name.startswith("short") else None)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            if killed != (spot is not None) or (not killed and status != 0):
                sys.exit(f"run {name!r}, spot {spot!r}: wait status {status}")
