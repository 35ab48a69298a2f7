"""Hostile folders: what somebody may put into the folder of a model or a run, besides or in the place of its files."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

EVIL = "evil_code"  # the module that must not be imported
MARKER = "executed"  # the file that its code makes
WEIGHTS, SETTINGS, TENSORS = "model.safetensors", "prunekit.json", "prunekit.safetensors"
NUMBERS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"),
    *("max_position_embeddings", "type_vocab_size", "num_labels", "pad_token_id"),
)
NONSENSE = (-1, 0, 10**9, 2**40, 10**400, 3.5, float("nan"), "7", "x" * 10**5, None, [], {"a": 1}, True)
CLASSES = (
    *(f"{EVIL}.Policy", f"{EVIL}:Policy", f"..{EVIL}.Policy", "os.system", "builtins.eval", "subprocess.Popen", "os"),
    *("pickle.loads", "torch.load", "prunekit.cli.main.main", "prunekit.tokens.policies.json.loads", "", "x" * 10**5),
)
JSONS = (
    *("[" * 10**5, '{"a":' * 10**5, "[]", "null", "7", '{"model_type": ' + "9" * 5000 + "}", "\ufeff{}", '"x"', "{}"),
    *('{"model_type": "bert", "a": [' + "0," * 10**6 + "0]}", '{"model_type": "\\ud83d"}', "\x00" * 100),
)
Hostility = Callable[[Path, random.Random], None]


class Bomb:
    """An object that makes the marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.marker), "w"))


def marker_of(folder: Path) -> Path:
    """Return the file that executed code makes."""
    return folder.parent / MARKER


def plant(folder: Path) -> None:
    """Put a module of evil code into a folder."""
    (folder / f"{EVIL}.py").write_text(f"open({str(marker_of(folder))!r}, 'w').close()\nclass Policy: pass\n")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the object in a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def agree(folder: Path) -> None:
    """Write the digests of the files as they are now, as an attacker would; and remove the seals."""
    for seal in folder.glob(".*sha256"):
        seal.unlink()

    def renew(content: dict[str, Any]) -> None:
        for key, name in (("weights_sha256", WEIGHTS), ("tensors_sha256", TENSORS)):
            if key in content and (folder / name).is_file() and not (folder / name).is_symlink():
                content[key] = sha256((folder / name).read_bytes()).hexdigest()

    try:
        edit(folder / SETTINGS, renew)
    except (OSError, ValueError, TypeError, RecursionError):
        return


# -- what is done to a folder ------------------------------------------------------------------------


def auto_map(folder: Path, rng: random.Random) -> None:
    """Ask transformers for a class of the folder's own module."""
    plant(folder)
    names = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoTokenizer")
    mapped = dict.fromkeys(names, f"{EVIL}.Policy")
    edit(folder / "config.json", lambda content: content.update(auto_map=mapped))
    if rng.random() < 0.5:
        edit(folder / "config.json", lambda content: content.update(model_type="evil"))
    both = {"auto_map": {"AutoTokenizer": [f"{EVIL}.Policy", f"{EVIL}.Policy"]}, "tokenizer_class": "Evil"}
    edit(folder / "tokenizer_config.json", lambda content: content.update(both if rng.random() < 0.5 else {}))


def kernel(folder: Path, rng: random.Random) -> None:
    """Ask for an implementation that only the hub has."""
    key = rng.choice(("attn_implementation", "_attn_implementation", "experts_implementation"))
    value: Any = rng.choice(("evil/kernel", "evil/kernel@main:forward", {"": "paged|evil/kernel"}))
    edit(folder / "config.json", lambda content: content.update({key: value}))


def class_names(folder: Path, rng: random.Random) -> None:
    """Name another class as scorer or policy."""
    plant(folder)
    name = rng.choice(CLASSES)
    part = rng.choice(("scorer", "policy"))

    def change(content: dict[str, Any]) -> None:
        if content["pruner"]:
            content["pruner"][part] = {"class": name, "arguments": {"args": f"touch {marker_of(folder)}"}}

    edit(folder / SETTINGS, change)


