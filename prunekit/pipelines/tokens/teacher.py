"""Stage 2 of a token-pruning run: the dense teacher, found or trained, and its outputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prunekit import files


@dataclass(frozen=True)
class Teacher:
    """A dense model that pruning starts from and learns from, and its run's result when prunekit made it."""

    folder: Path
    result: dict[str, Any] | None

    @cached_property
    def weights_sha256(self) -> str:
        """Of the weights' file, which is read once."""
        return files.sha256(self.folder / "model.safetensors")
