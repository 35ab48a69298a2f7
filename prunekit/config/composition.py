"""Compose and check configurations, and explain what is wrong with them. Imports nothing heavy."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from prunekit.config.budget import has_goal
from prunekit.config.domains import LARGEST, TEXT_OR_LIST
from prunekit.config.errors import ConfigError, first_line, listed, shell_words, shorten, shown
from prunekit.config.keys import Key, declared, options, read_keys, search_dirs, unknown_key
from prunekit.config.search_path import conf_dir, plugin_dirs, prepare
from prunekit.config.validation import validate
from prunekit.config.verbatim import quote_texts, text_of, written_in


def compose(overrides: Sequence[str], config_dir: Path | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the resolved configuration as a plain dict, and the option of each group; does not validate.

    Raises:
        ConfigError: a key or an option is unknown, or something cannot be read.
    """
    overrides = quote_texts(spelled_out(overrides))
    prepare(overrides)
    folder = str(config_dir or conf_dir())
    running = GlobalHydra.instance().hydra  # a job of Hydra's own may be asking
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=folder, job_name="train"):
            composed = hydra.compose("config", overrides=list(overrides), return_hydra_config=True)
        choices = _choices(composed.hydra)
        folders = [Path(folder), *plugin_dirs()]
        cfg = with_default_budget(resolve(composed), overrides)
        cfg = model_before_default(cfg, declared(choices, folders), overrides)
        return with_declared_types(cfg, choices, folders), choices
    except Exception as error:
        explained = explain(error, overrides)
        if explained is None:
            raise
        raise explained from error
    finally:
        GlobalHydra.instance().hydra = running


def spelled_out(overrides: Sequence[str]) -> list[str]:
    """Return what was typed with the keys of loggers in full.

    wandb.enabled=false is logger.wandb.enabled=false, and logger.trackio=true is logger.trackio.enabled=true.
    """
    groups = options()
    taken = {"default", *groups, *read_keys(conf_dir() / "config.yaml")}
    loggers = "|".join(re.escape(name) for name in groups["logger"] if name not in taken)
    written = (re.sub(rf"^([+~]*)((?:{loggers})\.)", r"\1logger.\2", override) for override in overrides)
    return [re.sub(rf"^([+]*logger\.(?:{loggers}))=", r"\1.enabled=", override) for override in written]


def _choices(context: Any) -> dict[str, Any]:
    """The option of each group in Hydra's own part of a configuration; a list where several were typed, as [a,b]."""
    chosen = {str(group): option for group, option in context.runtime.choices.items()}
    for override in _overrides(context):
        group, _, value = override.partition("=")
        if value.startswith("[") and group in options():  # hydra does not record a list of options
            chosen[group] = yaml.safe_load(value)
    return {group: option for group, option in chosen.items() if not group.startswith("hydra/")}


def _overrides(context: Any) -> list[str]:
    """What was typed: no interpolation in it is replaced."""
    return list(map(str, OmegaConf.to_container(context.overrides.task) or []))


