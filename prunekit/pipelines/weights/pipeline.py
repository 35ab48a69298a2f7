"""A run that prunes weights, stage by stage: calibrate, score, mask, repair, evaluate, save."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch

from prunekit.config.errors import ConfigError
from prunekit.config.places import cache_folder
from prunekit.console import silence_libraries
from prunekit.environment import forget_peak_memory
from prunekit.methods.weight_base import WeightPruningMethod
from prunekit.pipelines.inputs import RunInputs
from prunekit.pipelines.weights.calibration import draw_calibration
from prunekit.pipelines.weights.evaluation import evaluate, evaluate_dense
from prunekit.pipelines.weights.loading import check_family, load_model
from prunekit.pipelines.weights.masking import allocate, mask_by_score, mask_by_sweep, repair
from prunekit.pipelines.weights.result import build_result
from prunekit.pipelines.weights.saving import save_model
from prunekit.pipelines.weights.statistics import StatisticsStore
from prunekit.runs.kinds import method_options, target_of
from prunekit.runs.result import WeightRunResult
from prunekit.training.hardware import accelerator_of, use_threads


class WeightPipeline:
    """One run of one configuration. `execute` returns the result; the folder holds everything else."""

    def __init__(self, run: RunInputs) -> None:
        self.run = run

    def execute(self) -> WeightRunResult:
        """Run all stages and return the result."""
        started = time.monotonic()
        silence_libraries()
        forget_peak_memory()
        run, cfg, seed = self.run, self.run.cfg, self.run.cfg["seed"]
        check_family(run.backbone, cfg["backbone"]["name"])
        device = torch.device("cuda" if accelerator_of(cfg["trainer"]["accelerator"]) == "gpu" else "cpu")
        use_threads(cfg["trainer"]["threads"])
        L.seed_everything(seed, verbose=False)
        method = build_method(cfg)
        options = method.options
        cache = Path(cfg["data"]["cache_dir"] or cache_folder()) / "weights"

        with scratch_folder(run.folder.path / "scratch") as scratch:
            with value_errors_as_config_errors():
                loaded = load_model(run.backbone, options, device, scratch / "blocks")
                # every stream, before anything is measured: there may be too little text
                calibration = draw_calibration(run.data, run.source, loaded.tokenizer, seed, loaded.max_tokens)
                dense = evaluate_dense(loaded, calibration.texts, cache)

                store = StatisticsStore(loaded, calibration, options, cache, scratch / "statistics")
                allocation = allocate(loaded, store, options)
                scored_by = [] if method.adaptive else [store.collect(need) for need in method.needs()]
                if method.adaptive:
                    masking = mask_by_sweep(loaded, calibration, options, allocation.sparsity, scratch / "masks")
                else:
                    masking = mask_by_score(loaded, method, allocation.sparsity, scored_by, scratch / "masks")
                    if options.weight_update == "obs":
                        masking = repair(loaded, calibration, options, masking)
                pruned = evaluate(loaded, calibration.texts, "pruned")

            statistics = [*allocation.statistics, *scored_by]
            result = build_result(
                cfg, method, loaded, calibration, statistics, masking, dense=dense, pruned=pruned, started=started
            )
            model_folder, hub_name = run.folder.path / "model", cfg["backbone"].get("hub")
            digest = save_model(loaded, options, masking.masks, result, model_folder, hub_name, scratch)
        run.folder.update_manifest({"weights_sha256": digest, "calibration": result.to_json()["calibration"]})
        return result


def build_method(cfg: dict[str, Any]) -> WeightPruningMethod:
    """Build the method that `method._target_` names, with the options of its file."""
    method_class: type[WeightPruningMethod] = target_of(cfg)
    return method_class(method_class.Options.from_config(method_options(cfg)))


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Remove what an interrupted run left in a folder, and the folder itself at the end."""
    shutil.rmtree(path, ignore_errors=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def value_errors_as_config_errors() -> Iterator[None]:
    """Turn a ValueError, by which stages report unusable models, texts and options, into one that ends the command.

    Raises:
        ConfigError: with the same message.
    """
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error
