"""A decoder whose blocks lie on disk: each comes into memory where it is used, and goes again.

Everything outside the blocks (embeddings, final norm, head) stays in memory. A block that was changed is written to a
folder of the run, under the names of its parameters, so that these files are the shards of the pruned checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from prunekit.weights.decoder import STORE, decoder_blocks

SHARE = 0.5  # of the free memory that the weights in float32 may take before method.stream=auto leaves them on disk
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Checkpoint:
    """The weights of a Hugging Face folder, in one file or in shards; read tensor by tensor.

    Raises:
        ValueError: the folder holds no safetensors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if (folder / INDEX).is_file():
            names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        else:
            names = [WHOLE]
        self.files = [folder / name for name in names]
        if missing := [file.name for file in self.files if not file.is_file()]:
            raise ValueError(
                f"{folder} has no {missing[0]}, so its blocks cannot be read one at a time.\n"
                f"Allowed: folders with {WHOLE}, or with shards and {INDEX}.\n"
                "Save the model again with save_pretrained, or set method.stream=false."
            )
        self.places: dict[str, Path] = {}
        self.size = 0
        for file in self.files:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    self.places[name] = file
                    self.size += torch.Size(opened.get_slice(name).get_shape()).numel()

    def read(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Copies in float32 of the tensors that are the values of `names`, by its keys."""
        found: dict[str, Tensor] = {}
        for file in {self.places[stored] for stored in names.values()}:
            # the file is mapped into memory while it is open, hence copies
            with safe_open(file, "pt") as opened:
                for name, stored in names.items():
                    if self.places[stored] == file:
                        found[name] = opened.get_tensor(stored).to(torch.float32, copy=True)
        return found


class BlockStore:
    """Keeps the blocks of one model on disk; `scratch` gets those that change."""

    def __init__(self, model: PreTrainedModel, checkpoint: Checkpoint, scratch: Path, device: torch.device) -> None:
        self.model, self.checkpoint, self.scratch, self.device = model, checkpoint, scratch, device
        self.blocks = decoder_blocks(model)
        self.written: dict[int, Path] = {}
        self._users: Counter[int] = Counter()
        self._changed: set[int] = set()
        self._empty: dict[int, list[tuple[nn.Module, str, nn.Parameter]]] = {}
        full = {id(parameter): name for name, parameter in model.named_parameters()}
        self.names: list[list[tuple[nn.Module, str, str]]] = [
            [
                (module, attribute, full[id(parameter)])
                for module in block.modules()
                for attribute, parameter in module._parameters.items()
                if parameter is not None
            ]
            for block in self.blocks
        ]
        self.inside = {name for entries in self.names for _, _, name in entries}
        for number, block in enumerate(self.blocks):
            block.forward = self._on_demand(number, block.forward)

    def _on_demand(self, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def loaded(*args: Any, **kwargs: Any) -> Any:
            with self.resident(number):
                return forward(*args, **kwargs)

        return loaded

    @contextmanager
    def resident(self, number: int) -> Iterator[None]:
        """Has one block in memory; when the last user leaves, it is written if it changed, and dropped."""
        if self._users[number] == 0:
            self._load(number)
        self._users[number] += 1
        try:
            yield
            if self._users[number] == 1 and number in self._changed:
                self._write(number)
        finally:
            self._users[number] -= 1
            if self._users[number] == 0:
                self._drop(number)

    def changed(self, number: int) -> None:
        """Says that the weights of a resident block were changed."""
        self._changed.add(number)

    def _load(self, number: int) -> None:
        names = {name: name for _, _, name in self.names[number]}
        if number in self.written:
            with safe_open(self.written[number], "pt") as opened:
                found = {name: opened.get_tensor(name).clone() for name in names}
        else:
            found = self.checkpoint.read(stored_names(self.model, self.checkpoint, names))
        self._empty[number] = []
        for module, attribute, name in self.names[number]:
            before = module._parameters[attribute]
            assert before is not None
            self._empty[number].append((module, attribute, before))
            # one at a time, so that the block is not there twice
            tensor = found.pop(name).to(self.device)
            module._parameters[attribute] = nn.Parameter(tensor, requires_grad=before.requires_grad)

    def _write(self, number: int) -> None:
        tensors = {name: module._parameters[attribute] for module, attribute, name in self.names[number]}
        path = self.scratch / f"block-{number:05d}.safetensors"
        self.scratch.mkdir(parents=True, exist_ok=True)
        save_whole({name: tensor.detach().cpu() for name, tensor in tensors.items() if tensor is not None}, path)
        self.written[number] = path
        self._changed.discard(number)

    def _drop(self, number: int) -> None:
        self._changed.discard(number)
        for module, attribute, before in self._empty.pop(number):
            module._parameters[attribute] = before

    def save(self, folder: Path) -> None:
        """An ordinary Hugging Face folder with a shard per block; blocks move there and are read from there on."""
        count = len(self.blocks) + 1
        shards = [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
        rest = {
            name: parameter.detach().cpu().contiguous()
            for name, parameter in self.model.named_parameters()
            if name not in self.inside
        }
        save_whole(rest, folder / shards[0])
        places = dict.fromkeys(rest, shards[0])
        size = sum(tensor.numel() * tensor.element_size() for tensor in rest.values())
        for number, shard in enumerate(shards[1:]):
            with self.resident(number):
                if number not in self.written:
                    self._write(number)
                size += sum(parameter.numel() * 4 for parameter in self.blocks[number].parameters())
            os.replace(self.written[number], folder / shard)
            self.written[number] = folder / shard
            places |= dict.fromkeys((name for _, _, name in self.names[number]), shard)
        self.model.config.architectures = [type(self.model).__name__]
        self.model.config.save_pretrained(folder)
        if self.model.generation_config is not None:
            self.model.generation_config.save_pretrained(folder)
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def save_whole(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file that is there whole or not at all."""
    beside = path.with_name(f".{path.name}.tmp")
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, beside, {"format": "pt", **(header or {})}
    )
    beside.replace(path)


