"""Load the language model that a run prunes, its blocks in memory or on disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from prunekit.config.errors import ConfigError
from prunekit.console import say
from prunekit.data.encoding import load_tokenizer
from prunekit.files import sha256
from prunekit.methods.weight_base import WeightOptions
from prunekit.models.reading import read_config, read_model
from prunekit.models.tokenizers import check_tokens, longest_text
from prunekit.weights.decoder import FAMILIES, Matrices, all_matrices, prunable_matrices, weight_of
from prunekit.weights.disk import Checkpoint, exceeds_memory, free_memory, load_streamed


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in float32, which the stages of a run prune in place, and its tokenizer.

    `blocks` are the matrices to prune, per decoder block; `streamed`: the blocks stay on disk, one in memory at a time.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    blocks: list[Matrices]
    streamed: bool
    backbone: Path | str
    dense_sha256: str  # of the weights before pruning; "" for a backbone that is not a local folder

    @property
    def identity(self) -> str:
        """What names the dense model in cached files."""
        return self.dense_sha256 or str(self.backbone)

    @property
    def max_tokens(self) -> int:
        """The longest sequence that the model takes."""
        return min(longest_text(self.model.config, self.tokenizer), 2**20)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of weights of each matrix to prune."""
        return {name: weight_of(module).numel() for name, module in all_matrices(self.blocks).items()}


def check_family(backbone: Path | str, name: str) -> None:
    """Check that the decoder blocks of the backbone called `name` can be found, and that it has a tokenizer.

    Raises:
        ConfigError: prunekit does not know the family, or there is no tokenizer, or one of another model.
    """
    config = read_config(backbone)
    family = config.model_type
    if family not in FAMILIES:
        raise ConfigError(
            f"backbone={name} is of the family {family!r}, which has no decoder blocks that prunekit knows.\n"
            f"Allowed: {', '.join(sorted(FAMILIES))}.\nChoose another backbone, as backbone=smollm2."
        )
    check_tokens(backbone, config, load_tokenizer(backbone))


def load_model(backbone: Path | str, options: WeightOptions, device: torch.device, scratch: Path) -> LoadedModel:
    """Load the dense model, its tokenizer and the matrices that `method.scope` names.

    With `method.stream` the blocks stay on disk, and `scratch` gets those that pruning changes.

    Raises:
        ValueError: blocks on disk that cannot be read one at a time, or with groups that need all of them at once;
            a scope that matches nothing.
    """
    folder = _streamed_folder(backbone, options, device)
    if folder is None:
        model = read_model(AutoModelForCausalLM, backbone).to(device).eval()
    else:
        say(f"stream     blocks stay on disk, one in memory at a time: {folder}")
        model = load_streamed(folder, scratch, device)
    tokenizer = load_tokenizer(backbone)
    digest = weights_digest(Path(backbone)) or ""
    blocks = prunable_matrices(model, options.scope)
    return LoadedModel(model, tokenizer, blocks, folder is not None, backbone, digest)


def _streamed_folder(backbone: Path | str, options: WeightOptions, device: torch.device) -> Path | None:
    """Return the folder to stream blocks from; None where the whole model is to be in memory."""
    if options.stream is False:
        return None
    folder = _local_folder(backbone)
    try:
        parameters = Checkpoint(folder).size
    except ValueError:
        if options.stream is True:
            raise
        return None  # stream=auto: a checkpoint that cannot be streamed is loaded whole
    if options.stream == "auto" and not exceeds_memory(parameters, free_memory(device)):
        return None
    if options.group == "global":
        raise ValueError(
            "method.group=global compares all weights at once, which method.stream takes one block at a time.\n"
            "Allowed: method.group=matrix|column_block|row|nm with blocks on disk.\n"
            "Choose another group, or set method.stream=false and have memory for it."
        )
    return folder


def _local_folder(backbone: Path | str) -> Path:
    """Return the folder of a backbone; one of the hub is downloaded, as loading would do."""
    if Path(backbone).is_dir():
        return Path(backbone)
    return Path(snapshot_download(str(backbone), allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model"]))


def weights_digest(folder: Path) -> str | None:
    """Return the hex digest of the weights in a folder, in one file or in shards; None if it holds none."""
    files = sorted([*folder.glob("model.safetensors"), *folder.glob("model-*-of-*.safetensors")])
    files = files or sorted(folder.glob("pytorch_model*.bin"))
    digests = [sha256(file) for file in files]
    if len(digests) < 2:
        return digests[0] if digests else None
    return hashlib.sha256("".join(digests).encode()).hexdigest()
