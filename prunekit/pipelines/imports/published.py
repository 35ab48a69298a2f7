"""A checkpoint of another repository: its files, read without running code of theirs, and what they hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError, first_line, listed, shown
from prunekit.config.keys import options
from prunekit.models.heads import CLASSIFIER, READER, HeadType
from prunekit.models.reading import check_finite
from prunekit.models.tokenizers import longest_text

WEIGHTS = "pytorch_model.bin"
NAMED = 4  # tensors in a message
# what an encoder is built from; the rest of a config.json is about training, or about the repository's own classes
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)


@dataclass(frozen=True)
class Given:
    """What the command says about a checkpoint; None is what follows from its files."""

    profile: str
    max_length: int | None = None
    labels: Sequence[str] | None = None
    prune_location: Sequence[int] | None = None


@dataclass(frozen=True)
class Published:
    """A checkpoint in prunekit's terms.

    `weights` have the names of transformers, `settings` are those of `prunekit train` that build the same pruner,
    `knobs` the tensors that its policy learned, `remarks` what a user should know about how it was read.
    """

    model: PreTrainedModel
    settings: Sequence[str]
    knobs: Mapping[str, Tensor]
    max_length: int
    remarks: Sequence[str]


# -- files -------------------------------------------------------------------------------------------


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the content of config.json.

    Raises:
        ConfigError: it is missing, or holds no object.
    """
    path = _existing(folder / "config.json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, first_line(error), "a JSON object") from error
    if not isinstance(content, dict):
        raise _unreadable(path, f"it holds a {type(content).__name__}", "a JSON object")
    return content


def read_tensors(path: Path, names: Iterable[str] = ()) -> dict[str, Tensor]:
    """Return the tensors in a file that torch.save wrote, on the CPU; nothing else is unpickled.

    Raises:
        ConfigError: it is missing, holds something else, lacks one of `names`, or a number that is none.
    """
    try:
        found = torch.load(_existing(path), map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except Exception as error:  # whatever a broken or hostile file brings about
        raise _unreadable(path, first_line(error), "tensors by name, as torch.save(model.state_dict(), ...)") from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise _unreadable(path, f"it holds a {type(found).__name__} of something else", "tensors by name")
    if missing := [name for name in names if name not in found]:
        raise ConfigError(
            f"{path} lacks {listed(missing, NAMED)}.\nAllowed: a file with {', '.join(names)}.\n"
            "Give the folder of the whole checkpoint."
        )
    check_finite(str(path), found.items())
    return found


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist.\nAllowed: the folder of a checkpoint as its repository wrote it.\n"
            "Give that folder, with every file in it."
        )
    return path


def _unreadable(path: Path, why: str, allowed: str) -> ConfigError:
    return ConfigError(
        f"{path} cannot be read ({why}).\nAllowed: {allowed}.\nGive the folder as its repository wrote it."
    )


# -- the model ---------------------------------------------------------------------------------------


def build_model(
    path: Path, family: str, content: Mapping[str, Any], weights: Mapping[str, Tensor], labels: Sequence[str] | None
) -> PreTrainedModel:
    """Return a model of transformers with these weights, in evaluation mode; `path` is where they were read.

    Which head it has is seen from the weights; `content` is that of config.json.

    Raises:
        ConfigError: sizes, names or shapes do not belong together.
    """
    head = _head_of(path, weights)
    found = {name: tensor for name, tensor in weights.items() if not (head is READER and ".pooler." in name)}
    _check_layers(path, content, found)
    if content.get("position_embedding_type", "absolute") != "absolute":
        raise ConfigError(
            f"{path.parent} has positions of the type {shown(content['position_embedding_type'])}.\n"
            "Allowed: absolute.\nChoose another checkpoint."
        )
    sizes = {name: content[name] for name in SIZES if name in content}
    try:
        config = AutoConfig.for_model(family, **sizes, **_head_settings(head, found, content, labels))
        with torch.device("meta"):  # sizes are not trusted before they are compared
            _check_tensors(path, found, head.auto.from_config(config).state_dict())
        with torch.random.fork_rng(devices=[]):
            model: PreTrainedModel = head.auto.from_config(config, dtype=torch.float32)
    except ConfigError:
        raise
    except Exception as error:  # transformers lets any error of a wrong value through
        raise ConfigError(
            f"{path.parent / 'config.json'} does not make a model ({first_line(error)}).\n"
            f"Allowed: the sizes of a {family} model.\nGive the folder as its repository wrote it."
        ) from error
    model.load_state_dict({name: tensor.float() for name, tensor in found.items()})
    return model.eval()


def _head_of(path: Path, weights: Mapping[str, Tensor]) -> HeadType:
    if "qa_outputs.weight" in weights:
        return READER
    if any(name.startswith("classifier.") for name in weights):
        return CLASSIFIER
    raise ConfigError(
        f"{path} has neither classifier.* nor qa_outputs.*, so the model has no head that is known here.\n"
        "Allowed: a fine-tuned model for classes, values or answers.\nGive the folder of such a model."
    )


def _check_layers(path: Path, content: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    numbers = [parts[parts.index("layer") + 1] for name in weights if "layer" in (parts := name.split("."))]
    found, said = len({number for number in numbers if number.isdigit()}), content.get("num_hidden_layers")
    if said != found:
        raise ConfigError(
            f"{path} has {found} layers, and config.json says num_hidden_layers={shown(said)}.\n"
            "Allowed: as many as there are.\nGive the folder as its repository wrote it."
        )


def _check_tensors(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    missing = sorted(expected.keys() - found.keys())
    unknown = sorted(found.keys() - expected.keys())
    misfits = [
        f"{name} {list(found[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    integers = [name for name, tensor in found.items() if not tensor.is_floating_point()]
    for wrong, names in (
        ("lacks", missing),
        ("has unknown", unknown),
        ("has", misfits),
        ("has no floats in", integers),
    ):
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            raise ConfigError(
                f"{path} {wrong} {', '.join(names[:NAMED])}{more}.\n"
                "Allowed: the tensors of the model that config.json describes.\n"
                "Give the folder as its repository wrote it."
            )


def _head_settings(
    head: HeadType, weights: Mapping[str, Tensor], content: Mapping[str, Any], labels: Sequence[str] | None
) -> dict[str, Any]:
    if not head.has_classes:
        return head.settings(None)
    last = [weights[name] for name in ("classifier.out_proj.weight", "classifier.weight") if name in weights]
    outputs = len(last[0]) if last and last[0].dim() == 2 else 2  # what is missing is named later
    if labels is not None and len(labels) != outputs:
        raise ConfigError(
            f"labels=[{listed(labels)}] are {len(labels)}, and the model has {outputs} outputs.\n"
            "Allowed: a name for each output, in their order.\nGive that many, or leave labels out."
        )
    return head.settings((labels or _stored_labels(content, outputs)) if outputs > 1 else None)


def _stored_labels(content: Mapping[str, Any], outputs: int) -> Sequence[str]:
    """Return the classes in config.json; where they have no names, those of the GLUE task that it names."""
    found = content["id2label"] if isinstance(content.get("id2label"), dict) else {}
    nameless = [f"LABEL_{number}" for number in range(outputs)]
    names = [str(found.get(str(number), nameless[number])) for number in range(outputs)] if found else nameless
    task = content.get("finetuning_task")
    if names != nameless or not isinstance(task, str) or task not in options()["task"]:
        return names
    labels = compose([f"task={task}"])[0]["task"].get("labels") or ()
    return labels if len(labels) == outputs else names


def renamed(weights: Mapping[str, Tensor], rename: Callable[[str], str | None]) -> dict[str, Tensor]:
    """Return tensors by their new names; those without one are left out."""
    return {new: tensor for name, tensor in weights.items() if (new := rename(name)) is not None}


def longest(config: PretrainedConfig, asked: int | None, published: int) -> int:
    """Return the length that is asked for, or else to which the repository pads, at most what the model reads.

    Raises:
        ConfigError: the model reads less than is asked for.
    """
    most = longest_text(config)
    if asked is not None and asked > most:
        raise ConfigError(
            f"max_length={asked}, but the model reads at most {most} tokens.\nAllowed: 4..{most}.\n"
            f"Give max_length={most}, or leave it out."
        )
    return min(published, most) if asked is None else asked
