"""One run, from its configuration to its result. Nothing here imports torch: what is wrong or done is said at once."""

from __future__ import annotations

import copy
import gc
import hashlib
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from prunekit.config import ConfigError, compose, parse_budget, without_idle_goal
from prunekit.data.sources import find_backbone
from prunekit.kinds import kind_of, load
from prunekit.runs import BusyError, RunFolder


def train(cfg: dict[str, Any]) -> int:
    """Trains, evaluates and reports one configuration; returns the exit code, 0 done or 3 budget or goal missed.

    The configuration decides the folder. A finished run is not repeated (unless `force`), an interrupted one goes on.

    Raises:
        ConfigError: something in the configuration cannot work; nothing slow has started then.
    """
    result = run(cfg)
    return int(result["exit_code"])


def run(cfg: dict[str, Any], *, wait: bool = True) -> dict[str, Any]:
    """Like `train`, and returns the result: what result.json holds.

    Raises:
        BusyError: another process runs this or trains its teacher, and `wait` is false.
    """
    kind = kind_of(cfg)
    cfg = canonical(cfg)
    spec = kind.spec(cfg["task"])
    folder = RunFolder.of(cfg)
    if (stored := _stored(folder, cfg)) is not None:
        return stored
    backbone = find_backbone(cfg["backbone"])
    source = kind.source(spec)
    kind.check(cfg, backbone)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"runs_dir={cfg['runs_dir']}: {folder.path} cannot be made ({error.strerror}).\n"
            "Allowed: a folder that can be written.\nGive another runs_dir=..."
        ) from error
    teacher = None if wait else teacher_config(cfg)
    if teacher is not None and (holder := RunFolder.of(teacher).holder()) is not None:
        raise BusyError(f"the teacher in {RunFolder.of(teacher).path} is being trained by {holder}")
    with folder.lock(timeout=None if wait else 0):
        # another process may have finished it while this one waited
        if (stored := _stored(folder, cfg)) is not None:
            return stored
        folder.prepare(cfg, command())
        from prunekit.checkpoint import discard_resume_points

        try:
            result = load(kind.pipeline)(cfg, folder, spec, source, backbone, wait=wait).execute()
        finally:
            gc.collect()  # a trainer and its modules know each other: a sweep's next run needs their memory now
        folder.write_result(result)
        # only now: a kill before the result is written must not cost the training
        discard_resume_points(folder.checkpoints)
    load(kind.show)(result, folder.path, stored=False)
    return result


def command() -> str:
    """The command line, as it can be typed again; of this job alone, when it is one of a sweep."""
    if HydraConfig.initialized():
        return shlex.join(["python", "train.py", *HydraConfig.get().overrides.task])
    return shlex.join(["python", *sys.argv])


def canonical(cfg: dict[str, Any]) -> dict[str, Any]:
    """The configuration that names the run: dense has neither budget nor teacher, own files count by content.

    A budget has one spelling, in which 0.5 and 2.0x are 2x.
    """
    kind = kind_of(cfg)
    cfg = without_idle_goal(kind.named(cfg))
    if (reduction := parse_budget(cfg["budget"])) is not None:
        cfg = cfg | {"budget": f"{reduction:.10g}x"}
    if cfg["method"]["name"] == "dense":
        default = _dense_defaults()
        cfg = cfg | {"budget": None} | {key: copy.deepcopy(default[key]) for key in ("teacher", "budget_tolerance")}
    models = {key: model_digest(cfg[key]["path"]) for key in ("backbone", "teacher") if cfg.get(key, {}).get("path")}
    digests = {"files": kind.digest(kind.spec(cfg["task"])), **models}
    given = {key: digest for key, digest in digests.items() if digest is not None}
    return cfg | {"own": given} if given else cfg


def dense_config(cfg: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the dense run that a pruning run starts from; equal for all that may share it."""
    dense = copy.deepcopy(cfg)
    dense.pop("goal", None)  # the same teacher serves every goal and every budget
    default = copy.deepcopy(_dense_defaults())
    dense["method"] = default["method"]
    dense["trainer"] |= {"epochs": cfg["teacher"]["epochs"], "lr": cfg["teacher"]["lr"], "max_steps": None}
    for block in ("teacher", "bench"):
        dense[block] = default[block] | {"enabled": False} if block == "bench" else default[block]
    # who the test is reported by is no matter of the teacher's; what it is trained on is
    dense["data"] = dense["data"] | {"eval_bands": None}
    if "protect_question" in dense["task"]:
        dense["task"]["protect_question"] = False  # where nothing is pruned it changes nothing
    dense |= {"budget": None, "budget_tolerance": default["budget_tolerance"], "force": False}
    return dense


@cache
def _dense_defaults() -> dict[str, Any]:
    return compose(["method=dense"])[0]


def teacher_config(cfg: dict[str, Any]) -> dict[str, Any] | None:
    """The configuration of the teacher that a run trains or finds; None where it needs none, or has a path to one."""
    if "teacher" not in cfg or cfg["method"]["name"] == "dense" or cfg["teacher"]["path"]:
        return None
    return dense_config(cfg)


def finished(folder: RunFolder) -> dict[str, Any] | None:
    """The result of a run that need not run again, else None.

    Raises:
        ConfigError: a newer prunekit wrote it.
    """
    try:
        result = folder.result()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    # somebody may have removed the model: the run is not done then
    return result if (folder.path / "model" / "config.json").is_file() else None


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
    result = finished(folder)
    if result is not None:
        load(kind_of(cfg).show)(result, folder.path, stored=True)
    return result
