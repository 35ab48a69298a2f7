"""The dense teacher of a token-pruning run: found or trained, and its outputs on the training rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from prunekit.config.errors import ConfigError
from prunekit.config.identity import is_dense
from prunekit.console import say, track
from prunekit.data.encoding import EncodedSplit
from prunekit.data.loading import FixedLoader
from prunekit.data.module import TokenPruningDataModule
from prunekit.data.spec import TaskSpec
from prunekit.evaluation.distillation_targets import RowLogits, TeacherOutputs, teacher_outputs
from prunekit.files import folder_damage, json_sha256, known_sha256
from prunekit.models import loading
from prunekit.models.embedder import SentenceEmbedder
from prunekit.models.sentence_folder import head_files
from prunekit.pipelines.inputs import RunInputs
from prunekit.runs.folder import MODEL, RunFolder
from prunekit.runs.identity import dense_config
from prunekit.runs.result import RunResult
from prunekit.runs.storage import keep_in_cache
from prunekit.tokens.encoder import install

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Teacher:
    """A dense model that pruning starts from and learns from; `result` is that of its run, if prunekit trained it."""

    folder: Path
    result: RunResult | None

    @cached_property
    def weights_sha256(self) -> str:
        """Digest of the weights' file, which is read once for all that asks for it."""
        return known_sha256(self.folder / WEIGHTS)

    @cached_property
    def outputs_sha256(self) -> str:
        """Digest of all that its outputs depend on: of the weights, and of a head that has files of its own."""
        own = [known_sha256(file) for file in head_files(self.folder)]
        return json_sha256([self.weights_sha256, *own]) if own else self.weights_sha256

    def identity(self) -> dict[str, Any]:
        """Return which weights these are, for the manifest: runs with different ones do not compare."""
        known = {} if self.result is None else {"hash": self.result.hash}
        return {**known, "weights_sha256": self.weights_sha256}


def find_teacher(run: RunInputs) -> Teacher | None:
    """Return the dense model that all pruning runs of this task and backbone start from; it is trained once.

    None where the run itself is dense.
    """
    if is_dense(run.cfg["method"]["name"]):
        return None
    if run.cfg.get("model"):
        return _check(Teacher(Path(run.backbone), None), "model=", "Give a whole copy of the model")
    if given := run.cfg["teacher"]["path"]:
        return _check(Teacher(Path(given), None), "teacher.path=", "Give a whole copy of the model")
    cfg = dense_config(run.cfg)
    folder = RunFolder.of(cfg)
    say(f"teacher    {folder.path}")
    result = run.train_dense(cfg)
    assert isinstance(result, RunResult)
    advice = "Delete that file and give the same command again, which trains the teacher again"
    return _check(Teacher(folder.path / MODEL, result), "the teacher in ", advice, folder)


def _check(teacher: Teacher, what: str, advice: str, run: RunFolder | None = None) -> Teacher:
    """Return a teacher whose files are those that were saved; `run` is the folder of the run that saved them.

    Raises:
        ConfigError: they were damaged or replaced; other weights would be another teacher.
    """
    wrong = folder_damage(teacher.folder, run.hash if run is not None else "")
    stored = run.manifest().get("weights_sha256") if run is not None else None
    if wrong is None and stored is not None and stored != teacher.weights_sha256:
        wrong = f"{teacher.folder / WEIGHTS} has sha256 {teacher.weights_sha256[:12]}, its run saved {stored[:12]}"
    if wrong is not None:
        raise ConfigError(
            f"{what}{teacher.folder} cannot be used: {wrong}.\n"
            f"Allowed: the files of a model as they were saved.\n{advice}, or restore the file."
        )
    return teacher


def load_task_model(
    source: Path | str, spec: TaskSpec, data: TokenPruningDataModule, *, new_head: bool = False
) -> PreTrainedModel:
    """Load a model with the head of the task; with `new_head` one without a head gets one, at random.

    Raises:
        ConfigError: it has a head of another kind or size, other classes, or none.
    """
    model = loading.load_model(source, spec.kind, data.label_names, new_head=new_head)
    if isinstance(model, SentenceEmbedder):
        model.pool(spec.pooling)
    return model


def load_dense(teacher: Teacher, spec: TaskSpec, data: TokenPruningDataModule) -> PreTrainedModel:
    """Load the teacher as a model that the traversal runs without pruning."""
    return install(load_task_model(teacher.folder, spec, data), None, "dense", prefix=data.prefix_tokens)


def read_outputs(teacher: Teacher, spec: TaskSpec, data: TokenPruningDataModule) -> TeacherOutputs:
    """Return the teacher's outputs on each training row: from the cache, or computed now and cached."""
    return _outputs_on(data.loader("train"), data.fingerprint, teacher, spec, data)


def read_answers(run: RunInputs, data: TokenPruningDataModule, name: str, split: EncodedSplit) -> Tensor:
    """Return the logits of the model that was given on each row of a split, in the same way."""
    teacher = find_teacher(run)
    assert teacher is not None, "a dense run has no model to learn from, which is refused before"
    batches = FixedLoader(split, data.eval_batch_size, workers=data.workers)
    fingerprint = json_sha256([data.label_names, split.fingerprint])
    outputs = _outputs_on(batches, fingerprint, teacher, run.spec, data, f"dense answers, {name}").logits
    assert isinstance(outputs, RowLogits)
    return outputs.logits


def _outputs_on(
    batches: FixedLoader,
    fingerprint: str,
    teacher: Teacher,
    spec: TaskSpec,
    data: TokenPruningDataModule,
    what: str = "teacher outputs",
) -> TeacherOutputs:
    path = data.cache_dir / "teachers" / f"{teacher.outputs_sha256[:16]}-{fingerprint[:16]}.safetensors"
    if (stored := TeacherOutputs.load_if_whole(path)) is not None:
        return stored
    model = load_dense(teacher, spec, data)
    outputs = teacher_outputs(model, track(batches, what, len(batches)), batches.split.lengths)
    keep_in_cache(path, lambda: outputs.save(path))
    return outputs
