"""Read models of any folder or hub id: no code of theirs is run, and nothing that is missing is made up in silence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from prunekit.config.errors import ConfigError, first_line
from prunekit.console import silence
from prunekit.data.folders import special_file
from prunekit.models.modular_reranker import RerankerForSequenceClassification
from prunekit.models.reranker import MARK, activation_of
from prunekit.models.sentence_folder import scores_of
from prunekit.weights.finite import not_finite

SHOWN = 4  # names of tensors in a message
MODULAR = RerankerForSequenceClassification.__name__
FLOATING = ("F64", "F32", "F16", "BF16")  # as safetensors calls the types


def read_config(source: str | Path) -> PretrainedConfig:
    """Return the configuration of a model; an architecture that transformers does not know itself is refused.

    Raises:
        ConfigError: it cannot be read, needs code from elsewhere, or is not of a whole model.
    """
    if (Path(source) / "adapter_config.json").is_file():
        raise ConfigError(
            f"{source} holds an adapter, not a whole model.\n"
            "Allowed: a folder with config.json and model.safetensors.\n"
            "Merge it: peft_model.merge_and_unload().save_pretrained(folder)."
        )
    if (special := special_file(Path(source))) is not None:
        raise ConfigError(
            f"{special} is a pipe, a socket or a device, and no file.\nAllowed: folders of files.\n"
            "Remove it, or give another folder."
        )
    try:
        with silence("transformers"):
            content, _ = PretrainedConfig.get_config_dict(source)
            kernel = next(_kernels(content), None)
            config = None if kernel else AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # transformers lets any error of a broken file through
        raise ConfigError(
            f"{source} has no configuration that can be read ({first_line(error)}).\n"
            "Allowed: models of an architecture that transformers has; code in the folder is never run.\n"
            "Give the folder that model.save_pretrained(folder) wrote, or a hub id."
        ) from error
    if config is not None and (scores := scores_of(source)) is not None:
        config.architectures, config.num_labels = [MODULAR], scores
    if config is None:
        raise ConfigError(
            f"{source} asks for the attention kernel {kernel}, which is code from the hub; it is not run.\n"
            "Allowed: an attention of transformers itself, as sdpa or eager.\n"
            f"Remove attn_implementation from {source}/config.json."
        )
    return config


def _kernels(content: Any) -> Iterator[str]:
    """Yield what a configuration, or a part of it, names as an implementation and only the hub has."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            named = value.values() if isinstance(value, Mapping) else [value]
            if str(name).endswith("_implementation"):
                yield from (text for text in named if isinstance(text, str) and "/" in text)
            yield from _kernels(value)
    elif isinstance(content, list):
        for value in content:
            yield from _kernels(value)


def read_model(auto: Any, source: str | Path, *, new_head: bool = False, **settings: Any) -> PreTrainedModel:
    """Load a model in float32 by an auto class of transformers; `settings` overwrite its configuration.

    With `new_head` the head may be missing, and is drawn from torch's RNG; the stored one is left out then.

    Raises:
        ConfigError: the weights cannot be read, are not those of the configuration, or are no finite numbers.
    """
    auto = RerankerForSequenceClassification if read_config(source).architectures == [MODULAR] else auto
    try:
        with silence("transformers"):
            model, report = auto.from_pretrained(
                source, dtype=torch.float32, trust_remote_code=False, output_loading_info=True, **settings
            )
    except Exception as error:  # as above
        raise ConfigError(
            f"{source} has weights that cannot be read ({first_line(error)}).\n"
            "Allowed: model.safetensors with the sizes in config.json.\n"
            "Write both again with model.save_pretrained(folder)."
        ) from error
    missing = [name for name in report["missing_keys"] if not (new_head and _is_of_head(name, model))]
    others = [
        name for name in report["unexpected_keys"] if not (_is_pooler(name) or (new_head and _is_of_head(name, model)))
    ]
    if missing or others:
        found = f"lacks {_named(missing)}" if missing else f"holds {_named(others)}, which its model does not have"
        raise ConfigError(
            f"{source} {found}.\nAllowed: all weights of a {type(model).__name__} with the sizes in config.json.\n"
            "Write them again with model.save_pretrained(folder), or give another folder."
        )
    _check_types(source, model)
    if (activation := activation_of(source)) is not None:
        setattr(model.config, MARK, {"activation_fn": activation})  # so that it is saved again, wherever it was named
    check_finite(f"{source}", model.state_dict().items())
    return model


def _check_types(source: str | Path, model: PreTrainedModel) -> None:
    """Check that weights are stored as floating numbers: of whole numbers or booleans, loading makes other weights.

    Raises:
        ConfigError: a tensor of the folder is none.
    """
    stored = getattr(model, "stored_as", model)  # an embedder's encoder, whose modules have files of their own
    floating = {name for name, tensor in stored.state_dict().items() if tensor.is_floating_point()}
    for path in sorted(Path(source).glob("model*.safetensors")):
        with safe_open(path, "pt") as opened:
            for name in floating & set(opened.keys()):
                kind = opened.get_slice(name).get_dtype()
                if kind not in FLOATING:
                    raise ConfigError(
                        f"{path} holds {name} as {kind}, which are no weights of a {type(model).__name__}.\n"
                        f"Allowed: {', '.join(FLOATING)}.\nSave the model again with model.save_pretrained(folder)."
                    )


def check_finite(place: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Check that tensors hold numbers alone; `place` is where they were read.

    Raises:
        ConfigError: one holds NaN or an infinity.
    """
    if (found := not_finite(tensors)) is not None:
        raise ConfigError(
            f"{place} holds {found}.\nAllowed: finite numbers.\n"
            "Take an earlier checkpoint of that training, or train again with a lower learning rate."
        )


def _is_of_head(name: str, model: PreTrainedModel) -> bool:
    """Return whether a tensor is outside the encoder; a pooler counts as part of the head."""
    prefix = f"{model.base_model_prefix}."
    inside = {child for child, _ in model.base_model.named_children()}
    return _is_pooler(name) or not (name.startswith(prefix) or name.partition(".")[0] in inside)


def _is_pooler(name: str) -> bool:
    return "pooler" in name.split(".")


def _named(names: Iterable[str]) -> str:
    """Return tensors as the message names them: how many, and the first."""
    ordered = sorted(names)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return f"{len(ordered)} tensor{'s' * (len(ordered) > 1)}: {', '.join(ordered[:SHOWN])}{more}"
