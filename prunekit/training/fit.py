"""Fit a method with Lightning, resumable at every step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from prunekit.training.checkpoints import (
    FeasibleCheckpoint,
    LastCheckpoint,
    find_resumable,
    load_weights,
)
from prunekit.training.hardware import accelerator_of, precision_of
from prunekit.training.progress import Progress
from prunekit.training.rng import RngState
from prunekit.training.stopping import StopAfter, StopWithoutProgress


def fit(
    module: L.LightningModule,
    data: L.LightningDataModule,
    settings: Mapping[str, Any],
    checkpoints: Path,
    *,
    asked: float | None = None,
    loggers: list[Logger] | None = None,
    owner: str = "",
    after: float | None = None,
) -> None:
    """Train, or resume where a killed run stopped; the module then has the weights of the chosen checkpoint.

    `settings` is the trainer block of the configuration, `owner` the hash of the run, whose checkpoints alone are
    resumed. The progress line shows `asked`, the FLOPs reduction, and counts `after`, the estimated seconds that the
    run takes after this fit.

    Raises:
        KeyboardInterrupt: the user or the system ended the training, which can be resumed.
        RuntimeError: no evaluation took place.
        DamagedCheckpointError: the chosen checkpoint was damaged since it was written.
    """
    best, patience = FeasibleCheckpoint(checkpoints, owner), settings["early_stopping"]
    trainer = L.Trainer(
        max_epochs=settings["epochs"],
        accelerator=accelerator_of(settings["accelerator"]),
        devices=1,  # several processes are not supported yet
        precision=precision_of(settings["precision"]),
        accumulate_grad_batches=settings["accumulate_grad_batches"],
        plugins=[LightningEnvironment()],  # one process, whatever a cluster's variables say
        logger=loggers or [],
        callbacks=[
            best,
            LastCheckpoint(checkpoints, seconds=settings["checkpoint_seconds"], owner=owner),
            RngState(),
            StopAfter(settings["max_steps"]),
            *([] if patience is None else [StopWithoutProgress(patience)]),
            Progress(asked, settings["max_steps"], after),
        ],
        val_check_interval=1.0 / settings["evals_per_epoch"],
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module.train()  # transformers loads models in evaluation mode, without dropout
    try:
        trainer.fit(module, datamodule=data, ckpt_path=find_resumable(checkpoints, owner))
    except SystemExit as ended:
        # lightning ends the process itself when it is interrupted; the caller decides what that means
        if isinstance(ended, SIGTERMException) or isinstance(ended.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from ended
        raise
    chosen = best.best_model_path or best.closest_model_path
    if not chosen:
        raise RuntimeError(f"{checkpoints} holds no checkpoint after training: no evaluation took place.")
    module.load_state_dict(load_weights(checkpoints / Path(chosen).name, owner))
