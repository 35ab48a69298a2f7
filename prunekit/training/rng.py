"""States of the global random generators, saved in checkpoints so that a resumed run draws the same numbers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback


class RngState(Callback):
    """Callback that saves the states of torch's, CUDA's, numpy's and Python's global generators, per process.

    They are restored when the first epoch or step after a resume begins. Generator objects of numpy and torch are the
    responsibility of the code that made them.
    """

    def __init__(self) -> None:
        self._pending: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the current states of all processes."""
        own = rng_states()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            processes: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(processes, own)
            return {"processes": processes}
        return {"processes": [own]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Hold the states until training begins, because setting up draws random numbers.

        Raises:
            ValueError: the checkpoint was written by another number of processes.
        """
        processes = state_dict["processes"]
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, size = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
        if len(processes) != size:
            raise ValueError(
                f"the checkpoint was written by {len(processes)} processes and this run has {size}; "
                f"resume with the same trainer.devices, or start again with force=true."
            )
        self._pending = processes[rank]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the states where the run resumes at an epoch's end."""
        self._restore()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restore the states where the run resumes within an epoch."""
        self._restore()

    def _restore(self) -> None:
        if self._pending is not None:
            restore_rng_states(self._pending)
            self._pending = None


def rng_states() -> dict[str, Any]:
    """Return the states of the global generators, in types that load without unpickling."""
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
    """Set the global generators to states that `rng_states` returned."""
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