def pickles(folder: Path, rng: random.Random) -> None:
    """Put a pickle where weights, tensors or something that trainers leave would be."""
    bomb = pickle.dumps(Bomb(marker_of(folder)))
    name = rng.choice(
        (WEIGHTS, TENSORS, "pytorch_model.bin", "training_args.bin", "tokenizer.pkl", "config.pkl", "optimizer.pt")
    )
    if name == "pytorch_model.bin":
        (folder / WEIGHTS).unlink()
    (folder / name).unlink(missing_ok=True)
    if rng.random() < 0.5:
        (folder / name).write_bytes(bomb)
    else:
        torch.save({"a": Bomb(marker_of(folder))}, folder / name)


def tensors(folder: Path, rng: random.Random) -> None:
    """Leave tensors out, rename or add some, or change their numbers, shapes or types."""
    path = folder / rng.choice((WEIGHTS, WEIGHTS, TENSORS))
    if not path.is_file():
        path = folder / WEIGHTS
    found = load_file(path)
    chosen = rng.sample(sorted(found), min(len(found), rng.randint(1, 3)))
    how = rng.choice(("missing", "prefix", "extra", "nan", "inf", "shape", "type", "empty"))
    for name in chosen:
        tensor = found[name]
        if how == "missing":
            del found[name]
        elif how == "extra":
            found[f"{name}.more"] = tensor.clone()
        elif how in ("nan", "inf") and tensor.is_floating_point():
            tensor.view(-1)[rng.randrange(max(1, tensor.numel()))] = float(how)
        elif how == "shape":
            found[name] = tensor.reshape(-1)[1:].clone()
        elif how == "type":
            found[name] = torch.zeros(tensor.shape, dtype=torch.bool)
        elif how == "empty":
            found[name] = tensor.new_zeros(0)
    if how == "prefix":
        found = {f"model.{name}" if rng.random() < 0.9 else name: tensor for name, tensor in found.items()}
    save_file(found, path, {"format": "pt"})


def headers(folder: Path, rng: random.Random) -> None:
    """Write a safetensors file whose header says what is not so."""
    path = folder / rng.choice((WEIGHTS, TENSORS))
    entry = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    header = rng.choice(
        (
            json.dumps({"a": entry}).encode(),
            b"[" * 10**5,
            b'{"a":' * 10**5,
            json.dumps({"a": entry | {"shape": [1], "data_offsets": [8, 4]}}).encode(),
            b"{}",
            b"",
        )
    )
    size = rng.choice((len(header), 2**63, 2**31, 0))
    path.write_bytes(struct.pack("<Q", size) + header + b"\0" * 16)


def links(folder: Path, rng: random.Random) -> None:
    """Put a link, a pipe or a folder in the place of a file."""
    path = folder / rng.choice((WEIGHTS, "config.json", SETTINGS, "tokenizer.json", TENSORS))
    path.unlink(missing_ok=True)
    how = rng.choice(("passwd", "loop", "nowhere", "folder", "pipe", "up"))
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"passwd": "/etc/passwd", "loop": path.name, "nowhere": "/no/such/file", "up": ".."}[how])


def archives(folder: Path, rng: random.Random) -> None:
    """Give an archive, or an empty file, in the place of a file."""
    path = folder / rng.choice((WEIGHTS, "config.json", SETTINGS, "tokenizer.json", "tokenizer_config.json", TENSORS))
    path.unlink(missing_ok=True)
    if rng.random() < 0.5:
        made = shutil.make_archive(str(folder.parent / "archive"), rng.choice(("zip", "gztar")), folder)
        shutil.move(made, path)
    else:
        path.write_bytes(b"")


