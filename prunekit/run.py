"""One run, from its configuration to its result. Nothing here imports torch: what is wrong or done is said at once."""

from __future__ import annotations

import hashlib
import shlex
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from prunekit.config import ConfigError, check_layers
from prunekit.data.sources import backbone_shape, find_backbone, find_task, own_files_digest
from prunekit.data.spec import TaskSpec
from prunekit.runs import RunFolder


def train(cfg: dict[str, Any]) -> int:
    """Trains, evaluates and reports one configuration; returns the exit code, 0 done or 3 budget missed.

    The configuration decides the folder. A finished run is not repeated (unless `force`), an interrupted one goes on.

    Raises:
        ConfigError: something in the configuration cannot work; nothing slow has started then.
    """
    result = run(cfg)
    return int(result["exit_code"])


def run(cfg: dict[str, Any]) -> dict[str, Any]:
    """Like `train`, and returns the result: what result.json holds."""
    cfg = canonical(cfg)
    spec = TaskSpec.from_config(cfg["task"])
    folder = RunFolder.of(cfg)
    if (stored := _stored(folder, cfg)) is not None:
        return stored
    backbone = find_backbone(cfg["backbone"])
    source = find_task(spec)
    check_layers(cfg, backbone_shape(backbone)["num_hidden_layers"], cfg["backbone"]["name"])
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"runs_dir={cfg['runs_dir']}: {folder.path} cannot be made ({error.strerror}).\n"
            "Allowed: a folder that can be written.\nGive another runs_dir=..."
        ) from error
    with folder.lock():
        # another process may have finished it while this one waited
        if (stored := _stored(folder, cfg)) is not None:
            return stored
        folder.prepare(cfg, command())
        from prunekit.checkpoint import discard_resume_points
        from prunekit.pipeline import Pipeline

        result = Pipeline(cfg, folder, spec, source, backbone).execute()
        folder.write_result(result)
        # only now: a kill before the result is written must not cost the training
        discard_resume_points(folder.checkpoints)
    _show(result, folder, stored=False)
    return result


def command() -> str:
    """The command line, as it can be typed again; of this job alone, when it is one of a sweep."""
    if HydraConfig.initialized():
        return shlex.join(["python", "train.py", *HydraConfig.get().overrides.task])
    return shlex.join(["python", *sys.argv])


def canonical(cfg: dict[str, Any]) -> dict[str, Any]:
    """The configuration that names the run: a dense run has no budget, own files and models count with their content."""
    if cfg["method"]["name"] == "dense":
        cfg = cfg | {"budget": None}
    models = {key: model_digest(cfg[key]["path"]) for key in ("backbone", "teacher") if cfg[key].get("path")}
    digests = {"files": own_files_digest(TaskSpec.from_config(cfg["task"])), **models}
    given = {key: digest for key, digest in digests.items() if digest is not None}
    return cfg | {"own": given} if given else cfg


def model_digest(folder: str) -> str | None:
    """Hex digest of the weights and configuration in a folder; None where there is neither."""
    digest = hashlib.sha256()
    files = [path for path in sorted(Path(folder).glob("*")) if path.suffix in (".safetensors", ".bin", ".json")]
    for path in files:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest() if files else None


def _stored(folder: RunFolder, cfg: dict[str, Any]) -> dict[str, Any] | None:
    if cfg["force"]:
        return None
    try:
        result = folder.result()
    except ValueError as error:  # a newer prunekit wrote it
        raise ConfigError(str(error)) from error
    if result is not None and not (folder.path / "model" / "config.json").is_file():
        return None  # somebody removed the model: the run is not done
    if result is not None:
        _show(result, folder, stored=True)
    return result


def _show(result: dict[str, Any], folder: RunFolder, *, stored: bool) -> None:
    from prunekit.report.console import print_result

    print_result(result, folder.path, stored=stored)
