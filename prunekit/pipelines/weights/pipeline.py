"""The stages of a run that prunes weights: calibrate, score, mask, repair, evaluate, save.

Statistics depend on the model, the calibration tokens and few options; they lie in the cache folder under a hash of
these, so that another sparsity, group or lambda takes them as they are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from prunekit.config.errors import ConfigError
from prunekit.config.identity import config_hash
from prunekit.console import say, silence_libraries, track
from prunekit.data.text.samples import (
    Texts,
    TokenSample,
    calibration_samples,
    evaluation_ids,
    read_texts,
    samples_digest,
)
from prunekit.environment import command, forget_peak_memory, peak_memory_mib
from prunekit.evaluation.language_model import choice_scores, choose, perplexity, rouge
from prunekit.files import atomic_write_text, cache_folder
from prunekit.methods.weight_base import Need, Stream, WeightPruningMethod
from prunekit.pipelines.inputs import RunInputs
from prunekit.pipelines.weights.result import _nothing_saved, _score, _semi_structured, _variant, _weights_digest
from prunekit.pipelines.weights.statistics import STATISTICS, _collect, _of_matrix, _plain, _tracked
from prunekit.results.weight_summary import card
from prunekit.runs.kinds import method_options, target_of
from prunekit.training.hardware import accelerator_of, use_threads
from prunekit.weights.allocation import by_outliers, by_rank, outlier_share, prunable_sparsity
from prunekit.weights.decoder import (
    FAMILIES,
    STORE,
    Matrices,
    all_matrices,
    changed,
    parameter_count,
    prunable,
    resident,
    set_weight,
    weight_of,
)
from prunekit.weights.disk import (
    INDEX,
    BlockStore,
    Checkpoint,
    Stored,
    free_memory,
    load_streamed,
    merge,
    too_large,
)
from prunekit.weights.enforce import MaskEnforcer
from prunekit.weights.grams import Gram, stream_grams
from prunekit.weights.importance import inverse_factor, wanda_score
from prunekit.weights.masks import is_nm, keep_masks
from prunekit.weights.storage import MaskFiles, merge_compact, save_compact, save_masks, sparsity_report
from prunekit.weights.update import obs_sweep

EVALUATION = 1  # version of the stored scores of dense models: raise it when what is measured changes


class WeightPipeline:
    """One run of one configuration. `execute` returns the result; the folder holds everything else."""

    def __init__(self, run: RunInputs) -> None:
        self.cfg, self.folder, self.spec = run.cfg, run.folder, run.spec
        self.source, self.backbone = run.source, run.backbone
        self.started = time.time()
        self.seconds: dict[str, float] = {}
        self.reused: list[str] = []
        self.drawn: dict[Stream, list[TokenSample]] = {}

    def execute(self) -> dict[str, Any]:
        """Runs all stages."""
        silence_libraries()
        forget_peak_memory()
        self._check_family()
        trainer, options = self.cfg["trainer"], method_options(self.cfg)
        device = torch.device("cuda" if accelerator_of(trainer["accelerator"]) == "gpu" else "cpu")
        use_threads(trainer["threads"])
        L.seed_everything(self.cfg["seed"], verbose=False)
        method: WeightPruningMethod = target_of(self.cfg)(**options)
        self.scratch = self.folder.path / "scratch"
        shutil.rmtree(self.scratch, ignore_errors=True)
        try:
            return self._stages(method, device)
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _stages(self, method: WeightPruningMethod, device: torch.device) -> dict[str, Any]:
        try:
            model = self._model(device)
            self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.backbone)
            self.base = _weights_digest(Path(self.backbone)) or ""
            self.longest = _longest(model)
            blocks = prunable(model, self.cfg["method"]["scope"])
            self.texts = self._texts()
            for stream in ("open", "domain"):  # too little text is said before anything is measured
                self._samples(stream)
            dense = self._evaluate(model, "dense")
            masks = self._masks(method, model, blocks)
            pruned = self._evaluate(model, "pruned")
        except ValueError as error:
            # what is wrong with model, text or options is said by those who know; here it only ends the run
            raise ConfigError(str(error)) from error
        result = self._result(dense, pruned, masks, parameter_count(model))
        if result["two_of_four"] and self.cfg["method"]["group"] == "nm":
            result["semi_structured"] = _semi_structured(model, blocks)
        self._save(model, blocks, masks, result)
        return result

    def _model(self, device: torch.device) -> PreTrainedModel:
        """The dense model in float32, its blocks in memory or, by `method.stream`, left on disk."""
        asked = self.cfg["method"]["stream"]
        self.streamed = asked is True
        if asked is not False:
            folder = _folder_of(self.backbone)
            try:
                parameters = Checkpoint(folder).size
            except ValueError:
                if self.streamed:
                    raise
            else:
                self.streamed = self.streamed or too_large(parameters, free_memory(device))
        if not self.streamed:
            return AutoModelForCausalLM.from_pretrained(self.backbone, dtype=torch.float32).to(device).eval()
        if self.cfg["method"]["group"] == "global":
            raise ValueError(
                "method.group=global compares all weights at once, which method.stream takes one block at a time.\n"
                "Allowed: method.group=matrix|column_block|row|nm with blocks on disk.\n"
                "Choose another group, or set method.stream=false and have memory for it."
            )
        say(f"stream     blocks stay on disk, one in memory at a time: {folder}")
        return load_streamed(folder, self.scratch / "blocks", device)

    # -- texts -----------------------------------------------------------------------------------------

    def _check_family(self) -> None:
        kind = AutoConfig.from_pretrained(self.backbone).model_type
        if kind not in FAMILIES:
            raise ConfigError(
                f"backbone={self.cfg['backbone']['name']} is of the family {kind!r}, which has no decoder blocks "
                f"that prunekit knows.\n"
                f"Allowed: {', '.join(sorted(FAMILIES))}.\nChoose another backbone, as backbone=smollm2."
            )

    def _texts(self) -> Texts:
        texts = read_texts(self.spec, self.source)
        for name, documents in texts.documents.items():
            say(
                f"data       {name}: {len(documents.calibration)} documents to calibrate on, "
                f"{len(documents.evaluation)} to measure on; {documents.duplicates} double ones left out, "
                f"{documents.overlap} that are in both"
            )
        return texts

    def _samples(self, stream: Stream) -> list[TokenSample]:
        if stream not in self.drawn:
            self.drawn[stream] = calibration_samples(self.texts, stream, self.tokenizer, self.cfg["seed"], self.longest)
        return self.drawn[stream]

    # -- statistics ------------------------------------------------------------------------------------

    def _statistics(
        self, need: Need, model: PreTrainedModel, blocks: Sequence[Matrices]
    ) -> tuple[Mapping[str, Tensor], int]:
        """One statistic of all matrices and its number of samples: read from the cache, or computed and put there."""
        samples = self._samples(need.on)
        options = self.cfg["method"]
        key = {
            "version": STATISTICS,
            "what": need.what,
            "model": self.base or str(self.backbone),
            "tokens": samples_digest(samples),
            "scope": options["scope"],
            "general": [options.get("metric"), options["damping"]] if need.what == "general" else None,
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        root = Path(self.cfg["data"]["cache_dir"] or cache_folder())
        path = root / "weights" / f"{need.what}-{need.on}-{digest[:16]}.safetensors"
        if not path.is_file():
            start = time.time()
            path.parent.mkdir(parents=True, exist_ok=True)
            parts = _collect(need.what, model, _plain(samples), blocks, options, self.scratch / "statistics")
            scratch = path.with_suffix(f".{time.time_ns()}.tmp")
            merge(parts, scratch, {"format": "pt"})
            scratch.replace(path)
            shutil.rmtree(self.scratch / "statistics")
            self.seconds[f"{need.what} on {need.on}"] = time.time() - start
        else:
            self.reused.append(path.name)
            say(f"reused     {need.what} on {need.on}: {path}")
        return Stored(path), len(samples)

    # -- masks -----------------------------------------------------------------------------------------

    def _masks(
        self, method: WeightPruningMethod, model: PreTrainedModel, blocks: Sequence[Matrices]
    ) -> Mapping[str, Tensor]:
        """Prunes the model in place, block by block; returns what stays."""
        options, matrices = self.cfg["method"], all_matrices(blocks)
        sizes = {name: weight_of(module).numel() for name, module in matrices.items()}
        share = prunable_sparsity(
            options["sparsity"], options["sparsity_of"], sum(sizes.values()), parameter_count(model)
        )
        shares = self._allocate(share, sizes, model, blocks)
        masks = MaskFiles(self.scratch / "masks")
        repairs = method.adaptive or options["weight_update"] != "none"
        if not method.adaptive:
            stored = [(need, *self._statistics(need, model, blocks)) for need in method.needs()]
            start = time.time()

            def score_of(name: str, module: nn.Module) -> Tensor:
                # statistics lie on the host
                return method.score(weight_of(module).detach().cpu(), _of_matrix(name, stored))

            at_once = None
            if method.groups.kind == "global":
                scores = {name: score_of(name, module) for name, module in matrices.items()}
                at_once = keep_masks(scores, shares, method.groups)
            for number in _tracked("mask")(range(len(blocks))):
                own = blocks[number]
                with resident(model, number):
                    # matrix by matrix: the scores of a whole block are as large as the block
                    found = {
                        name: keep_masks({name: score_of(name, module)}, shares, method.groups)[name]
                        if at_once is None
                        else at_once[name]
                        for name, module in own.items()
                    }
                    masks.put(number, found)
                    if not repairs:
                        for name, module in own.items():
                            set_weight(module, weight_of(module).detach() * found[name].to(model.device))
                        MaskEnforcer(model, found, apply=False).check_zeros()
                        changed(model, number)
            self.seconds["mask"] = time.time() - start
        if repairs:
            start = time.time()
            self._sweep(method, model, blocks, masks, shares)
            self.seconds["repair"] = time.time() - start
        return masks

    def _allocate(
        self, share: float, sizes: Mapping[str, int], model: PreTrainedModel, blocks: Sequence[Matrices]
    ) -> dict[str, float]:
        options = self.cfg["method"]
        if options["alloc"] == "uniform":
            return dict.fromkeys(sizes, share)
        stream = options.get("domain_on", options["calibration"])
        if options["alloc"] == "rank":
            found, _ = self._statistics(Need("fisher", stream), model, blocks)
            sensitivity = {name: float(found[f"{name}.fisher"].float().mean()) for name in sizes}
            return by_rank(sensitivity, sizes, share, options["alloc_spread"])
        norms, _ = self._statistics(Need("norms", options["calibration"]), model, blocks)
        outliers, inside = {}, {}
        for number, matrices in enumerate(blocks):
            if not matrices:  # method.scope names none of this block
                continue
            with resident(model, number):
                scores = [
                    wanda_score(weight_of(module).detach().cpu(), norms[f"{name}.norms"].float())
                    for name, module in matrices.items()
                ]
            outliers[str(number)] = outlier_share(scores)
            inside[str(number)] = sum(sizes[name] for name in matrices)
        shares = by_outliers(outliers, inside, share, options["alloc_spread"])
        return {name: shares[str(number)] for number, matrices in enumerate(blocks) for name in matrices}

    def _sweep(
        self,
        method: WeightPruningMethod,
        model: PreTrainedModel,
        blocks: Sequence[Matrices],
        masks: MaskFiles,
        shares: Mapping[str, float],
    ) -> None:
        """Re-fits block by block what stays, on what the pruned blocks before it put out; an adaptive mask is put."""
        options = self.cfg["method"]
        stream: Stream = options["calibration"] if method.adaptive else options["update_on"]
        groups = method.groups

        def visit(number: int, grams: dict[str, Gram]) -> bool:
            found: dict[str, Tensor] = {}
            factor, made_of = None, 0
            for name, module in blocks[number].items():
                gram = grams.pop(name)
                if id(gram) != made_of or factor is None:  # layers that share one follow each other
                    factor, made_of, hessian = None, id(gram), gram.hessian
                    del gram
                    factor = inverse_factor(hessian, options["damping"], name)
                    del hessian
                swept = obs_sweep(
                    weight_of(module),
                    factor,
                    keep=None if method.adaptive else masks[name].to(model.device),
                    sparsity=shares[name],
                    groups=groups,
                    block=groups.width or 128,
                )
                set_weight(module, swept.weight.to(weight_of(module).dtype))
                found[name] = swept.keep.cpu()
            MaskEnforcer(model, found, apply=False).check_zeros()
            if method.adaptive:
                masks.put(number, found)
            return True

        samples = _plain(self._samples(stream))
        stream_grams(model, samples, blocks, visit, _tracked(f"repair on {stream}"))

    # -- evaluation ------------------------------------------------------------------------------------

    def _evaluate(self, model: PreTrainedModel, label: str) -> dict[str, Any]:
        """Perplexity of both corpora, and the choice and generation tasks; the dense model's is kept in the cache."""
        path = None
        if label == "dense":
            model_key = self.base or str(self.backbone)
            key = json.dumps([EVALUATION, model_key, dataclasses.asdict(self.spec), self._own_digest()])
            name = f"dense-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
            path = Path(self.cfg["data"]["cache_dir"] or cache_folder()) / "weights" / name
            if path.is_file():
                return dict(json.loads(path.read_text()))
        start = time.time()
        spec, found = self.spec, {}
        window = min(spec.window, self.longest)
        for stream in ("open", "domain"):
            ids = evaluation_ids(self.texts, stream, self.tokenizer)
            shown = _tracked(f"{stream} ({label})")
            found[f"{stream}_perplexity"] = perplexity(model, ids, window, spec.stride, spec.reduction, shown)
            found[f"{stream}_tokens"] = len(ids)
        if questions := self.texts.questions:
            picked = [
                choose(model, self.tokenizer, question.prompt, question.choices, self.longest)
                for question in track(questions, f"choice ({label})")
            ]
            right, classes = [question.right for question in questions], len(questions[0].choices)
            scores = choice_scores(picked, right, classes)
            found |= {f"choice_{name}": value for name, value in scores.items()} | {"choice_rows": len(questions)}
        if self.texts.references and spec.generation is not None:
            found |= rouge(model, self.tokenizer, self.texts.references, spec.generation.new_tokens, self.longest)
        self.seconds[f"evaluate {label}"] = time.time() - start
        if path is not None:
            atomic_write_text(path, json.dumps(found) + "\n")
        return found

    def _own_digest(self) -> str:
        """Of the evaluation text itself, whatever files it came from."""
        digest = hashlib.sha256()
        for stream in ("open", "domain"):
            digest.update(repr(evaluation_ids(self.texts, stream, self.tokenizer).tolist()).encode())
        digest.update(repr([(q.prompt, q.choices, q.right) for q in self.texts.questions]).encode())
        digest.update(repr(self.texts.references).encode())
        return digest.hexdigest()

    # -- what came of it -------------------------------------------------------------------------------

    def _result(
        self, dense: dict[str, Any], pruned: dict[str, Any], masks: Mapping[str, Tensor], parameters: int
    ) -> dict[str, Any]:
        cfg, options = self.cfg, self.cfg["method"]
        return {
            "schema": 1,
            "prunes": "weights",
            "status": "done",
            "exit_code": 0,
            "method": options["name"],
            "variant": _variant(options),
            "task": cfg["task"]["name"],
            "backbone": cfg["backbone"]["name"],
            "seed": cfg["seed"],
            "hash": config_hash(cfg),
            "command": command(),
            "score": _score(dense, pruned),
            "dense": dense,
            "pruned": pruned,
            **_nothing_saved(masks),
            "sparsity": sparsity_report(masks, parameters),
            "calibration": self._provenance(),
            "two_of_four": all(is_nm(mask) for mask in masks.values()),
            "reused": self.reused,
            "streamed": self.streamed,
            "seconds": {**self.seconds, "total": time.time() - self.started},
            "peak_memory_mib": peak_memory_mib(),
        }

    def _provenance(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for stream in ("open", "domain"):
            samples, documents = self._samples(stream), self.texts.documents[stream]
            files = getattr(self.source, stream)
            found[stream] = {
                "file": None if files is None else files.calibration.name,
                "seed": self.cfg["seed"],
                "samples": len(samples),
                "tokens": sum(len(sample.ids) for sample in samples),
                "sha256": samples_digest(samples),
                "overlap": documents.overlap,
                "duplicates": documents.duplicates,
            }
        return found

    def _save(
        self,
        model: PreTrainedModel,
        blocks: Sequence[Matrices],
        masks: Mapping[str, Tensor],
        result: Mapping[str, Any],
    ) -> None:
        """An ordinary Hugging Face folder, zeros stored densely, with the masks beside it."""
        folder = self.folder.path / "model"
        folder.mkdir(parents=True, exist_ok=True)
        if self.cfg["method"]["compact"]:
            parts = []
            for number, matrices in enumerate(blocks):
                parts.append(self.scratch / f"compact-{number:05d}.safetensors")
                with resident(model, number):
                    weights = {name: weight_of(module).detach().cpu() for name, module in matrices.items()}
                    save_compact(weights, {name: masks[name] for name in matrices}, parts[-1])
            merge_compact(parts, folder / "compact.safetensors")
        for earlier in [*folder.glob("model*.safetensors"), folder / INDEX]:  # of a run that was forced anew
            earlier.unlink(missing_ok=True)
        store: BlockStore | None = getattr(model, STORE, None)
        if not self.cfg["method"]["save_weights"]:
            model.config.save_pretrained(folder)
        elif store is not None:
            store.save(folder)
        else:
            model.cpu().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        about = {
            "group": str(self.cfg["method"]["group"]),
            "sparsity": str(result["sparsity"]["of_prunable"]),
            "score": result["variant"],
            "base_sha256": self.base,
        }
        save_masks(masks, folder / "masks.safetensors", about)
        digest = _weights_digest(folder)
        atomic_write_text(folder / "prunekit_sparsity.json", json.dumps(result["sparsity"], indent=2) + "\n")
        atomic_write_text(
            folder / "README.md", card(result, self.cfg["backbone"].get("hub"), weights=digest is not None)
        )
        self.folder.update_manifest({"weights_sha256": digest, "calibration": result["calibration"]})


def _longest(model: PreTrainedModel) -> int:
    """Tokens that the model takes at most."""
    return int(getattr(model.config, "max_position_embeddings", 0) or 2**20)


def _folder_of(backbone: Path | str) -> Path:
    """The folder of a backbone; one of the hub is downloaded, as it would be to load it."""
    if Path(backbone).is_dir():
        return Path(backbone)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(backbone), allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model"]))
