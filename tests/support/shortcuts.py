"""What tests do without because no test is about it, and all of them would pay for it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
from hydra._internal.config_repository import ConfigRepository

from support.paths import ROOT
from support.shapes import checked


def take() -> None:
    """Change the libraries of this process; before prunekit is imported, which is decorated at its import."""
    jaxtyping.jaxtyped = checked  # what --jaxtyping-packages decorates by
    os.fsync = lambda descriptor: None  # a kill loses nothing without it, a power cut is not tested
    ConfigRepository.load_config = remembering(ConfigRepository.load_config)


def remembering(load: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """Read each file of conf/ once, where Hydra reads all of them for every configuration; give out copies."""
    read: dict[Any, bytes] = {}

    def load_config(self: Any, config_path: str) -> Any:
        places = tuple(source.path for source in self.sources)
        if not all(place in ("", "hydra.conf") or Path(place).is_relative_to(ROOT) for place in places):
            return load(self, config_path)  # a test may change files of its own
        if (places, config_path) not in read:
            read[places, config_path] = pickle.dumps(load(self, config_path))
        return pickle.loads(read[places, config_path])

    return load_config
