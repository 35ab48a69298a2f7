"""Check the models of a run before anything slow: family, head, classes, weights, tokenizer."""

from __future__ import annotations

from pathlib import Path

from prunekit.config.errors import ConfigError, first_line
from prunekit.config.identity import is_dense
from prunekit.cost import Shape
from prunekit.data.encoding import load_tokenizer
from prunekit.models.heads import HEADS, HeadType, stored_head
from prunekit.models.loading import check_classes, check_head
from prunekit.models.pretrained import is_pruned
from prunekit.models.reading import read_config, read_model
from prunekit.models.tokenizers import check_tokenizer, longest_text, separator_of
from prunekit.pipelines.inputs import RunInputs
from prunekit.tokens.families.registry import FAMILIES


def check_models(run: RunInputs) -> None:
    """Check backbone, teacher and tokenizer of a run. A teacher that was given is loaded once, to see that it is whole.

    Raises:
        ConfigError: one of them cannot do what is asked of it.
    """
    cfg, head = run.cfg, HEADS[run.spec.kind]
    is_given = bool(cfg.get("model"))
    key = "model" if is_given else "backbone"
    _check_encoder(run, key, run.backbone)
    _check_reading(run, key, run.backbone)
    trains_no_head = is_dense(cfg["method"]["name"]) and cfg["trainer"]["epochs"] == 0
    if trains_no_head and stored_head(run.backbone, head) != head:
        raise ConfigError(
            f"trainer.epochs=0 takes {key}={run.backbone} as it is, but it has no head for {head.pipeline}.\n"
            "Allowed: 1 and more, which trains the head, or a model that has one.\n"
            "Give trainer.epochs=2, or as a teacher's teacher.epochs=2."
        )
    if stored_head(run.backbone, head) is not None:
        _check_given(run, run.backbone, head)
    if is_given and not is_dense(cfg["method"]["name"]):
        _check_teacher(run, "model", run.backbone)
    if teacher := cfg["teacher"]["path"]:
        _check_encoder(run, "teacher.path", teacher)
        _check_teacher(run, "teacher.path", teacher)
        _check_same_shape(run, key, teacher)


def _check_encoder(run: RunInputs, key: str, source: Path | str) -> None:
    """Check that a setting names a dense encoder of a family that the task can prune; reads its configuration only."""
    try:
        config = read_config(source)
    except ConfigError as error:
        raise ConfigError(
            f"{key}={source} is no model: {first_line(error)}\n" + "\n".join(str(error).splitlines()[1:])
        ) from error
    if is_pruned(source):
        raise ConfigError(
            f"{key}={source} is a pruned model, which would run unpruned here.\n"
            "Allowed: a dense model: the model/ folder of a method=dense run, or one from elsewhere.\n"
            "Name another folder."
        )
    kind, decodes = config.model_type, HEADS[run.spec.kind].decodes
    supported = sorted(name for name, family in FAMILIES.items() if family.has_decoder == decodes)
    if kind not in supported:
        known = kind in FAMILIES
        raise ConfigError(
            f"{key}={source} is of the family {kind!r}, which "
            + (f"is not for task.kind={run.spec.kind}.\n" if known else "prunekit cannot prune.\n")
            + f"Allowed: {', '.join(supported)}.\nChoose another backbone{' or task' * known}"
            + ("." if known else "; method=wanda prunes the weights of models that generate text.")
        )
    if getattr(config, "is_decoder", False) and not decodes:
        raise ConfigError(
            f"{key}={source} generates text (is_decoder=true): its tokens cannot be removed.\n"
            "Allowed: encoders.\nChoose another model; method=wanda prunes the weights of models that generate text."
        )


def _check_reading(run: RunInputs, key: str, source: Path | str) -> None:
    """Check that a model reads what its tokenizer makes, and texts as long as the task's."""
    config, tokenizer, spec = read_config(source), load_tokenizer(source), run.spec
    check_tokenizer(source, config, tokenizer, has_pairs=spec.text_pair is not None)
    if spec.protects_first and separator_of(tokenizer) is None:
        raise ConfigError(
            f"protect=first_segment, but the tokenizer of {key}={source} puts no token of its own between two texts.\n"
            "Allowed: tokenizers with a separator, as [SEP] or </s>.\nLeave protect out, or choose another model."
        )
    longest = longest_text(config, tokenizer)
    if spec.max_length > longest:
        raise ConfigError(
            f"task.max_length={spec.max_length}, but {key}={source} reads at most {longest} tokens.\n"
            f"Allowed: up to {longest}.\nSet task.max_length={longest} or less."
        )


def _check_teacher(run: RunInputs, key: str, source: Path | str) -> None:
    """Check that a model can be taken as it is: its head and its weights are there."""
    head = HEADS[run.spec.kind]
    if stored_head(source, head) is None:
        raise ConfigError(
            f"{key}={source} has no head for {head.pipeline}, so it answers nothing.\n"
            "Allowed: a model that was fine-tuned on the task.\n"
            f"Give such a model, or backbone.path={source}, which is fine-tuned first."
        )
    _check_given(run, source, head)
    if not (Path(source) / "model.safetensors").is_file():
        raise ConfigError(
            f"{key}={source} holds no model.safetensors.\n"
            "Allowed: a folder with config.json, model.safetensors and tokenizer, as save_pretrained writes it.\n"
            "Load it in transformers and call save_pretrained(folder) on the model and on its tokenizer."
        )
    read_model(head.auto, source)


def _check_given(run: RunInputs, source: Path | str, head: HeadType) -> None:
    """Check that a fine-tuned model has the task's head and classes."""
    check_head(source, head)
    labels = run.spec.labels or getattr(run.data, "label_names", None)
    if head.has_classes and (labels or run.spec.kind.predicts_value):
        check_classes(source, labels, several=head.several)


def _check_same_shape(run: RunInputs, key: str, teacher: Path | str) -> None:
    """Check that the teacher, which is the model that is pruned, has the sizes and the tokens of the backbone."""
    shapes = [Shape.from_config(read_config(source)) for source in (run.backbone, teacher)]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"teacher.path={teacher} has {shapes[1].layers} layers x {shapes[1].hidden}, "
            f"but {key}={run.backbone} has {shapes[0].layers} x {shapes[0].hidden}.\n"
            "Allowed: a teacher that was fine-tuned from the backbone.\n"
            f"Give model={teacher} alone: teacher, backbone and tokenizer are taken from it."
        )
    check_tokenizer(teacher, read_config(teacher), load_tokenizer(run.backbone))
