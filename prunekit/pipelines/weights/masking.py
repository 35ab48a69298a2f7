"""Choose which weights to keep, set the others to 0, and re-fit those that are kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from prunekit.console import track
from prunekit.data.text.samples import Stream
from prunekit.methods.weight_base import Need, WeightOptions, WeightPruningMethod
from prunekit.pipelines.weights.calibration import Calibration
from prunekit.pipelines.weights.loading import LoadedModel
from prunekit.pipelines.weights.statistics import CollectedStatistic, StatisticsStore, matrix_statistics
from prunekit.weights.allocation import allocate_by_outliers, allocate_by_rank, outlier_share, prunable_sparsity
from prunekit.weights.decoder import all_matrices, hold_block, mark_changed, parameter_count, set_weight, weight_of
from prunekit.weights.enforce import MaskEnforcer
from prunekit.weights.grams import Gram, stream_grams
from prunekit.weights.importance import InverseFactor, inverse_factor, wanda_score
from prunekit.weights.masks import keep_mask, keep_masks
from prunekit.weights.storage import MaskFiles
from prunekit.weights.update import SweepResult, obs_sweep

SWEEP_COLUMNS = 128  # columns that a sweep updates at a time, unless the groups have a width


@dataclass(frozen=True)
class Allocation:
    """The share of weights to remove from each matrix, and the statistics that it was computed from."""

    sparsity: Mapping[str, float]
    statistics: Sequence[CollectedStatistic] = ()


@dataclass(frozen=True)
class Masking:
    """The masks of all matrices, True = kept, and the seconds of each step on the way to the pruned model."""

    masks: Mapping[str, Tensor]
    seconds: Mapping[str, float]


# -- how much ------------------------------------------------------------------------------------------


def allocate(loaded: LoadedModel, statistics: StatisticsStore, options: WeightOptions) -> Allocation:
    """Divide the sparsity asked for among the matrices, by `method.alloc`.

    Raises:
        ValueError: more of the model is to be removed than is prunable.
    """
    sizes = loaded.sizes
    total = parameter_count(loaded.model)
    sparsity = prunable_sparsity(options.sparsity, options.sparsity_of, sum(sizes.values()), total)
    if options.alloc == "uniform":
        return Allocation(dict.fromkeys(sizes, sparsity))
    if options.alloc == "rank":
        fisher = statistics.collect(Need("fisher", options.gradient_text))
        sensitivity = {name: float(fisher.of_matrix(name).mean()) for name in sizes}
        return Allocation(allocate_by_rank(sensitivity, sizes, sparsity, options.alloc_spread), [fisher])
    norms = statistics.collect(Need("norms", options.calibration))
    outliers = _outlier_shares(loaded, norms)
    block_sizes = {number: sum(sizes[name] for name in loaded.blocks[int(number)]) for number in outliers}
    by_block = allocate_by_outliers(outliers, block_sizes, sparsity, options.alloc_spread)
    shares = {name: share for number, share in by_block.items() for name in loaded.blocks[int(number)]}
    return Allocation(shares, [norms])


def _outlier_shares(loaded: LoadedModel, norms: CollectedStatistic) -> dict[str, float]:
    """Return the share of outliers among Wanda's scores of each block that `method.scope` matches something in."""
    shares = {}
    for number, matrices in enumerate(loaded.blocks):
        if not matrices:
            continue
        with hold_block(loaded.model, number):
            scores = [
                wanda_score(weight_of(module).detach().cpu(), norms.of_matrix(name))
                for name, module in matrices.items()
            ]
        shares[str(number)] = outlier_share(scores)
    return shares


# -- which ---------------------------------------------------------------------------------------------


