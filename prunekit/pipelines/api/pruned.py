"""A pruned model with the run that made it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

from prunekit.config.errors import ConfigError
from prunekit.pipelines.api.hub import push_folder
from prunekit.runs.folder import MODEL
from prunekit.runs.result import RunResult


@dataclass(frozen=True)
class PrunedModel:
    """A finished run: `path` is its folder, `result` everything that was measured."""

    path: Path
    result: RunResult

    @property
    def folder(self) -> Path:
        """The folder of the model, in Hugging Face's layout."""
        return self.path / MODEL

    @cached_property
    def model(self) -> Any:
        """The model as one of transformers, whose forward pass removes tokens."""
        from prunekit.runtime.loading import load  # torch takes seconds, and a report needs none

        return load(self.path)

    @cached_property
    def engine(self) -> Any:
        """The model in the packed engine, which is the fastest."""
        from prunekit.runtime.loading import load  # as above

        return load(self.path, engine="packed")

    def __call__(self, texts: str | Sequence[Any], **options: Any) -> Any:
        """Answer texts, or pairs of them, in the packed engine: `.labels`, `.probabilities` and so on."""
        return self.engine([texts] if isinstance(texts, str) else texts, **options)

    def report(self) -> RunResult:
        """Print score, FLOPs, measured milliseconds and tokens by layer, as a run does; return the numbers."""
        from prunekit.results.summary import print_result  # rich is needed for what is printed alone

        print_result(self.result)
        return self.result

    def save(self, folder: str | Path) -> Path:
        """Copy the model, its tokenizer and its card into a folder that does not exist, and return its path.

        Raises:
            ConfigError: there is something already, or it cannot be written.
        """
        target = Path(folder).expanduser()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(
                f"{folder} exists already.\nAllowed: a folder that does not exist, or an empty one.\n"
                "Give another folder, or remove it."
            )
        scratch = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
        try:
            shutil.copytree(self.folder, scratch)
            if target.is_dir():
                target.rmdir()
            scratch.rename(target)
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be written ({error.strerror}).\nAllowed: a folder that can be written.\n"
                "Give another folder."
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return target

    def push_to_hub(self, repo: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the model, its tokenizer and its card to the hub, and return the address.

        Raises:
            ConfigError: the name is none, or the hub does not take it.
        """
        return push_folder(self.folder, repo, private=private, token=token)