def stored_names(model: PreTrainedModel, checkpoint: Checkpoint, names: Mapping[str, str]) -> dict[str, str]:
    """What the parameters of a model are called in its checkpoint: the same, or without the prefix of its decoder.

    Raises:
        ValueError: the checkpoint lacks one.
    """
    prefix = f"{model.base_model_prefix}."
    found = {}
    for name in names:
        here = [way for way in (name, name.removeprefix(prefix), prefix + name) if way in checkpoint.places]
        if not here:
            raise ValueError(
                f"{checkpoint.folder} holds no tensor {name}, so its blocks cannot be read one at a time.\n"
                "Allowed: checkpoints as save_pretrained writes them.\n"
                "Save the model again with save_pretrained, or set method.stream=false."
            )
        found[name] = here[0]
    return found


@contextmanager
def empty_parameters() -> Iterator[None]:
    """Models made here have parameters without content; their buffers are as usual."""
    usual = nn.Module.register_parameter

    def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        usual(module, name, param)

    nn.Module.register_parameter = register  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = usual  # type: ignore[method-assign]


def load_streamed(folder: Path, scratch: Path, device: torch.device | str = "cpu") -> PreTrainedModel:
    """A causal language model in float32 with its blocks left on disk; it computes what the whole one computes.

    `scratch` is emptied, and holds the blocks that change.

    Raises:
        ValueError: a checkpoint that cannot be read tensor by tensor.
    """
    checkpoint, device = Checkpoint(folder), torch.device(device)
    config = AutoConfig.from_pretrained(folder)
    with empty_parameters():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    shutil.rmtree(scratch, ignore_errors=True)
    store = BlockStore(model, checkpoint, scratch, device)
    # what lies outside the blocks, each as often as it is shared
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append((module, attribute))
    outside = {name: parameter for name, parameter in model.named_parameters() if name not in store.inside}
    found = checkpoint.read(stored_names(model, checkpoint, {name: name for name in outside}))
    for name, before in outside.items():
        loaded = nn.Parameter(found.pop(name).to(device), requires_grad=before.requires_grad)
        for module, attribute in holders[id(before)]:
            module._parameters[attribute] = loaded
    for module in model.modules():
        for attribute, buffer in module._buffers.items():
            module._buffers[attribute] = None if buffer is None else buffer.to(device)
    setattr(model, STORE, store)
    return model


# -- when ----------------------------------------------------------------------------------------------


def free_memory(device: torch.device) -> int:
    """Bytes that weights on this device could take."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def too_large(parameters: int, free: int) -> bool:
    """Whether so many weights in float32 take more than `SHARE` of the free bytes."""
    return 4 * parameters > SHARE * free


# -- parts ---------------------------------------------------------------------------------------------


def merge(parts: Sequence[Path], path: Path, header: Mapping[str, str]) -> None:
    """One safetensors file of several, copied byte by byte: none of it is in memory.

    Layout of the format: eight bytes with the length of a JSON header, the header with offsets into the rest, the rest.
    """
    entries: dict[str, Any] = {"__metadata__": dict(header)}
    begin, starts = 0, []
    for part in parts:
        with part.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            own = json.loads(stream.read(length))
        own.pop("__metadata__", None)
        size = part.stat().st_size - 8 - length
        for name, entry in own.items():
            entries[name] = entry | {"data_offsets": [begin + offset for offset in entry["data_offsets"]]}
        starts.append(8 + length)
        begin += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for part, start in zip(parts, starts, strict=True):
            with part.open("rb") as stream:
                stream.seek(start)
                shutil.copyfileobj(stream, out, 2**20)
    beside.replace(path)


class Stored(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with safe_open(path, "pt") as opened:
            self.names = list(opened.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        with safe_open(self.path, "pt") as opened:
            return opened.get_tensor(name).clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