def numbers(folder: Path, rng: random.Random) -> None:
    """Give a number of the configuration a value that no model has."""
    key, value = rng.choice(NUMBERS), rng.choice(NONSENSE)
    edit(folder / "config.json", lambda content: content.update({key: value}))


def settings(folder: Path, rng: random.Random) -> None:
    """Give a key of prunekit.json a value that prunekit never writes."""

    def change(content: dict[str, Any]) -> None:
        block: Any = content
        if content["pruner"] and rng.random() < 0.7:
            block = content["pruner"]
            if rng.random() < 0.5:
                block = block[rng.choice(("scorer", "policy"))]
        key = rng.choice([*block, "format"])
        block[key] = rng.choice(NONSENSE)

    edit(folder / SETTINGS, change)


def deep(folder: Path, rng: random.Random) -> None:
    """Write JSON that is nested deep, has long numbers, is no object, or is very large."""
    path = folder / rng.choice(
        ("config.json", SETTINGS, "tokenizer_config.json", "tokenizer.json", "generation_config.json")
    )
    path.write_text(rng.choice(JSONS))


def index(folder: Path, rng: random.Random) -> None:
    """Name shards outside of the folder, or that do not exist."""
    names = list(load_file(folder / WEIGHTS))
    shard = rng.choice(("../../../../../etc/passwd", "/etc/passwd", "gone.safetensors", "pytorch_model.bin", ".", ""))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(marker_of(folder))))
    content = json.dumps({"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)})
    (folder / f"{WEIGHTS}.index.json").write_text(content)
    if rng.random() < 0.7:
        (folder / WEIGHTS).unlink()


HOSTILE: dict[str, Hostility] = {
    function.__name__: function
    for function in (
        *(auto_map, kernel, class_names, pickles, tensors, headers),
        *(links, archives, numbers, settings, deep, index),
    )
}


# -- what is done to the folder of a run -------------------------------------------------------------

BOMBS = (
    "!!python/object/apply:os.system ['touch {marker}']",
    "!!python/object/new:{evil}.Policy []",
    "!!python/name:{evil}.Policy",
    "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "\n".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "[" * 5000,
    "7",
    "",
    "\x00",
)


def run_config(folder: Path, rng: random.Random) -> None:
    """Write a config.yaml that would run code when it is read, or that holds too much or nothing."""
    plant(folder)
    path = folder / "config.yaml"
    text = path.read_text()
    path.write_text(rng.choice(BOMBS).replace("{marker}", str(marker_of(folder))).replace("{evil}", EVIL))
    if rng.random() < 0.5:
        path.write_text(f"{text}\nmore: {path.read_text()}")


def run_target(folder: Path, rng: random.Random) -> None:
    """Name a class of the folder's own module as the method, or another word where a name is expected."""
    plant(folder)
    path = folder / "config.yaml"
    text = path.read_text()
    key = rng.choice(("_target_", "kind", "name", "file", "family"))
    value = rng.choice((f"{EVIL}.Policy", "os.system", "/etc/passwd", "../../x", "[]", "7", "{}", "null", "x" * 10**5))
    lines = [
        line.partition(":")[0] + f": {value}" if line.strip().startswith(f"{key}:") else line
        for line in text.splitlines()
    ]
    path.write_text("\n".join(lines) + "\n")


def run_result(folder: Path, rng: random.Random) -> None:
    """Write a result.json that prunekit never writes."""
    path = folder / "result.json"
    if rng.random() < 0.5:
        path.write_text(rng.choice(("[" * 10**5, "[]", "null", '{"schema": 1e400}', "9" * 5000, '{"schema": -1}', "")))
        return

    def change(content: dict[str, Any]) -> None:
        content[rng.choice(sorted(content))] = rng.choice(NONSENSE)

    edit(path, change)


HOSTILE_RUNS: dict[str, Hostility] = {function.__name__: function for function in (run_config, run_target, run_result)}
