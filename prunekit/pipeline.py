"""The stages of one run: data, teacher, fit, measure, save. Each is resumable, and says what it does."""

from __future__ import annotations

import copy
import logging
import time
import warnings
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import Logger
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers import logging as transformers_logging

from prunekit import pretrained
from prunekit.checkpoint import (
    FeasibleCheckpoint,
    LastCheckpoint,
    RngState,
    StopAfter,
    resumable,
)
from prunekit.config import ConfigError, compose, config_hash, parse_budget
from prunekit.cost import Shape
from prunekit.data.loading import generator_of
from prunekit.data.module import TokenPruningDataModule
from prunekit.data.spec import TaskSpec
from prunekit.evaluation import Measured, check_executions_agree, evaluate
from prunekit.methods.base import Setting, TokenPruningMethod, Training
from prunekit.progress import Progress, say, track
from prunekit.report.card import model_card
from prunekit.run import command, run
from prunekit.runs import RunFolder, atomic_write_text
from prunekit.runtime.bench import compare_speed
from prunekit.teacher import TeacherOutputs, teacher_outputs
from prunekit.tokens.budget import InfeasibleBudget, check_feasible
from prunekit.tokens.encoder import install
from prunekit.tokens.state import Execution
from prunekit.tracking import log_result, tracking


def quieten() -> None:
    """Holds back what libraries say about themselves: a run's output is its own."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.*",
        ".*is smaller than the logging interval.*",
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def precision_of(asked: str | int) -> str:
    """Lightning's name for `trainer.precision`; "auto" is bf16 autocast where the hardware multiplies bf16."""
    choice = str(asked)
    if choice == "auto":
        on_gpu = torch.cuda.is_available()
        choice = (
            "bf16" if (torch.cuda.is_bf16_supported() if on_gpu else torch.cpu._is_avx512_bf16_supported()) else "32"
        )
    return {"32": "32-true", "bf16": "bf16-mixed"}[choice]


def method_class(cfg: dict[str, Any]) -> type[TokenPruningMethod]:
    """The class that `method._target_` names."""
    module, _, name = cfg["method"]["_target_"].rpartition(".")
    return getattr(import_module(module), name)


def method_options(cfg: dict[str, Any]) -> dict[str, Any]:
    """The keys of the method's file that are the method's own."""
    return {key: value for key, value in cfg["method"].items() if key not in ("name", "_target_")}


