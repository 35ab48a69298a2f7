"""A decoder with its blocks on disk: each is loaded into memory while it is used, and dropped afterwards.

Everything outside the blocks (embeddings, final norm, head) stays in memory. A changed block is written to a folder of
the run under its parameters' names, so that these files become the shards of the pruned checkpoint.
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

from prunekit.files import atomic_write
from prunekit.weights.decoder import STORE, decoder_blocks
from prunekit.weights.finite import not_finite

SHARE = 0.5  # of the free memory; weights that take more in float32 stay on disk under method.stream=auto
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Checkpoint:
    """Weights of a Hugging Face folder, in one file or in shards, read tensor by tensor.

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
        """Return float32 copies of the tensors named by the values of `names`, under its keys.

        Raises:
            ValueError: one holds NaN or an infinity.
        """
        tensors: dict[str, Tensor] = {}
        for file in {self.places[stored] for stored in names.values()}:
            # copies, because the file is only mapped into memory while it is open
            with safe_open(file, "pt") as opened:
                for name, stored in names.items():
                    if self.places[stored] == file:
                        tensors[name] = opened.get_tensor(stored).to(torch.float32, copy=True)
                        if (found := not_finite([(stored, tensors[name])])) is not None:
                            raise ValueError(
                                f"{file} holds {found}.\nAllowed: finite numbers.\n"
                                "Take an earlier checkpoint of that training."
                            )
        return tensors


