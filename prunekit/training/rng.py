"""The states of the global random generators, kept in checkpoints so that a resumed run draws the same numbers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback


class RngState(Callback):
    """Keeps the states of torch's, CUDA's, numpy's and Python's global generators in the checkpoint, per process.

    They are put back when the first epoch or step after a resume begins; numpy's and torch's own Generator objects
    belong to whoever made them.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states now, of all processes."""
        mine = rng_states()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everyone: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everyone, mine)
            return {"processes": everyone}
        return {"processes": [mine]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the states until training begins: setting up draws numbers of its own."""
        processes = state_dict["processes"]
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, size = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
        if len(processes) != size:
            raise ValueError(
                f"the checkpoint was written by {len(processes)} processes and this run has {size}; "
                f"resume with the same trainer.devices, or start again with force=true."
            )
        self._waiting = processes[rank]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restores, where the run goes on at an epoch's end."""
        self._restore()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restores, where the run goes on within an epoch."""
        self._restore()

    def _restore(self) -> None:
        if self._waiting is not None:
            restore_rng_states(self._waiting)
            self._waiting = None


def rng_states() -> dict[str, Any]:
    """The states of the global generators, in types that load safely."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [
            name,
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "python": random.getstate(),
    }


def restore_rng_states(states: Mapping[str, Any]) -> None:
    """Puts back what `rng_states` returned."""
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