def resolve(config: Any) -> dict[str, Any]:
    """Return an OmegaConf mapping as a plain dict without Hydra's own part, every interpolation replaced.

    Raises:
        ConfigError: an interpolation fails, or a value is still to be given.
    """
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        plain = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        explained = explain(error, [])
        assert explained is not None
        raise explained from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def with_default_budget(cfg: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the configuration with the task's default budget, or none with a goal, in place of config.yaml's.

    A budget that `overrides`, or a file chosen by them, sets is kept: validation then reports that there are two, if
    there is a goal too.
    """
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    default = read_keys(conf_dir() / "config.yaml")["budget"].default
    if "budget" in given or shown(cfg.get("budget")) != default:
        return cfg
    return cfg | {"budget": None if has_goal(cfg) else _block(cfg, "task").get("budget", default)}


def _block(cfg: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a block of a configuration that nobody checked yet: empty where there is none."""
    block = cfg.get(name)
    return block if isinstance(block, Mapping) else {}


def model_before_default(cfg: dict[str, Any], keys: Mapping[str, Key], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the configuration without the task's default length where a model is given that has one.

    A length that `overrides`, or a file chosen by them, sets is kept.
    """
    key = keys.get("task.max_length")
    typed = {override.lstrip("+~").partition("=")[0] for override in overrides}
    if not cfg.get("model") or key is None or not key.nullable or key.path in typed:
        return cfg
    if shown(_block(cfg, "task").get("max_length")) != key.default:
        return cfg
    return cfg | {"task": cfg["task"] | {"max_length": None}}


def explain(error: BaseException, overrides: Sequence[str]) -> ConfigError | None:
    """Return an error of Hydra, OmegaConf or the YAML reader as three lines; None for any other error."""
    if isinstance(error, ConfigError):
        return error
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return _unknown_option(group or "--config-name", option, sorted(error.options or ["config"]))
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"{shorten(str(error.override))} cannot be read.\n"
            "Allowed: key=value, group=option, ~key; lists as [1,2].\n"
            f"Quote special characters twice: {_quoted_twice(error.override)}"
        )
    if type(error) is ValueError and str(error).startswith("Exceeds the limit"):
        given = next((text for text in overrides if re.search(r"\d{4000}", text)), "a file")
        return ConfigError(
            f"{shorten(given)} holds a number of more than 4,300 digits.\n"
            "Allowed: numbers that a computer takes.\nCorrect it, or quote it if it is text."
        )
    if isinstance(error, MissingMandatoryValue):
        return ConfigError(
            f"{error.full_key} is not given and has no default.\n"
            f"Its comment in conf/ says what it takes.\nAdd {error.full_key}=..."
        )
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        place = f"{error.problem_mark.name}, line {error.problem_mark.line + 1}"
        return ConfigError(f"{place}: {error.problem}.\nAllowed: YAML.\nCorrect the file; quote special characters.")
    text = str(error)
    if type(error) is ValueError and (match := re.match(r"invalid literal for int\(\) with base 10: '(.*)'", text)):
        wrong = [given for given in overrides if f".{match[1]}=" in f"{given}="]  # omegaconf counts a list's elements
        return ConfigError(
            f"{listed(wrong)}: a list has no key {shorten(match[1])}.\n"
            "Allowed: a list as a whole.\nWrite it as key=[a,b]."
        )
    if text.startswith("Config group override must be"):  # a plain ValueError of hydra's
        groups = [given for given in overrides if given.lstrip("+").partition("=")[0] in options()]
        wrong = [given for given in groups if given.endswith("=null") or not re.search(r"=.*[a-zA-Z_]", given)]
        return ConfigError(
            f"{listed(wrong or groups)}: a group without which nothing runs, or no name of an option.\n"
            "Allowed: the name of an option; null for launcher, sweeps, experiment and debug only.\n"
            "Name one; --help lists them."
        )
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    if match := re.match(r"Error merging override (.*)", text, re.DOTALL):
        name, _, value = match[1].partition("=")
        return ConfigError(
            f"{name}={shorten(value)} is not a block of keys.\nAllowed: values for the keys of {name}.\n"
            f"Set them one by one, as {name}.<key>=<value>."
        )
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_override(match[1].split("@")[0], overrides)
    if text.startswith(("Ambiguous value", "Sweep parameters")):
        return ConfigError(
            f"{first_line(error).removesuffix('.')}.\nAllowed: one value per key, or a list as key=[1,2].\n"
            "Add -m to run one job per value."
        )
    if match := re.search(r"override (\S+) looks like a config group override", text, re.IGNORECASE):
        return ConfigError(
            f"{shorten(match[1])}: there is no group {shorten(match[1].partition('@')[0])}.\n"
            f"Allowed: {', '.join(options())}.\nA key is set without @, as key=value."
        )
    if isinstance(error, OmegaConfBaseException) and getattr(error, "full_key", None):
        return ConfigError(
            f"{error.full_key}: {first_line(error)}.\n"
            "Allowed: a value, or ${key} of a key that there is.\nCorrect the name, or write the value itself."
        )
    if match := re.match(r"Error resolving interpolation '(.*?)'", text):
        wrong = [given for given in overrides if given.endswith(match[1])]
        return ConfigError(
            f"{listed(wrong or [match[1]])}: an option is chosen before keys have values.\n"
            "Allowed: the name of an option.\nWrite the name itself."
        )
    where = f"{error.full_key}: " if getattr(error, "full_key", None) else ""
    lines = [shorten(line.strip(), 160) for line in text.splitlines() if line.strip()]
    return ConfigError(where + "\n".join(lines[:1] if isinstance(error, OmegaConfBaseException) else lines[:3]))


def _unknown_option(group: str, option: str, options: Sequence[str]) -> ConfigError:
    if group in ("hydra/launcher", "hydra/sweeper"):
        extra = option.partition("_")[0]
        return ConfigError(
            f"{group}={shorten(option)} is not installed.\nAllowed: {', '.join(options)}.\n"
            f"pip install 'prunekit[{extra}]'"
        )
    near = difflib.get_close_matches(option, options, n=1)
    advice = f"Did you mean {group}={near[0]}?" if near else f"Choose one, or add {group}/{option}.yaml to conf/."
    allowed = ", ".join(options) or f"nothing yet, {group} is empty"
    return ConfigError(f"{group}={shorten(option)} does not exist.\nAllowed: {allowed}.\n{advice}")


def _unknown_override(path: str, overrides: Sequence[str]) -> ConfigError:
    others = [override for override in overrides if override.lstrip("+~").split("=")[0] != path]
    given = next((override for override in overrides if override not in others), path)
    if len(others) == len(overrides):
        others = []
    try:
        _, choices = compose(others)
    except ConfigError:
        _, choices = compose([])
    if path in choices:  # hydra takes a group without options for a key
        return _unknown_option(path, given.partition("=")[2], [])
    return unknown_key(path, given, declared(choices))


def _quoted_twice(override: str) -> str:
    name, _, value = override.partition("=")
    return shell_words(name, value) if value else "'key=\"a, b\"'."


def with_declared_types(
    cfg: Mapping[str, Any], choices: Mapping[str, Any], folders: Sequence[Path] | None = None
) -> dict[str, Any]:
    """Return the configuration with values of the types that their keys take: 1 and 1.0 name one run.

    A whole number is a float where the key takes a float. Where it takes text, a number or a boolean is the text that
    was written. In a path ~ is the home folder.
    """
    places = search_dirs() if folders is None else list(folders)
    keys = declared(choices, places)

    def convert(value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return {name: convert(entry, f"{path}.{name}" if path else str(name)) for name, entry in value.items()}
        domain = keys[path].domain if path in keys else ""
        if domain.startswith("float") and isinstance(value, int) and not isinstance(value, bool):
            return float(value) if abs(value) <= LARGEST else value
        if domain in ("list of text", TEXT_OR_LIST) and isinstance(value, list):
            return [text_of(item, keys[path], written_in(choices, places)) for item in value]
        if domain in ("text", TEXT_OR_LIST):
            return text_of(value, keys[path], written_in(choices, places))
        return os.path.expanduser(value) if domain == "path" and isinstance(value, str) else value

    return convert(dict(cfg), "")


def configuration(config: Any, context: Any) -> dict[str, Any]:
    """Return what Hydra composed as plain values, checked.

    Raises:
        ConfigError: a key or a value is not allowed.
    """
    choices = _choices(context)
    folders = [Path(source.path) for source in context.runtime.config_sources if source.schema == "file"]
    cfg = with_default_budget(resolve(config), _overrides(context))
    cfg = model_before_default(cfg, declared(choices, folders or [conf_dir()]), _overrides(context))
    cfg = with_declared_types(cfg, choices, folders or [conf_dir()])
    validate(cfg, choices, folders or [conf_dir()])
    return cfg