class BlockStore:
    """The blocks of one model on disk; changed ones are written to the folder `scratch`."""

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
            block.forward = self._load_on_call(number, block.forward)

    def _load_on_call(self, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def load_and_call(*args: Any, **kwargs: Any) -> Any:
            with self.hold(number):
                return forward(*args, **kwargs)

        return load_and_call

    @contextmanager
    def hold(self, number: int) -> Iterator[None]:
        """Hold one block in memory; when its last user exits, write it if it was changed, and drop it."""
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

    def mark_changed(self, number: int) -> None:
        """Mark the weights of a held block as changed."""
        self._changed.add(number)

    def _load(self, number: int) -> None:
        names = {name: name for _, _, name in self.names[number]}
        if number in self.written:
            with safe_open(self.written[number], "pt") as opened:
                tensors = {name: opened.get_tensor(name).clone() for name in names}
        else:
            tensors = self.checkpoint.read(stored_names(self.model, self.checkpoint, names))
        self._empty[number] = []
        for module, attribute, name in self.names[number]:
            before = module._parameters[attribute]
            assert before is not None
            self._empty[number].append((module, attribute, before))
            # one at a time, so that the block is never in memory twice
            tensor = tensors.pop(name).to(self.device)
            module._parameters[attribute] = nn.Parameter(tensor, requires_grad=before.requires_grad)

    def _write(self, number: int) -> None:
        tensors = {name: module._parameters[attribute] for module, attribute, name in self.names[number]}
        path = self.scratch / f"block-{number:05d}.safetensors"
        self.scratch.mkdir(parents=True, exist_ok=True)
        save_atomically({name: tensor.detach().cpu() for name, tensor in tensors.items() if tensor is not None}, path)
        self.written[number] = path
        self._changed.discard(number)

    def _drop(self, number: int) -> None:
        self._changed.discard(number)
        for module, attribute, before in self._empty.pop(number):
            module._parameters[attribute] = before

    def save(self, folder: Path) -> None:
        """Write an ordinary Hugging Face folder with one shard per block, by moving the blocks there.

        Blocks are read from that folder afterwards.
        """
        count = len(self.blocks) + 1
        shards = [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
        rest = {
            name: parameter.detach().cpu().contiguous()
            for name, parameter in self.model.named_parameters()
            if name not in self.inside
        }
        save_atomically(rest, folder / shards[0])
        places = dict.fromkeys(rest, shards[0])
        size = sum(tensor.numel() * tensor.element_size() for tensor in rest.values())
        for number, shard in enumerate(shards[1:]):
            with self.hold(number):
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


def save_atomically(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that exists either completely or not at all."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    atomic_write(path, lambda beside: save_file(whole, beside, {"format": "pt", **(header or {})}))


def stored_names(model: PreTrainedModel, checkpoint: Checkpoint, names: Mapping[str, str]) -> dict[str, str]:
    """Return the names of a model's parameters in its checkpoint: the same, or without or with the decoder's prefix.

    Raises:
        ValueError: a parameter is not in the checkpoint.
    """
    prefix = f"{model.base_model_prefix}."
    stored = {}
    for name in names:
        matches = [key for key in (name, name.removeprefix(prefix), prefix + name) if key in checkpoint.places]
        if not matches:
            raise ValueError(
                f"{checkpoint.folder} holds no tensor {name}, so its blocks cannot be read one at a time.\n"
                "Allowed: checkpoints as save_pretrained writes them.\n"
                "Save the model again with save_pretrained, or set method.stream=false."
            )
        stored[name] = matches[0]
    return stored


@contextmanager
def empty_parameters() -> Iterator[None]:
    """Make models built in this context have parameters on the meta device; buffers are as usual."""
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        original(module, name, param)

    nn.Module.register_parameter = register  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def load_streamed(folder: Path, scratch: Path, device: torch.device | str = "cpu") -> PreTrainedModel:
    """Load a causal language model in float32 with its blocks left on disk; it computes the same as in memory.

    The folder `scratch` is emptied, and receives the blocks that change.

    Raises:
        ValueError: a checkpoint that cannot be read tensor by tensor.
    """
    checkpoint, device = Checkpoint(folder), torch.device(device)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with empty_parameters():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)  # JSON alone
    shutil.rmtree(scratch, ignore_errors=True)
    store = BlockStore(model, checkpoint, scratch, device)
    # parameters outside the blocks, with every module that shares them
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append((module, attribute))
    outside = {name: parameter for name, parameter in model.named_parameters() if name not in store.inside}
    tensors = checkpoint.read(stored_names(model, checkpoint, {name: name for name in outside}))
    for name, before in outside.items():
        loaded = nn.Parameter(tensors.pop(name).to(device), requires_grad=before.requires_grad)
        for module, attribute in holders[id(before)]:
            module._parameters[attribute] = loaded
    for module in model.modules():
        for attribute, buffer in module._buffers.items():
            module._buffers[attribute] = None if buffer is None else buffer.to(device)
    setattr(model, STORE, store)
    return model


# -- whether to stream ---------------------------------------------------------------------------------


def free_memory(device: torch.device) -> int:
    """Return the bytes that weights could take on this device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def exceeds_memory(parameters: int, free: int) -> bool:
    """Check whether this many parameters in float32 take more than `SHARE` of the free bytes."""
    return 4 * parameters > SHARE * free


# -- safetensors files ---------------------------------------------------------------------------------


def merge_files(parts: Sequence[Path], path: Path, header: Mapping[str, str]) -> None:
    """Merge safetensors files into one by copying bytes, without loading tensors into memory.

    Layout of the format: eight bytes with the length of a JSON header, the header with offsets into the data, the data.
    """
    entries: dict[str, Any] = {"__metadata__": dict(header)}
    begin, starts = 0, []
    for part in parts:
        with part.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            part_entries = json.loads(stream.read(length))
        part_entries.pop("__metadata__", None)
        size = part.stat().st_size - 8 - length
        for name, entry in part_entries.items():
            entries[name] = entry | {"data_offsets": [begin + offset for offset in entry["data_offsets"]]}
        starts.append(8 + length)
        begin += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)

    def write(beside: Path) -> None:
        with beside.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for part, start in zip(parts, starts, strict=True):
                with part.open("rb") as stream:
                    stream.seek(start)
                    shutil.copyfileobj(stream, out, 2**20)

    atomic_write(path, write)


class StoredTensors(Mapping[str, Tensor]):
    """Tensors of a safetensors file, each read when it is accessed."""

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
