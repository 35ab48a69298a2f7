"""Which configuration is hashed: without what has no effect, with files by content; and that of the teacher."""

from __future__ import annotations

import copy
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from prunekit.config.budget import parse_budget, without_idle_goal
from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.config.identity import DENSE, FILES, OWN, is_dense, with_absolute_paths
from prunekit.files import known_sha256
from prunekit.models.given import has_no_labels, with_settings_of
from prunekit.models.reranker import is_reranker
from prunekit.models.sentence_folder import head_files
from prunekit.models.sources import SOURCES, find_model, is_hub_id, name_of_model
from prunekit.runs.kinds import kind_of


def canonical(cfg: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration that names the run: without what has no effect, and with the user's files by content.

    A dense run has neither a budget nor a teacher. A budget has one spelling: 0.5 and 2.0x are 2x.
    """
    if cfg["task"].get("dataset") is not None:
        from prunekit.data.guessing import complete_task  # of one task

        cache = cfg["data"]["cache_dir"]
        cfg = cfg | {"task": complete_task(cfg["task"], None if cache is None else Path(cache))}
    cfg = with_protection(with_given_model(cfg))
    kind = kind_of(cfg)
    cfg = without_idle_goal(kind.without_idle_keys(cfg))
    if (reduction := parse_budget(cfg["budget"])) is not None:
        cfg = cfg | {"budget": f"{reduction:.10g}x"}
    if is_dense(cfg["method"]["name"]):
        default = _dense_defaults()
        cfg = cfg | {"budget": None} | {key: copy.deepcopy(default[key]) for key in ("teacher", "budget_tolerance")}
    models = {key: model_digest(cfg[key]["path"]) for key in ("backbone", "teacher") if cfg.get(key, {}).get("path")}
    if cfg.get("model"):
        models["model"] = model_digest(find_model(cfg["model"]), with_head=True)
    digests = {FILES: kind.digest(kind.spec(cfg)), **models}
    given = {key: digest for key, digest in digests.items() if digest is not None}
    return with_absolute_paths(cfg | {OWN: given}) if given else cfg


def with_given_model(cfg: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with what follows from `model`: the backbone's name, and what the task leaves open.

    Raises:
        ConfigError: it is no model, or another key names one too.
    """
    if not cfg.get("model"):
        if has_no_labels(cfg["task"]):
            raise ConfigError(
                "task.label=null, but there is no model whose answers could be learned.\n"
                "Allowed: the column of the labels; null with model=<a fine-tuned folder or hub id>.\n"
                "Give model=./my_model, or task.label=<column>."
            )
        return cfg
    for block in ("backbone", "teacher"):
        if path := cfg.get(block, {}).get("path"):
            raise ConfigError(
                f"model={cfg['model']} and {block}.path={path} both name a model.\n"
                "Allowed: model alone, which is teacher and backbone; or teacher.path and backbone.path.\n"
                f"Leave {block}.path out."
            )
    folder = find_model(cfg["model"])
    is_on_hub = is_hub_id(cfg["model"])
    kept = {key: value for key, value in cfg["backbone"].items() if key not in SOURCES}
    backbone = kept | {"name": name_of_model(cfg["model"], folder)} | ({"hub": cfg["model"]} if is_on_hub else {})
    given = {"model": cfg["model"] if is_on_hub else str(folder.resolve()), "backbone": backbone}
    teacher = {"teacher": copy.deepcopy(_dense_defaults()["teacher"])} if "teacher" in cfg else {}
    return cfg | given | teacher | {"task": with_settings_of(folder, cfg["task"])}


def with_protection(cfg: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with `protect` as it has an effect: null where nothing is protected, besides a reranker.

    A given reranker protects the first of two texts unless the configuration says otherwise.
    """
    if "protect" not in cfg:
        return cfg
    ranks = bool(cfg.get("model")) and bool(cfg["task"].get("text_pair")) and is_reranker(find_model(cfg["model"]))
    if cfg["protect"] is None and ranks:
        return cfg | {"protect": "first_segment"}
    return cfg | {"protect": None} if cfg["protect"] == "none" and not ranks else cfg


def dense_config(cfg: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the dense run that a pruning run starts from; the same for all that may share it."""
    dense = copy.deepcopy(cfg)
    dense.pop("goal", None)  # the same teacher serves every goal and every budget
    default = copy.deepcopy(_dense_defaults())
    dense["method"] = default["method"]
    dense["trainer"] |= {"epochs": cfg["teacher"]["epochs"], "lr": cfg["teacher"]["lr"], "max_steps": None}
    for block in ("teacher", "bench"):
        dense[block] = default[block] | {"enabled": False} if block == "bench" else default[block]
    # the bands that the test is reported for do not change the teacher, unlike those that it is trained on
    dense["data"] = dense["data"] | {"eval_bands": None}
    if "protect_question" in dense["task"]:
        dense["task"]["protect_question"] = False  # has no effect where nothing is pruned
    if "protect" in dense:
        dense["protect"] = None  # as above
    if "loss" in dense:
        dense["loss"] = None  # a teacher learns from labels
    dense |= {"budget": None, "budget_tolerance": default["budget_tolerance"], "force": False}
    return dense


@cache
def _dense_defaults() -> dict[str, Any]:
    return compose([f"method={DENSE}"])[0]


def teacher_config(cfg: dict[str, Any]) -> dict[str, Any] | None:
    """Return the configuration of the teacher that a run trains or reuses; None if it has none, or was given one."""
    if "teacher" not in cfg or is_dense(cfg["method"]["name"]) or cfg["teacher"]["path"] or cfg.get("model"):
        return None
    return dense_config(cfg)


def model_digest(folder: str | Path, *, with_head: bool = False) -> str | None:
    """Return the hex digest of the weights and configuration in a folder; None where there is neither.

    `with_head` counts the modules of sentence-transformers, too, which have folders of their own.
    """
    digest = hashlib.sha256()
    files = [path for path in sorted(Path(folder).glob("*")) if path.suffix in (".safetensors", ".bin", ".json")]
    for path in [*files, *(head_files(folder) if with_head else [])]:
        digest.update(bytes.fromhex(known_sha256(path)))
    return digest.hexdigest() if files else None