def dense_config(cfg: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the dense run that a pruning run starts from; equal for all that may share it."""
    dense = copy.deepcopy(cfg)
    default, _ = compose(["method=dense"])
    dense["method"] = default["method"]
    dense["trainer"] |= {"epochs": cfg["teacher"]["epochs"], "lr": cfg["teacher"]["lr"], "max_steps": None}
    for block in ("teacher", "bench"):
        dense[block] = default[block] | {"enabled": False} if block == "bench" else default[block]
    dense |= {"budget": None, "budget_tolerance": default["budget_tolerance"], "force": False}
    return dense


@dataclass(frozen=True)
class Teacher:
    """A dense model that pruning starts from and learns from, and its run's result when prunekit made it."""

    folder: Path
    result: dict[str, Any] | None


class Pipeline:
    """One run of one configuration. `execute` returns the result; the folder holds everything else."""

    def __init__(
        self, cfg: dict[str, Any], folder: RunFolder, spec: TaskSpec, source: Any, backbone: Path | str
    ) -> None:
        self.cfg = cfg
        self.folder = folder
        self.spec = spec
        self.source = source
        self.backbone = backbone
        self.started = time.time()
        self.seconds: dict[str, float] = {}

    def execute(self) -> dict[str, Any]:
        """Runs all stages."""
        quieten()
        trainer = self.cfg["trainer"]
        if trainer["threads"]:
            torch.set_num_threads(trainer["threads"])
        L.seed_everything(self.cfg["seed"], verbose=False)
        data = self._data()
        setting = self._setting(data)
        self._check_budget(setting)
        teacher = self._teacher(data)
        module = self._method(setting, teacher, data)
        with tracking(self.cfg, self.folder) as loggers:
            if module.trains:
                self._fit(module, data, loggers)
            else:
                self._calibrate(module)
            result = self._measure(module, data, teacher)
            log_result(loggers, result)
        return result

    # -- stages ----------------------------------------------------------------------------------------

    def _data(self) -> TokenPruningDataModule:
        """Reads and tokenises the task; says what was read, and how many texts were cut."""
        cfg, trainer = self.cfg, self.cfg["trainer"]
        data = TokenPruningDataModule(
            self.spec,
            self.source,
            self.backbone,
            batch_size=trainer["batch_size"],
            eval_batch_size=trainer["eval_batch_size"],
            seed=cfg["seed"],
            train_rows=cfg["data"]["train_rows"],
            eval_rows=cfg["data"]["eval_rows"],
            workers=cfg["data"]["workers"],
            cache_dir=cfg["data"]["cache_dir"],
        )
        data.setup()
        self.folder.update_manifest({"data_fingerprint": data.fingerprint, "truncated": data.truncated})
        rows = ", ".join(f"{name} {len(data.split(name))}" for name in ("train", "validation", "test"))
        cut = sum(found["rows"] for found in data.truncated.values())
        mean = data.split("train").lengths.float().mean()
        say(
            f"data       {self.spec.name}: {rows} rows, mean {mean:.1f} tokens; "
            f"{cut} texts cut at {self.spec.max_length} tokens"
        )
        return data

    def _setting(self, data: TokenPruningDataModule, teacher: TeacherOutputs | None = None) -> Setting:
        trainer = self.cfg["trainer"]
        return Setting(
            spec=self.spec,
            shape=Shape.from_config(AutoConfig.from_pretrained(self.backbone)),
            classes=data.num_labels,
            training=Training(
                epochs=trainer["epochs"],
                steps_per_epoch=len(data.train_dataloader()),
                lr=trainer["lr"] or self.cfg["backbone"]["lr"],
                weight_decay=trainer["weight_decay"],
                warmup_fraction=trainer["warmup_fraction"],
                clip=trainer["clip"],
                freeze_embeddings=trainer["freeze_embeddings"],
                max_steps=trainer["max_steps"],
            ),
            lengths={name: data.split(name).lengths for name in ("train", "validation", "test")},
            budget=parse_budget(self.cfg["budget"]),
            tolerance=self.cfg["budget_tolerance"],
            teacher=teacher,
            validation=partial(data.loader, "validation"),
        )

    def _check_budget(self, setting: Setting) -> None:
        """Refuses a budget that the method cannot reach on these sentences, before anything is trained."""
        method, options = method_class(self.cfg), method_options(self.cfg)
        asked = method.asks(setting, **options)
        if asked is None:
            return
        low, high = method.feasible(setting, **options)
        what = f"method={self.cfg['method']['name']} on {self.cfg['backbone']['name']} and {self.spec.name}"
        try:
            check_feasible(asked, low, high, what)
        except InfeasibleBudget as error:
            raise ConfigError(str(error)) from error

    def _teacher(self, data: TokenPruningDataModule) -> Teacher | None:
        """The dense model that every pruning run of this task and backbone starts from; trained once, then reused."""
        if self.cfg["method"]["name"] == "dense":
            return None
        if self.cfg["teacher"]["path"]:
            return Teacher(Path(self.cfg["teacher"]["path"]), None)
        cfg = dense_config(self.cfg)
        say(f"teacher    {RunFolder.of(cfg).path}")
        start = time.time()
        result = run(cfg)
        self.seconds["teacher"] = time.time() - start
        # the teacher's run drew from the global generators: start afresh, whether it ran now or long ago
        L.seed_everything(self.cfg["seed"], verbose=False)
        return Teacher(RunFolder.of(cfg).path / "model", result)

    def _outputs(self, teacher: Teacher, data: TokenPruningDataModule) -> TeacherOutputs:
        """The teacher's word on each training row: read from beside the teacher, or computed now."""
        path = teacher.folder / f"outputs-{data.fingerprint[:12]}-{len(data.split('train'))}.safetensors"
        if path.is_file():
            return TeacherOutputs.load(path)
        model = install(self._classifier(teacher.folder, data), None, "dense")
        batches = data.loader("train")
        outputs = teacher_outputs(model, track(batches, "teacher outputs", len(batches)), data.split("train").lengths)
        outputs.save(path)
        return outputs

    def _classifier(self, source: Path | str, data: TokenPruningDataModule) -> PreTrainedModel:
        return pretrained.load_classifier(source, labels=data.label_names)

    def _method(self, setting: Setting, teacher: Teacher | None, data: TokenPruningDataModule) -> TokenPruningMethod:
        kind, options = method_class(self.cfg), method_options(self.cfg)
        model = self._classifier(teacher.folder if teacher else self.backbone, data)
        if kind.uses_teacher and teacher is not None:
            setting = replace(setting, teacher=self._outputs(teacher, data))
        install(model, kind.build_pruner(setting.shape, **options), "pack")
        return kind(model, setting, **options)

    def _fit(self, module: TokenPruningMethod, data: TokenPruningDataModule, loggers: list[Logger]) -> None:
        """Trains, or goes on where a killed run stopped; leaves the chosen checkpoint's weights in the module."""
        cfg, checkpoints = self.cfg["trainer"], self.folder.checkpoints
        best = FeasibleCheckpoint(checkpoints)
        trainer = L.Trainer(
            max_epochs=cfg["epochs"],
            accelerator=cfg["accelerator"],
            devices=cfg["devices"],
            precision=precision_of(cfg["precision"]),
            logger=loggers,
            callbacks=[
                best,
                LastCheckpoint(checkpoints, seconds=cfg["checkpoint_seconds"]),
                RngState(),
                StopAfter(cfg["max_steps"]),
                Progress(module.asked),
            ],
            val_check_interval=1.0 / cfg["evals_per_epoch"],
            num_sanity_val_steps=0,
            log_every_n_steps=10,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        start = time.time()
        module.train()  # transformers loads models in evaluation mode, without dropout
        trainer.fit(module, datamodule=data, ckpt_path=resumable(checkpoints))
        self.seconds["fit"] = time.time() - start
        chosen = best.best_model_path or best.closest_model_path
        if not chosen:
            raise RuntimeError(f"{checkpoints} holds no checkpoint after training: no evaluation took place.")
        module.load_state_dict(torch.load(chosen, weights_only=True, map_location="cpu")["state_dict"])

    def _calibrate(self, module: TokenPruningMethod) -> None:
        """Prunes the fine-tuned model as it is, within the budget; nothing is trained."""
        start = time.time()
        module.calibrate()
        self.seconds["calibrate"] = time.time() - start

    # -- what came of it -------------------------------------------------------------------------------

    def _measure(
        self, module: TokenPruningMethod, data: TokenPruningDataModule, teacher: Teacher | None
    ) -> dict[str, Any]:
        """Tests under "pack" after a check that it equals "mask", measures speed, saves the model."""
        setting, model = module.setting, module.model.eval().cpu()
        check_executions_agree(model, next(iter(data.loader("test"))))

        def on(split: str, execution: Execution, model: PreTrainedModel = model) -> Measured:
            batches = data.loader(split)
            shown = track(batches, f"{split} ({execution})", len(batches))
            return evaluate(model, shown, self.spec, setting.shape, setting.classes, execution)

        validation, test = on("validation", "mask"), on("test", "pack")
        dense = test.metrics
        if teacher is not None:
            dense = on("test", "dense", install(self._classifier(teacher.folder, data), None, "dense")).metrics
        result = self._result(module, validation, test, dense, data)
        folder = self.folder.path / "model"
        pretrained.save(model, AutoTokenizer.from_pretrained(self.backbone), folder, about=result)
        if self.cfg["bench"]["enabled"]:
            result["speed"] = self._speed(model, folder, data)
        result["seconds"] = {**self.seconds, "total": time.time() - self.started}
        card = model_card(
            result,
            base_model=self.cfg["backbone"].get("hub"),
            labels=list(data.label_names) if data.label_names else None,
            hardware=self.folder.manifest().get("cpu"),
        )
        atomic_write_text(folder / "README.md", card)
        self.folder.update_manifest({"weights_sha256": pretrained.sha256(folder / "model.safetensors")})
        return result

    def _result(
        self,
        module: TokenPruningMethod,
        validation: Measured,
        test: Measured,
        dense: dict[str, float],
        data: TokenPruningDataModule,
    ) -> dict[str, Any]:
        cfg, setting = self.cfg, module.setting
        met = module.eligible(validation.reduction)
        return {
            "schema": 1,
            "status": "done" if met else "budget_missed",
            "exit_code": 0 if met else 3,
            "method": cfg["method"]["name"],
            "task": self.spec.name,
            "backbone": cfg["backbone"]["name"],
            "seed": cfg["seed"],
            "hash": config_hash(cfg),
            "command": command(),
            "budget": {
                "asked": module.asked,
                "tolerance": setting.tolerance,
                "reached": validation.reduction,
                "met": met,
                "split": "validation",
            },
            "score": {
                "metric": self.spec.score,
                "split": _test_split(data),
                "rows": test.rows,
                "dense": dense[self.spec.score],
                "pruned": test.metrics[self.spec.score],
                "dense_all": dense,
                "pruned_all": test.metrics,
                "validation": validation.metrics[self.spec.score],
            },
            "flops": {**test.cost, "padded_to": self.spec.padded_length, "split": _test_split(data)},
            "tokens_per_layer": test.tokens_per_layer,
            "mean_length": float(data.split("test").lengths.float().mean()),
            "speed": [],
            "truncated": data.truncated,
            "execution": {"validation": "mask", "test": "pack"},
        }

    def _speed(self, model: PreTrainedModel, folder: Path, data: TokenPruningDataModule) -> list[dict[str, Any]]:
        """Interleaved medians at each batch size, on test sentences in a seeded order."""
        bench = self.cfg["bench"]
        stock = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        # shuffled, as requests come: sorted by length, padding would cost the padded model nothing
        test = data.split("test")
        order = torch.randperm(len(test), generator=generator_of("bench"))
        rows = []
        for size in bench["batch_sizes"]:
            batches = [test.batch(some) for some in order[: bench["examples"]].split(size)]
            rounds = track(range(bench["rounds"] + 1), f"speed at batch {size}", bench["rounds"] + 1)
            rows.append(compare_speed(model, stock, batches, rounds))
        return rows


def _test_split(data: TokenPruningDataModule) -> str:
    return "test" if data.has_test else "validation"