def mask_by_score(
    loaded: LoadedModel,
    method: WeightPruningMethod,
    sparsity: Mapping[str, float],
    statistics: Sequence[CollectedStatistic],
    folder: Path,
) -> Masking:
    """Keep the weights with the highest scores; the masks go to files in `folder`.

    The model is pruned in place, unless a repair follows, which removes the weights itself.
    """
    start = time.monotonic()
    options, masks = method.options, MaskFiles(folder)

    def score_of(name: str, module: nn.Module) -> Tensor:
        # statistics are in host memory
        return method.score(weight_of(module).detach().cpu(), matrix_statistics(name, statistics))

    global_masks = None
    if options.group == "global":
        scores = {name: score_of(name, module) for name, module in all_matrices(loaded.blocks).items()}
        global_masks = keep_masks(scores, sparsity, options.groups)
    for number in track(range(len(loaded.blocks)), "mask"):
        matrices = loaded.blocks[number]
        with hold_block(loaded.model, number):
            # one matrix at a time: the scores of a whole block are as large as the block
            chosen = {
                name: keep_mask(score_of(name, module), sparsity[name], options.groups)
                if global_masks is None
                else global_masks[name]
                for name, module in matrices.items()
            }
            masks.put(number, chosen)
            if options.weight_update == "none":
                for name, module in matrices.items():
                    set_weight(module, weight_of(module).detach() * chosen[name].to(loaded.model.device))
                MaskEnforcer(loaded.model, chosen, apply=False).check_zeros()
                mark_changed(loaded.model, number)
    return Masking(masks, {"mask": time.monotonic() - start})


def mask_by_sweep(
    loaded: LoadedModel,
    calibration: Calibration,
    options: WeightOptions,
    sparsity: Mapping[str, float],
    folder: Path,
) -> Masking:
    """Choose the masks of each matrix while its kept weights are re-fitted, as in SparseGPT; prunes in place."""
    start = time.monotonic()
    masks, groups, columns = MaskFiles(folder), options.groups, options.width or SWEEP_COLUMNS

    def sweep(name: str, weight: Tensor, factor: InverseFactor) -> SweepResult:
        return obs_sweep(weight, factor, sparsity=sparsity[name], groups=groups, block=columns)

    _sweep_blocks(loaded, calibration, options.calibration, options.damping, sweep, masks.put)
    return Masking(masks, {"repair": time.monotonic() - start})


def repair(loaded: LoadedModel, calibration: Calibration, options: WeightOptions, masking: Masking) -> Masking:
    """Remove what the masks remove and re-fit the kept weights, in place; the masks stay as they are."""
    start = time.monotonic()
    groups, columns = options.groups, options.width or SWEEP_COLUMNS

    def sweep(name: str, weight: Tensor, factor: InverseFactor) -> SweepResult:
        keep = masking.masks[name].to(loaded.model.device)
        return obs_sweep(weight, factor, keep=keep, groups=groups, block=columns)

    _sweep_blocks(loaded, calibration, options.update_on, options.damping, sweep)
    return Masking(masking.masks, {**masking.seconds, "repair": time.monotonic() - start})


def _sweep_blocks(
    loaded: LoadedModel,
    calibration: Calibration,
    stream: Stream,
    damping: float | int,
    sweep: Callable[[str, Tensor, InverseFactor], SweepResult],
    put: Callable[[int, Mapping[str, Tensor]], None] = lambda number, masks: None,
) -> None:
    """Re-fit each block to the outputs of the pruned blocks before it, and hand its masks to `put`."""
    blocks = loaded.blocks

    def visit(number: int, grams: dict[str, Gram]) -> bool:
        masks: dict[str, Tensor] = {}
        factor, made_of = None, 0
        for name, module in blocks[number].items():
            gram = grams.pop(name)
            if id(gram) != made_of or factor is None:  # layers that share one follow each other
                factor, made_of, hessian = None, id(gram), gram.hessian
                del gram
                factor = inverse_factor(hessian, damping, name)
                del hessian
            swept = sweep(name, weight_of(module), factor)
            set_weight(module, swept.weight.to(weight_of(module).dtype))
            masks[name] = swept.keep.cpu()
        MaskEnforcer(loaded.model, masks, apply=False).check_zeros()
        put(number, masks)
        return True

    progress = partial(track, label=f"repair on {stream}")
    stream_grams(loaded.model, calibration.sequences(stream), blocks, visit, progress)
