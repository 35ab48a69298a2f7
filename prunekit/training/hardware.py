"""Accelerator, precision, CPU threads and the one process of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from lightning.pytorch.utilities import rank_zero_only

from prunekit.config.errors import ConfigError


def accelerator_of(asked: str) -> str:
    """Return Lightning's name for `trainer.accelerator`; "auto" is a CUDA GPU if there is one, else the CPU.

    Raises:
        ConfigError: a GPU was asked for but is not available.
    """
    available = torch.cuda.is_available()
    if asked == "gpu" and not available:
        raise ConfigError(
            "trainer.accelerator=gpu, but torch sees no CUDA GPU here.\n"
            "Allowed: auto, cpu.\nLeave it out, or install a torch that was built for this GPU."
        )
    return "gpu" if available and asked != "cpu" else "cpu"


def precision_of(asked: str | int) -> str:
    """Return Lightning's name for `trainer.precision`; "auto" is bf16 autocast if the hardware multiplies bf16."""
    choice = str(asked)
    if choice == "auto":
        on_gpu = torch.cuda.is_available()
        choice = (
            "bf16" if (torch.cuda.is_bf16_supported() if on_gpu else torch.cpu._is_avx512_bf16_supported()) else "32"
        )
    return {"32": "32-true", "bf16": "bf16-mixed"}[choice]


@cache
def _threads_at_start() -> int:
    return torch.get_num_threads()


def use_threads(asked: int | None) -> None:
    """Set the number of CPU threads of torch; None restores torch's default, even after an earlier run changed it."""
    default = _threads_at_start()
    torch.set_num_threads(asked or default)


# a process's place among others, as launchers leave it in the environment
RANKS = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
    "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE",
    "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE",
    "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE",
)  # fmt: skip


@contextmanager
def single_process() -> Iterator[None]:
    """Make this process the first and only one for the libraries, whatever a launcher left in the environment.

    A run is one process; one that took itself for the second of four would write no records. Does nothing in a process
    that has joined a group.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        yield
        return
    hidden = {name: os.environ.pop(name) for name in RANKS if name in os.environ}
    before = rank_zero_only.rank
    rank_zero_only.rank = 0
    try:
        yield
    finally:
        rank_zero_only.rank = before
        os.environ.update(hidden)
