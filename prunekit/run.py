"""One run, from its configuration to its result. Nothing here imports torch: what is wrong or done is said at once."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from hydra.core.hydra_config import HydraConfig

from prunekit.config import check_layers
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
    """The configuration that names the run: a dense run has no budget, and an own file counts with its content."""
    if cfg["method"]["name"] == "dense":
        cfg = cfg | {"budget": None}
    digest = own_files_digest(TaskSpec.from_config(cfg["task"]))
    return cfg if digest is None else cfg | {"own_files": digest}


def _stored(folder: RunFolder, cfg: dict[str, Any]) -> dict[str, Any] | None:
    if cfg["force"]:
        return None
    result = folder.result()
    if result is not None:
        _show(result, folder, stored=True)
    return result


def _show(result: dict[str, Any], folder: RunFolder, *, stored: bool) -> None:
    from prunekit.report.console import print_result

    print_result(result, folder.path, stored=stored)
