"""Import a checkpoint that another repository published: read it, and write a folder that `prunekit.load` loads."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.config.validation import validate
from prunekit.console import silence_libraries
from prunekit.cost import Shape
from prunekit.data.encoding import load_tokenizer
from prunekit.data.errors import DataError
from prunekit.methods.options import MethodOptions
from prunekit.models import pretrained
from prunekit.models.tokenizers import check_tokenizer
from prunekit.pipelines.imports import ltp, top
from prunekit.pipelines.imports.published import Given, Published
from prunekit.runs.kinds import method_options, target_of
from prunekit.tokens.encoder import install
from prunekit.tokens.pruner import TokenPruner

READERS: dict[str, Callable[[Path, Given], Published]] = {"top": top.read, "ltp": ltp.read}


@dataclass(frozen=True)
class Imported:
    """The folder that was written, and what to print about it."""

    folder: Path
    lines: Sequence[str]


def import_checkpoint(repository: str, folder: Path, out: Path, given: Given, tokenizer: str | None = None) -> Imported:
    """Read the checkpoint of a repository, and write it to `out`, which appears when it is whole and was loaded once.

    `tokenizer` is a folder or a hub id, where the checkpoint has none.

    Raises:
        ConfigError: a file is missing or cannot be read, or its parts do not belong together.
    """
    silence_libraries()
    published = READERS[repository](folder, given)
    model, config = published.model, published.model.config
    words = _tokenizer(folder, tokenizer, published)
    check_tokenizer(tokenizer or folder, config, words)
    pruner = build_pruner(published)
    install(model, pruner, "pack" if pruner.scorer.padded_to is None else "mask").eval()
    beside = Path(tempfile.mkdtemp(dir=_made(out.parent), prefix=f".{out.name}."))
    try:
        pretrained.save(model, words, beside, max_length=published.max_length)
        about = {"imported": repository, "profile": given.profile, "settings": list(published.settings)}
        pretrained.describe(beside, about)
        pretrained.load_hf(beside)
        beside.chmod(0o755)  # that of a temporary folder is private
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Imported(out, [*published.remarks, _about_model(published)])


def build_pruner(published: Published) -> TokenPruner:
    """Build the pruner that the checkpoint's settings describe, with what it learned."""
    cfg, choices = compose([*published.settings, "budget=2x"])
    validate(cfg, choices)
    options = target_of(cfg).Options.from_config(method_options(cfg))
    assert isinstance(options, MethodOptions)
    pruner = options.build_pruner(Shape.from_config(published.model.config))
    assert pruner is not None
    pruner.scorer.pad_to(published.max_length)
    parameters = dict(pruner.policy.named_parameters())
    with torch.no_grad():
        for name, learned in published.knobs.items():
            parameters[name].copy_(learned)
    return pruner


def _tokenizer(folder: Path, given: str | None, published: Published) -> object:
    try:
        # the checkpoint's own configuration may name a family that only its repository has
        return load_tokenizer(given or folder, published.model.config)
    except DataError as error:
        raise ConfigError(
            f"{given or folder} has no tokenizer that can be read.\nAllowed: {error}\n"
            "Name the one of the backbone: tokenizer=<folder or hub id>, as tokenizer=bert-base-uncased"
        ) from error


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _about_model(published: Published) -> str:
    config, name = published.model.config, type(published.model).__name__
    classes = f", classes {', '.join(map(str, config.id2label.values()))}" if config.num_labels > 1 else ""
    return f"model      {name}, {config.num_hidden_layers} layers{classes}; texts cut at {published.max_length} tokens"
