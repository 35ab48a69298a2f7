"""Accelerator, precision and CPU threads from the configuration."""

from __future__ import annotations

from functools import cache

import torch

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
