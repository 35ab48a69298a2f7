"""Save a pruned language model as an ordinary Hugging Face folder, with its masks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from prunekit.files import allow_as_usual, atomic_write_text
from prunekit.methods.weight_base import WeightOptions
from prunekit.pipelines.weights.loading import LoadedModel, weights_digest
from prunekit.results.weight_summary import card
from prunekit.runs.result import WeightRunResult
from prunekit.weights.decoder import STORE, hold_block, weight_of
from prunekit.weights.disk import INDEX, BlockStore
from prunekit.weights.storage import merge_compact, save_compact, save_masks


def save_model(
    loaded: LoadedModel,
    options: WeightOptions,
    masks: Mapping[str, Tensor],
    result: WeightRunResult,
    folder: Path,
    hub_name: str | None,
    scratch: Path,
) -> str | None:
    """Save the pruned model, zeros stored densely, with masks and model card; return the hex digest of its weights.

    `hub_name` is that of the dense model, for the card. The digest is None with `method.save_weights=false`, which
    leaves the weights out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if options.compact:
        _save_compact(folder / "compact.safetensors", loaded, masks, scratch)
    _save_weights(folder, loaded, options)
    loaded.tokenizer.save_pretrained(folder)
    about = {
        "group": options.group,
        "sparsity": str(result.sparsity.of_prunable),
        "score": result.variant,
        "base_sha256": loaded.dense_sha256,
    }
    save_masks(masks, folder / "masks.safetensors", about)
    digest = weights_digest(folder)
    atomic_write_text(folder / "prunekit_sparsity.json", json.dumps(result.sparsity.to_json(), indent=2) + "\n")
    atomic_write_text(folder / "README.md", card(result, hub_name, weights=digest is not None))
    return digest


def _save_compact(path: Path, loaded: LoadedModel, masks: Mapping[str, Tensor], scratch: Path) -> None:
    """Write the kept weights of all matrices, a block in memory at a time."""
    parts = []
    for number, matrices in enumerate(loaded.blocks):
        parts.append(scratch / f"compact-{number:05d}.safetensors")
        with hold_block(loaded.model, number):
            weights = {name: weight_of(module).detach().cpu() for name, module in matrices.items()}
            save_compact(weights, {name: masks[name] for name in matrices}, parts[-1])
    merge_compact(parts, path)


def _save_weights(folder: Path, loaded: LoadedModel, options: WeightOptions) -> None:
    """Write configuration and weights; the configuration alone with `method.save_weights=false`."""
    for earlier in [*folder.glob("model*.safetensors"), folder / INDEX]:  # of a run repeated with force=true
        earlier.unlink(missing_ok=True)
    store: BlockStore | None = getattr(loaded.model, STORE, None)
    if not options.save_weights:
        loaded.model.config.save_pretrained(folder)
    elif store is not None:
        store.save(folder)
    else:
        loaded.model.cpu().save_pretrained(folder)
        allow_as_usual(folder)
