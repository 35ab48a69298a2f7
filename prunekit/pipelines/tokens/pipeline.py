"""The stages of one run: data, teacher, fit, measure, save. Each is resumable, and says what it does."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from prunekit import files
from prunekit.bench.timing import compare_speed
from prunekit.config.budget import parse_budget
from prunekit.config.errors import ConfigError
from prunekit.config.identity import config_hash
from prunekit.console import say, silence_libraries, track
from prunekit.cost import Shape
from prunekit.data.loading import generator_of
from prunekit.data.module import TokenPruningDataModule
from prunekit.data.spec import TaskSpec
from prunekit.environment import command
from prunekit.evaluation.distillation_targets import TeacherOutputs, teacher_outputs
from prunekit.evaluation.equivalence import check_executions_agree
from prunekit.evaluation.evaluate import EvaluationResult, evaluate, kept_tokens
from prunekit.files import atomic_write_text
from prunekit.loggers.session import log_result, tracking
from prunekit.methods.base import TokenPruningMethod
from prunekit.methods.context import MethodContext, Training
from prunekit.models import loading, pretrained
from prunekit.models.heads import HEADS, stored_head
from prunekit.pipelines.run import run
from prunekit.pipelines.tokens import latency_goal
from prunekit.pipelines.tokens.artifacts import _predicted, _predictions, log_tokens
from prunekit.pipelines.tokens.preparation import _rows, check_dense, knobs, method_class
from prunekit.pipelines.tokens.result import _test_split
from prunekit.pipelines.tokens.teacher import Teacher
from prunekit.results import examples
from prunekit.results.card import model_card
from prunekit.results.plots import write_bands, write_pareto, write_plots
from prunekit.runs.folder import SETTLING, RunFolder
from prunekit.runs.identity import dense_config
from prunekit.runs.kinds import method_options
from prunekit.tokens.budget import InfeasibleBudgetError, check_feasible
from prunekit.tokens.encoder import encoder_of, install
from prunekit.tokens.families.registry import FAMILIES
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.state import Execution
from prunekit.training.checkpoints import FeasibleCheckpoint, LastCheckpoint, StopAfter, resumable
from prunekit.training.hardware import accelerator_of, precision_of, use_threads
from prunekit.training.progress import Progress
from prunekit.training.rng import RngState


class Pipeline:
    """One run of one configuration. `execute` returns the result; the folder holds everything else."""

    def __init__(
        self,
        cfg: dict[str, Any],
        folder: RunFolder,
        spec: TaskSpec,
        source: Any,
        backbone: Path | str,
        *,
        wait: bool = True,
    ) -> None:
        self.cfg = cfg
        self.wait = wait  # for a teacher that another process trains
        self.folder = folder
        self.spec = spec
        self.source = source
        self.backbone = backbone
        self.goal = latency_goal.Goal.of(cfg)
        self.started = time.time()
        self.seconds: dict[str, float] = {}

    def execute(self) -> dict[str, Any]:
        """Runs all stages."""
        module, data, teacher = self.build()
        with tracking(self.cfg, self.folder) as loggers:
            if module.trains:
                self.fit(module, data, loggers)
            else:
                self._calibrate(module)
            found = self._settle(module)
            result = self._measure(module, data, teacher, found)
            log_result(loggers, result)
            log_tokens(loggers, self.folder, self.cfg["logger"]["texts"])
        return result

    def build(self) -> tuple[TokenPruningMethod, TokenPruningDataModule, Teacher | None]:
        """Everything before training: the data, the teacher, and the method on its model."""
        silence_libraries()
        self._check_models()
        trainer = self.cfg["trainer"]
        accelerator_of(trainer["accelerator"])
        use_threads(trainer["threads"])
        L.seed_everything(self.cfg["seed"], verbose=False)
        data = self._data()
        context = self._aimed(self._setting(data), data)
        self._check_budget(context)
        teacher = self._teacher(data)
        if teacher is not None:
            self._note_teacher(teacher)
        module = self._method(context, teacher, data)
        if self.goal is not None and module.test_execution != "pack":
            raise ConfigError(
                f"{self.goal.key}: this method is tested under {module.test_execution!r}, which is not what the packed "
                "engine computes.\nAllowed: methods that are tested packed; top without method.compat.\n"
                "Leave that out, or give a budget."
            )
        return module, data, teacher

    @property
    def _is_dense(self) -> bool:
        return str(self.cfg["method"]["name"]) == "dense"

    # -- stages ----------------------------------------------------------------------------------------

    def _check_models(self) -> None:
        """Refuses a family that cannot be pruned, and a teacher that is no model, before data is read."""
        for key, source in (("backbone", self.backbone), ("teacher.path", self.cfg["teacher"]["path"])):
            if source is None:
                continue
            try:
                kind = AutoConfig.from_pretrained(source).model_type
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"{key}={source} is no model ({str(error).splitlines()[0][:80]}).\n"
                    "Allowed: a folder with config.json, model.safetensors and tokenizer, as transformers saves it.\n"
                    "Give the model/ folder of a dense run, or leave it out."
                ) from error
            check_dense(key, source)
            head = HEADS[self.spec.kind]
            supported = sorted(name for name, family in FAMILIES.items() if family.translates == head.decodes)
            if kind not in supported:
                known = kind in FAMILIES
                raise ConfigError(
                    f"{key}={source} is of the family {kind!r}, which "
                    + (f"is not for task.kind={self.spec.kind}.\n" if known else "prunekit cannot prune.\n")
                    + f"Allowed: {', '.join(supported)}.\nChoose another backbone{' or task' * known}."
                )
            if self._is_dense and self.cfg["trainer"]["epochs"] == 0 and stored_head(source) is not head:
                raise ConfigError(
                    f"trainer.epochs=0 takes {key}={source} as it is, but it has no head for {head.pipeline}.\n"
                    "Allowed: 1 and more, which trains the head, or a model that has one.\n"
                    "Give trainer.epochs=2, or as a teacher's teacher.epochs=2."
                )

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
            train_band=cfg["data"]["train_band"],
            eval_bands=cfg["data"]["eval_bands"],
            workers=cfg["data"]["workers"],
            cache_dir=cfg["data"]["cache_dir"],
            prefix=self.spec.prefix(cfg["backbone"].get("prefix")),
        )
        data.setup()
        read = {name: data.split(name) for name in ("train", "validation", "test")}
        texts = {name: {"rows": len(one), "tokens": float(one.lengths.float().mean())} for name, one in read.items()}
        self.folder.update_manifest({"data_fingerprint": data.fingerprint, "truncated": data.truncated, "texts": texts})
        rows = ", ".join(_rows(name, data.split(name)) for name in ("train", "validation", "test"))
        rows += "" if self.spec.kind == "span" else " rows"
        cut = sum(found["rows"] for found in data.truncated.values())
        mean = data.split("train").lengths.float().mean()
        say(
            f"data       {self.spec.name}: {rows}, mean {mean:.1f} tokens; "
            f"{cut} texts cut at {self.spec.max_length} tokens, "
            f"{sum(data.dropped.values())} empty or double rows left out"
        )
        if data.train_band is not None:
            some = data.split("train").lengths
            say(f"data       trained and validated on texts of {int(some.min())} to {int(some.max())} tokens")
        return data

    def _setting(self, data: TokenPruningDataModule, teacher: TeacherOutputs | None = None) -> MethodContext:
        trainer = self.cfg["trainer"]
        return MethodContext(
            spec=self.spec,
            shape=Shape.from_config(AutoConfig.from_pretrained(self.backbone)),
            classes=data.num_labels,
            training=Training(
                epochs=trainer["epochs"],
                steps_per_epoch=len(data.train_dataloader()),
                lr=trainer["lr"] or self.cfg["backbone"]["lr" if self._is_dense else "pruning_lr"],
                head_lr=self.cfg["backbone"]["head_lr"] if self._is_dense else None,  # later the head is trained
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
            questions=[data.split(name).questions for name in data.validation_splits],
            protected={name: data.split(name).protected for name in ("train", "validation", "test")},
        )

    def _options(self, context: MethodContext) -> dict[str, Any]:
        return method_class(self.cfg).completed(context, **method_options(self.cfg))

    def _check_budget(self, context: MethodContext) -> None:
        """Refuses a budget that the method cannot reach on these sentences, before anything is trained."""
        method, options = method_class(self.cfg), self._options(context)
        asked = method.asks(context, **options)
        if asked is None:
            return
        low, high = method.feasible(context, **options)
        if context.budget is None and not low <= asked <= high:
            turned = ", ".join(f"method.{name}={value}" for name, value in knobs(self.cfg).items())
            raise ConfigError(
                f"{turned} asks for {asked:.3g}x fewer FLOPs.\n"
                f"Feasible on {self.cfg['backbone']['name']} and {self.spec.name}: {low:.2f}x to {high:.2f}x, "
                f"which is a sparsity of {1 - 1 / low:.2f} to {1 - 1 / high:.2f}.\n"
                "Ask for less, or let the method decide at earlier layers."
            )
        what = f"method={self.cfg['method']['name']} on {self.cfg['backbone']['name']} and {self.spec.name}"
        try:
            check_feasible(asked, low, high, what)
        except InfeasibleBudgetError as error:
            raise ConfigError(str(error)) from error

    def _aimed(self, context: MethodContext, data: TokenPruningDataModule) -> MethodContext:
        """The setting with the budget that a goal in milliseconds comes to on this machine; without a goal as it is."""
        if self.goal is None:
            return context
        start = time.time()
        names = self.cfg["method"]["name"], self.cfg["backbone"]["name"], self.spec.name

        def model(pruner: TokenPruner) -> PreTrainedModel:
            return install(self._model(self.backbone, data), pruner)

        subject = latency_goal.GoalSubject(
            method_class(self.cfg),
            self._options(context),
            context,
            model,
            AutoConfig.from_pretrained(self.backbone).model_type,
            f"method={names[0]} on {names[1]} and {names[2]}",
        )
        found = latency_goal.aim(self.goal, subject, self.folder.path, data.cache_dir / "staircases")
        self.seconds["staircase"] = time.time() - start
        # a model that was made or not for it must not change what is drawn from here on
        L.seed_everything(self.cfg["seed"], verbose=False)
        return replace(context, budget=found.budget)

    def _teacher(self, data: TokenPruningDataModule) -> Teacher | None:
        """The dense model that every pruning run of this task and backbone starts from; trained once, then reused."""
        if self._is_dense:
            return None
        if self.cfg["teacher"]["path"]:
            return Teacher(Path(self.cfg["teacher"]["path"]), None)
        cfg = dense_config(self.cfg)
        say(f"teacher    {RunFolder.of(cfg).path}")
        start = time.time()
        result = run(cfg, wait=self.wait)
        self.seconds["teacher"] = time.time() - start
        # the teacher's run drew from the global generators: start afresh, whether it ran now or long ago
        L.seed_everything(self.cfg["seed"], verbose=False)
        return Teacher(RunFolder.of(cfg).path / "model", result)

    def _note_teacher(self, teacher: Teacher) -> None:
        """Which weights this run starts from: runs with different ones do not compare."""
        known = {} if teacher.result is None else {"hash": teacher.result["hash"]}
        self.folder.update_manifest({"teacher": {**known, "weights_sha256": teacher.weights_sha256}})

    def _outputs(self, teacher: Teacher, data: TokenPruningDataModule) -> TeacherOutputs:
        """The teacher's word on each training row: read from beside the teacher, or computed now."""
        path = data.cache_dir / "teachers" / f"{teacher.weights_sha256[:16]}-{data.fingerprint[:16]}.safetensors"
        if (stored := TeacherOutputs.load_if_whole(path)) is not None:
            return stored
        model = self._dense_model(teacher, data)
        batches = data.loader("train")
        outputs = teacher_outputs(model, track(batches, "teacher outputs", len(batches)), data.split("train").lengths)
        path.parent.mkdir(parents=True, exist_ok=True)
        outputs.save(path)
        return outputs

    def _model(self, source: Path | str, data: TokenPruningDataModule) -> PreTrainedModel:
        try:
            return loading.load_model(source, self.spec.kind, data.label_names)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _dense_model(self, teacher: Teacher, data: TokenPruningDataModule) -> PreTrainedModel:
        return install(self._model(teacher.folder, data), None, "dense", prefix=data.prefix_tokens)

    def _method(
        self, context: MethodContext, teacher: Teacher | None, data: TokenPruningDataModule
    ) -> TokenPruningMethod:
        kind, options = method_class(self.cfg), self._options(context)
        model = self._model(teacher.folder if teacher else self.backbone, data)
        if kind.uses_teacher and teacher is not None:
            context = replace(context, teacher=self._outputs(teacher, data))
        install(model, kind.build_pruner(context.shape, **options), "pack", prefix=data.prefix_tokens)
        return kind(model, context, **options)

    def fit(self, module: TokenPruningMethod, data: TokenPruningDataModule, loggers: list[Logger]) -> None:
        """Trains, or goes on where a killed run stopped; leaves the chosen checkpoint's weights in the module."""
        cfg, checkpoints = self.cfg["trainer"], self.folder.checkpoints
        best = FeasibleCheckpoint(checkpoints)
        trainer = L.Trainer(
            max_epochs=cfg["epochs"],
            accelerator=accelerator_of(cfg["accelerator"]),
            devices=1,  # several processes are not supported yet
            precision=precision_of(cfg["precision"]),
            logger=loggers,
            callbacks=[
                best,
                LastCheckpoint(checkpoints, seconds=cfg["checkpoint_seconds"]),
                RngState(),
                StopAfter(cfg["max_steps"]),
                Progress(module.asked, cfg["max_steps"]),
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
        try:
            trainer.fit(module, datamodule=data, ckpt_path=resumable(checkpoints))
        except SystemExit as ended:
            # lightning ends the process itself when it is interrupted; who called decides what that means
            if isinstance(ended, SIGTERMException) or isinstance(ended.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from ended
            raise
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

    def _settle(self, module: TokenPruningMethod) -> dict[str, Any]:
        """The method's last decisions, on the weights that are kept."""
        start = time.time()
        found = module.finalise(self.folder.checkpoints / SETTLING)
        if found:
            self.seconds["search"] = time.time() - start
        return found

    # -- what came of it -------------------------------------------------------------------------------

    def _measure(
        self,
        module: TokenPruningMethod,
        data: TokenPruningDataModule,
        teacher: Teacher | None,
        settled: dict[str, Any],
    ) -> dict[str, Any]:
        """Tests under "pack" after a check that it equals "mask", measures speed, saves the model."""
        context, model = module.context, module.model.eval().cpu()
        if module.test_execution != "mask":
            agreed = check_executions_agree(model, next(iter(data.loader("test"))), "mask", module.test_execution)
            if agreed.near_ties:
                say(
                    f"check      {agreed.near_ties} texts of the first test batch keep other tokens under "
                    f"{module.test_execution!r} than under 'mask': scores that tie up to rounding"
                )

        def on(
            split: str, execution: Execution, model: PreTrainedModel = model, spec: TaskSpec = self.spec
        ) -> EvaluationResult:
            batches, questions = data.loader(split), data.split(split).questions
            shown = track(batches, f"{split} ({execution})", len(batches))
            return evaluate(model, shown, spec, context.shape, context.classes, execution, questions)

        validation = on("validation", "mask")
        spec = replace(self.spec, **validation.settled)
        test = dense = self._judged(on("test", module.test_execution, spec=spec), module.test_execution, model, data)
        dense_model = model
        if teacher is not None:
            dense_model = self._dense_model(teacher, data)
            settles = bool(validation.settled) and data.has_test
            own = on("validation", "dense", dense_model).settled if settles else {}
            dense = on("test", "dense", dense_model, replace(self.spec, **own))
            dense = self._judged(dense, "dense", dense_model, data, teacher.result)
        result = self._result(module, validation, test, dense.metrics, data)
        result["bands"] = self._bands(module, model, dense_model, data, test, dense)
        result |= self._details(module, test, dense)
        name = f"{self.cfg['method']['name']} on {self.spec.name}, {_test_split(data)}"
        plots = self.folder.path / "plots"
        write_plots(plots, name, dense.per_row, test.per_row, self.folder.metrics, module.asked)
        if settled:
            result["search"] = {key: settled[key] for key in ("score", "chosen", "pareto")}
            write_pareto(plots, f"{self.cfg['method']['name']} on {self.spec.name}, validation", settled)
        if result["bands"]:
            write_bands(plots, name, self.spec.score, result["bands"])
        tokenizer = AutoTokenizer.from_pretrained(self.backbone)
        if self.cfg["examples"] and (test.per_row.predicted is not None or test.per_row.right is not None):
            self._examples(model, data, tokenizer, dense, test)
        folder = self.folder.path / "model"
        others = [split for split in data.validation_splits if split != "validation"]
        result["score"]["other_splits"] = {
            split: on(split, module.test_execution, spec=spec).metrics for split in others
        }
        if test.answers is not None:
            atomic_write_text(self.folder.path / "predictions.json", _predictions(data.split("test"), test.answers))
        encoder_of(model).execution = module.test_execution
        pretrained.save(model, tokenizer, folder)
        if self.cfg["bench"]["enabled"] and module.test_execution == "pack":
            result["speed"] = self._speed(model, folder, data)
        if self.goal is not None:
            result |= self._verified(self.goal, model, validation, data)
        result["seconds"] = {**self.seconds, "total": time.time() - self.started}
        pretrained.describe(folder, result)
        card = model_card(
            result,
            base_model=self.cfg["backbone"].get("hub"),
            labels=list(data.label_names) if data.label_names else None,
            task_type=HEADS[self.spec.kind].pipeline,
            hardware=self.folder.manifest().get("cpu"),
        )
        atomic_write_text(folder / "README.md", card)
        self.folder.update_manifest({"weights_sha256": files.sha256(folder / "model.safetensors")})
        return result

    def _judged(
        self,
        found: EvaluationResult,
        execution: Execution,
        model: PreTrainedModel,
        data: TokenPruningDataModule,
        stored: dict[str, Any] | None = None,
    ) -> EvaluationResult:
        """What was measured on the test, with what a forward pass does not tell; `stored` is the result of a run that
        measured the same model on the same rows. By default there is no more.
        """
        return found

    def _details(self, module: TokenPruningMethod, test: EvaluationResult, dense: EvaluationResult) -> dict[str, Any]:
        """Further keys of the result, by default none."""
        return {}

    def _examples(
        self,
        model: PreTrainedModel,
        data: TokenPruningDataModule,
        tokenizer: Any,
        tested: EvaluationResult,
        found: EvaluationResult,
    ) -> None:
        """Stores every prediction on the test rows, and which tokens of the first ones stayed; for reports.

        `tested` is what the dense model got, `found` the pruned one.
        """
        split, pruned = data.split("test"), found.per_row
        # of the dense model every token stays: its predictions say all
        wanted = 0 if self._is_dense else examples.rows_within(split.lengths.tolist(), self.cfg["examples"])
        size = self.cfg["trainer"]["eval_batch_size"]
        batches = [split.batch(rows) for rows in torch.arange(wanted).split(size)] if wanted else []
        depths, scores = [torch.zeros(0)], [torch.zeros(0, pruned.tokens.shape[1])]
        for batch in track(batches, "kept tokens", len(batches)):
            depth, received = kept_tokens(model, batch)
            real = batch["attention_mask"] > 0
            depths.append(depth[real])
            scores.append(received.movedim(0, -1)[real])
        depth_of = torch.cat(depths).numpy().astype(np.uint8)
        entered = np.arange(pruned.tokens.shape[1]) <= depth_of[:, None]
        ids = split.ids[: int(split.offsets[wanted])].numpy().astype(np.int32)
        types = np.unique(ids)
        most = slice(0, examples.ROWS)
        examples.save(
            examples.Examples(
                **{name: column[most] for name, column in _predicted(split, tested, found).items()},
                lengths=pruned.lengths[most].numpy().astype(np.uint16),
                counts=pruned.tokens[most].numpy().astype(np.uint16),
                index=np.arange(wanted, dtype=np.int32),
                offsets=split.offsets[: wanted + 1].numpy().astype(np.int32),
                ids=ids,
                depth=depth_of,
                scores=examples.coded(torch.cat(scores).numpy(), entered),
                piece_ids=types,
                pieces=np.array(tokenizer.convert_ids_to_tokens(types.tolist()), dtype=np.str_),
                special=np.isin(types, tokenizer.all_special_ids),
                classes=examples.FOUND if split.questions is not None else tuple(data.label_names or ()),
            ),
            self.folder.path,
        )

    def _result(
        self,
        module: TokenPruningMethod,
        validation: EvaluationResult,
        test: EvaluationResult,
        dense: dict[str, float],
        data: TokenPruningDataModule,
    ) -> dict[str, Any]:
        cfg, context, spec = self.cfg, module.context, replace(self.spec, **validation.settled)
        budget = module.budget_report(validation.reduction)
        met = budget["met"]
        low, high = module.feasible(context, **self._options(context))
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
                **budget,
                "tolerance": context.tolerance,
                "feasible": [low, high],
                "split": "validation",
            },
            "score": {
                "metric": self.spec.score,
                "split": _test_split(data),
                "rows": test.judged,
                "of": self.spec.judged_name,
                **({"null_threshold": spec.null_threshold} if spec.unanswerable else {}),
                "dense": dense[self.spec.score],
                "pruned": test.metrics[self.spec.score],
                "dense_all": dense,
                "pruned_all": test.metrics,
                "validation": validation.metrics[self.spec.chosen_by],
                **({"chosen_by": self.spec.chosen_by} if self.spec.chosen_by != self.spec.score else {}),
            },
            "flops": {
                **test.cost,
                "padded_to": self.spec.padded_length,
                "split": _test_split(data),
                "per": self.spec.row_name,
                **({"of": "encoder"} if HEADS[self.spec.kind].decodes else {}),
            },
            "tokens_per_layer": test.tokens_per_layer,
            "mean_length": float(data.split("test").lengths.float().mean()),
            "speed": [],
            "truncated": data.truncated,
            "dropped": data.dropped,
            "precision": precision_of(cfg["trainer"]["precision"]),
            "execution": {"validation": "mask", "test": module.test_execution},
        }

    def _bands(
        self,
        module: TokenPruningMethod,
        model: PreTrainedModel,
        dense: PreTrainedModel,
        data: TokenPruningDataModule,
        tested: EvaluationResult,
        dense_tested: EvaluationResult,
    ) -> list[dict[str, Any]]:
        """One row per band of lengths that was asked for: quality of the dense and of the pruned model, and cost.

        `tested` is what the whole test measured; here each band is measured by itself.
        """
        context, rows = module.context, []
        for number, (band, _) in enumerate(data.bands):
            batches = data.band_loader(number)
            whole = evaluate(dense, batches, self.spec, context.shape, context.classes, "dense")
            pruned = evaluate(model, batches, self.spec, context.shape, context.classes, module.test_execution)
            rows.append(
                {
                    "from": band.low,
                    "below": band.high,
                    "rows": pruned.rows,
                    "dense": whole.metrics[self.spec.score],
                    "pruned": pruned.metrics[self.spec.score],
                    "dense_all": whole.metrics,
                    "pruned_all": pruned.metrics,
                    "flops_vs_unpadded": pruned.reduction,
                    "mean_length": float(pruned.per_row.lengths.float().mean()),
                    "tokens_per_layer": pruned.tokens_per_layer,
                }
            )
        return rows

    def _verified(
        self,
        goal: latency_goal.Goal,
        model: PreTrainedModel,
        validation: EvaluationResult,
        data: TokenPruningDataModule,
    ) -> dict[str, Any]:
        """What came of the goal, which decides how the run ends; the budget was only the way there."""
        pruner = encoder_of(model).pruner
        assert pruner is not None
        protected_count = validation.per_row.tokens.T.float()
        entering = torch.cat([validation.per_row.lengths[None].float(), protected_count[:-1]])
        split = data.split("validation")
        found = latency_goal.verify(goal, self.folder.path, model, split, (entering, protected_count), pruner.layers)
        say(
            f"goal 4/4   {found['measured_ms']:.3g} ms measured, p95 {found['p95_ms']:.3g}; {goal.latency_ms:g} asked: "
            + ("met" if found["met"] else "MISSED")
        )
        return {
            "goal": found,
            "status": "done" if found["met"] else "budget_missed",
            "exit_code": 0 if found["met"] else 3,
        }

    def _speed(self, model: PreTrainedModel, folder: Path, data: TokenPruningDataModule) -> list[dict[str, Any]]:
        """Interleaved medians at each batch size, on test sentences in a seeded order."""
        bench = self.cfg["bench"]
        stock = loading.load_stock(folder)
        # shuffled, as requests come: sorted by length, padding would cost the padded model nothing
        test = data.split("test")
        order = torch.randperm(len(test), generator=generator_of("bench"))
        rows = []
        for size in bench["batch_sizes"]:
            batches = [test.batch(some) for some in order[: bench["examples"]].split(size)]
            rounds = track(range(bench["rounds"] + 1), f"speed at batch {size}", bench["rounds"] + 1)
            rows.append(compare_speed(model, stock, batches, rounds))
        return rows
