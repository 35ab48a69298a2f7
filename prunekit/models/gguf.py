"""Conversion of a model in a GGUF file to an ordinary Hugging Face folder; weights keep their quantised precision."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunekit.config.errors import ConfigError
from prunekit.files import seal_folder, sha256
from prunekit.models.cached import is_whole


def dequantise(file: Path, cache: Path) -> Path:
    """Return the folder of the model in float32 with its tokenizer, writing it once per content of the file.

    Raises:
        ConfigError: gguf or accelerate is not installed, or there is no such file.
    """
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing or not file.is_file():
        raise ConfigError(
            f"{file.name} cannot be read: {' and '.join(missing) + ' not installed' if missing else 'no such file'}.\n"
            "Option 1: pip install 'prunekit[gguf]'.\nOption 2: backbone.path=<a folder with config.json>."
        )
    folder = cache / f"{file.stem}-{sha256(file)[:8]}"
    if is_whole(folder):
        return folder
    place: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
    read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **place)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # a quantised model cannot be saved, but this one is dequantised
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    scratch = cache / f"{folder.name}.{os.getpid()}.tmp"
    model.save_pretrained(scratch)
    AutoTokenizer.from_pretrained(file.parent, **place).save_pretrained(scratch)
    seal_folder(scratch)
    try:
        scratch.replace(folder)
    except OSError:
        shutil.rmtree(scratch)  # another process was faster, and wrote the same
    return folder
