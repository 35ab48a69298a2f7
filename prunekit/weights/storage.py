"""Masks on disk, a compact form of pruned weights, and the sparsity of a model; nothing is pickled.

Unstructured zeros make neither dense kernels faster nor ordinary checkpoints smaller; the compact form is for storage.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunekit.files import atomic_write
from prunekit.weights.disk import merge_files

FORMAT = "prunekit-mask"
COMPACT = "prunekit-bitmask"
VERSION = "1"


def pack_bits(mask: Bool[Tensor, "rows columns"]) -> UInt8[Tensor, "rows bytes"]:
    """Pack a mask, eight columns per byte, the first column in the lowest bit; a row's last byte is padded with 0."""
    packed = np.packbits(mask.cpu().numpy(), axis=1, bitorder="little")
    return torch.from_numpy(np.ascontiguousarray(packed))  # GPT-2's masks are transposed, and so are their packed bits


def unpack_bits(packed: UInt8[Tensor, "rows bytes"], columns: int) -> Bool[Tensor, "rows columns"]:
    """Return the mask that `pack_bits` packed."""
    bits = np.unpackbits(packed.cpu().numpy(), axis=1, count=columns, bitorder="little")
    return torch.from_numpy(bits).bool()


def save_masks(masks: Mapping[str, Bool[Tensor, "_ _"]], path: Path, about: Mapping[str, str] | None = None) -> None:
    """Write masks to a safetensors file: `<matrix>.mask` per matrix, outputs in rows, 1 = kept."""
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    tensors = {f"{name}.mask": pack_bits(mask) for name, mask in masks.items()}
    header = {"format": FORMAT, "version": VERSION, "shapes": json.dumps(shapes), **(about or {})}
    _save(tensors, path, header)


def load_masks(path: Path) -> dict[str, Bool[Tensor, "_ _"]]:
    """Read the masks of a file that `save_masks` wrote.

    Raises:
        ValueError: another format or version.
    """
    with safe_open(path, "pt") as file:
        header = _header(file, path, FORMAT)
        shapes = json.loads(header["shapes"])
        return {name: unpack_bits(file.get_tensor(f"{name}.mask"), shape[1]) for name, shape in shapes.items()}


class MaskFiles(Mapping[str, Tensor]):
    """Masks in the files of a folder, one bit per weight, each read when it is accessed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.places: dict[str, tuple[Path, int]] = {}

    def put(self, number: int, masks: Mapping[str, Bool[Tensor, "_ _"]]) -> None:
        """Write the masks of one block."""
        path = self.folder / f"masks-{number:05d}.safetensors"
        save_masks(masks, path)
        self.places |= {name: (path, mask.shape[1]) for name, mask in masks.items()}

    def __getitem__(self, name: str) -> Tensor:
        path, columns = self.places[name]
        with safe_open(path, "pt") as file:
            return unpack_bits(file.get_tensor(f"{name}.mask"), columns)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def save_compact(weights: Mapping[str, Tensor], masks: Mapping[str, Bool[Tensor, "_ _"]], path: Path) -> None:
    """Write the kept values of each matrix, row by row, and one bit per weight: (1 - s) + 1/16 of the size in bf16.

    The mask alone decides which values are kept: a kept weight may be 0 or -0, and is stored as such.
    """
    tensors: dict[str, Tensor] = {}
    for name, mask in masks.items():
        tensors[f"{name}.values"] = weights[name][mask].contiguous()
        tensors[f"{name}.bitmask"] = pack_bits(mask)
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    _save(tensors, path, {"format": COMPACT, "version": VERSION, "shapes": json.dumps(shapes)})


def merge_compact(parts: Sequence[Path], path: Path) -> None:
    """Merge compact files into one without loading them into memory."""
    shapes: dict[str, Any] = {}
    for part in parts:
        with safe_open(part, "pt") as file:
            shapes |= json.loads(_header(file, part, COMPACT)["shapes"])
    merge_files(parts, path, {"format": COMPACT, "version": VERSION, "shapes": json.dumps(shapes)})


def load_compact(path: Path) -> dict[str, Tensor]:
    """Read the weights that `save_compact` wrote: dense, identical bit for bit, outputs in rows."""
    with safe_open(path, "pt") as file:
        shapes = json.loads(_header(file, path, COMPACT)["shapes"])
        weights = {}
        for name, (rows, columns) in shapes.items():
            values = file.get_tensor(f"{name}.values")
            weight = torch.zeros(rows, columns, dtype=values.dtype)
            weight[unpack_bits(file.get_tensor(f"{name}.bitmask"), columns)] = values
            weights[name] = weight
        return weights


def _save(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    atomic_write(path, lambda beside: save_file(tensors, beside, header))


def _header(file: Any, path: Path, expected: str) -> dict[str, str]:
    header = dict(file.metadata() or {})
    if header.get("format") != expected or header.get("version") != VERSION:
        raise ValueError(
            f"{path} has format {header.get('format')} {header.get('version')}, not {expected} {VERSION}; "
            f"give a file that prunekit wrote."
        )
    return header


def sparsity_report(masks: Mapping[str, Bool[Tensor, "_ _"]], total: int) -> dict[str, float]:
    """Return the share of removed weights: per matrix (min, mean, max), of all prunable weights, of the `total`."""
    shares = [1 - float(mask.double().mean()) for mask in masks.values()]
    removed = sum(mask.numel() - int(mask.sum()) for mask in masks.values())
    prunable = sum(mask.numel() for mask in masks.values())
    return {
        "matrix_min": min(shares),
        "matrix_mean": sum(shares) / len(shares),
        "matrix_max": max(shares),
        "of_prunable": removed / prunable,
        "of_model": removed / total,
        "removed": removed,
        "prunable": prunable,
        "parameters": total,
    }
