"""Check a composed configuration before anything slow starts."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunekit.config.budget import GOAL, parse_budget
from prunekit.config.domains import TEXT_OR_LIST
from prunekit.config.errors import ConfigError, shell_words, shorten, shown, typed
from prunekit.config.identity import DENSE, is_dense
from prunekit.config.keys import Key, all_keys, declared, keys_of, options, search_dirs, unknown_key, walk

GOAL_TASKS = ("classification", "regression", "multilabel")


def validate(cfg: Mapping[str, Any], choices: Mapping[str, Any], folders: Sequence[Path] | None = None) -> None:
    """Check every key and value against the comments of the files that declare them.

    `folders` are those that the configuration was composed from; None = prunekit's and the plug-ins'.

    Raises:
        ConfigError: a key is unknown or missing, a value is not allowed, or two keys contradict each other.
    """
    keys = declared(choices, folders)
    given = dict(walk(cfg))
    for path, value in given.items():
        if path not in keys:
            raise unknown_key(path, f"{path}={shown(value)}", keys)
        if keys[path].domain == "budget":
            parse_budget(value)
        wrong = keys[path].complaint(value)
        if wrong is not None:
            raise _wrong_value(keys[path], value, wrong)
    for path, key in keys.items():
        if path not in given:
            advice = f"Leave ~{path} out." if key.domain == "block" else f"Give {path}=..., as {shorten(key.default)}."
            raise ConfigError(f"{path} is missing.\nAllowed: {key.allowed}.\n{advice}")
    for group in ("method", "task", "backbone", "trainer", "logger"):
        if group not in given:
            raise ConfigError(f"there is no {group}.\nAllowed: an option of conf/{group}/.\nGive {group}=...")
    _check_goal(cfg, given)
    _check_knobs(given, keys)
    _check_bands(given)


def _wrong_value(key: Key, value: Any, wrong: str) -> ConfigError:
    choices = key.domain.removeprefix("one of ").split("|")
    near = difflib.get_close_matches(shown(value), choices, n=1) if key.domain.startswith("one of ") else []
    advice = f"Leave it out for the default, {key.default}."
    if near:
        advice = f"Did you mean {key.path}={near[0]}?"
    elif key.domain == "block":
        advice = f"Set its keys one by one, as {key.path}.<key>=<value>."
    elif key.domain in ("text", TEXT_OR_LIST):
        advice = f"In a file, write it in quotes; in a shell: {shell_words(key.path, typed(value))}"
    elif key.domain == "list of text" and not isinstance(value, list):
        advice = f"In a shell: {shlex.quote(f'{key.path}=[{shown(value)}]')}"
    elif key.domain == "list of text":
        advice = 'In a file, write its entries in quotes, as ["no", "yes"].'
    return ConfigError(f"{key.path}={shown(value)} {wrong}.\nAllowed: {key.allowed}.\n{advice}")


def _check_goal(cfg: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """A goal needs a method that prunes tokens, a task that the packed engine serves, and no budget besides it."""
    if given.get(GOAL) is None:
        return
    goal, method, kind = (
        f"{GOAL}={shown(given[GOAL])}",
        given["method.name"],
        given.get("task.kind") or "classification",
    )
    if given["budget"] is not None:
        raise ConfigError(
            f"budget={shown(given['budget'])} and {goal} both say how much to prune.\n"
            f"Allowed: one of budget, {GOAL}.\nAdd budget=null to go by {GOAL}, or leave that out."
        )
    if is_dense(cfg["method"]["name"]) or given.get("method.prunes", "tokens") != "tokens":
        raise ConfigError(
            f"{goal}: method={method} prunes no tokens between layers, from whose times a budget is derived.\n"
            f"Allowed: a method that does: {', '.join(_token_methods())}.\nGive one of these, or leave the goal out."
        )
    if kind not in GOAL_TASKS:
        raise ConfigError(
            f"{goal}: task={given['task.name']} is of kind {kind}, whose latency is not measured.\n"
            f"Allowed: tasks of kind {' and '.join(GOAL_TASKS)}.\nGive a budget instead, as budget=2x."
        )


def _token_methods() -> list[str]:
    """The names of the methods that prune tokens, including those of plug-ins."""
    places = search_dirs()
    kinds = {name: keys_of("method", name, places).get("method.prunes") for name in options()["method"]}
    return [name for name, key in kinds.items() if name != DENSE and (key is None or key.default == "tokens")]


def _check_knobs(given: Mapping[str, Any], keys: Mapping[str, Key]) -> None:
    knobs = [key.path for key in keys.values() if key.knob]
    turned = [path for path in ("budget", GOAL, *knobs) if given.get(path) is not None]
    if knobs and len(turned) != 1:
        both = " and ".join(f"{path}={shown(given[path])}" for path in turned)
        raise ConfigError(
            (f"{both} both say how much to prune.\n" if turned else "nothing says how much to prune.\n")
            + f"Allowed: one of budget, {', '.join(knobs)}, {GOAL}.\n"
            + _only_one(turned, knobs)
        )


def _only_one(turned: Sequence[str], knobs: Sequence[str]) -> str:
    if GOAL in turned:
        return f"Leave {' or '.join(turned)} out."
    return f"Add budget=null to go by {turned[-1]}." if turned else f"Give budget=3x, or {knobs[0]}=..."


def _check_bands(given: Mapping[str, Any]) -> None:
    longest = given.get("task.max_length")
    for path in ("data.train_band", "data.eval_bands"):
        tokens = [end for end in given.get(path) or [] if isinstance(end, int)]
        if longest is None or not tokens:
            continue
        beyond = max(tokens) > longest + 1 or given[path][0] == longest + 1
        if beyond:
            raise ConfigError(
                f"{path}={shown(given[path])} reaches {max(tokens)} tokens, but task.max_length={longest} cuts there.\n"
                f"Allowed: from 0..{longest} to below 1..{longest + 1}, which is max.\n"
                "Move the band, or raise task.max_length."
            )


def check_layers(cfg: Mapping[str, Any], n_layers: int, name: str) -> None:
    """Check that the backbone `name` has every layer that a key of layer numbers names.

    Raises:
        ConfigError: it has only `n_layers` layers, too few for one.
    """
    given = dict(walk(cfg))
    for key in all_keys().values():
        value = given.get(key.path)
        if key.domain.startswith("layers ") and value and max(value) >= n_layers:
            raise ConfigError(
                f"{key.path}={shown(value)} names layer {max(value)}, but {name} has layers 0..{n_layers - 1}.\n"
                f"Allowed: {key.domain.removeprefix('layers ')}{n_layers - 1}.\n"
                f"Set {key.path} to a subset, or choose another backbone."
            )
