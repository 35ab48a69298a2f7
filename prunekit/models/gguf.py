"""A model in a GGUF file as an ordinary Hugging Face folder. Values stay as coarse as they were quantised."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunekit.config.errors import ConfigError
from prunekit.files import sha256


def dequantised(file: Path, cache: Path) -> Path:
    """The folder of the model in float32 with its tokenizer, made once per content; needs gguf and accelerate.

    Raises:
        ConfigError: these are not installed, or there is no such file.
    """
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing or not file.is_file():
        raise ConfigError(
            f"{file.name} cannot be read: {' and '.join(missing) + ' not installed' if missing else 'no such file'}.\n"
            "Way on 1: pip install 'prunekit[gguf]'.\nWay on 2: backbone.path=<a folder with config.json>."
        )
    folder = cache / f"{file.stem}-{sha256(file)[:8]}"
    if (folder / "config.json").is_file():
        return folder
    place = {"gguf_file": file.name}
    read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **place)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # a quantised model does not save; this one is not any more
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    scratch = cache / f"{folder.name}.{os.getpid()}.tmp"
    model.save_pretrained(scratch)
    AutoTokenizer.from_pretrained(file.parent, **place).save_pretrained(scratch)
    try:
        scratch.replace(folder)
    except OSError:
        shutil.rmtree(scratch)  # another process was faster
    return folder
