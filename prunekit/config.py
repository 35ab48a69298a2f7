"""Composing, checking and naming configurations; imports neither torch nor anything as slow."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from prunekit.schema import ConfigError, Key, parse_budget, read_keys, shown

__all__ = [
    "ConfigError",
    "amount_label",
    "budget_label",
    "check_layers",
    "compose",
    "conf_dir",
    "config_hash",
    "explain",
    "goal_before_default",
    "has_goal",
    "machine_keys",
    "parse_budget",
    "prepare",
    "resolve",
    "sweeps_dir",
    "typed",
    "validate",
    "without_idle_goal",
]

GOAL = "goal.latency_ms"
GOAL_TASKS = ("classification", "regression")
PLUGINS = "prunekit.plugins"  # the entry-point group: a package with a folder conf/, or an attribute conf_dir


# -- where configurations lie ------------------------------------------------------------------------


def conf_dir() -> Path:
    """The folder of config.yaml and its groups: inside an installed wheel, else beside the package."""
    return _shipped("conf")


def sweeps_dir() -> Path:
    """The folder of the published grids, which is the group `sweeps`."""
    return _shipped("sweeps")


def _shipped(name: str) -> Path:
    inside = Path(__file__).parent / name
    return inside if inside.is_dir() else Path(__file__).parents[1] / name


def plugin_dirs() -> list[Path]:
    """The conf folders of installed plug-ins, by name. Raises ConfigError for a plug-in without one."""
    return [_plugin_dir(point) for point in sorted(entry_points(group=PLUGINS), key=lambda point: point.name)]


def _plugin_dir(point: EntryPoint) -> Path:
    # looked for beside the module first: importing a method imports torch
    try:
        spec = importlib.util.find_spec(point.module)
    except ImportError:
        spec = None
    origin = spec.origin if spec is not None else None
    places = [Path(origin).parent / "conf"] if origin else []
    if not any(place.is_dir() for place in places) and spec is not None:
        named = getattr(point.load(), "conf_dir", None)
        places = [Path(named() if callable(named) else named)] if named else places
    for place in places:
        if place.is_dir():
            return place
    raise ConfigError(
        f"the plug-in {point.name!r} ({point.value}) has no configuration.\n"
        f"Allowed: a package with a folder conf/, or with a conf_dir, under the entry-point group {PLUGINS}.\n"
        "Repair or uninstall the package that declares it."
    )


class PluginConfigs(SearchPathPlugin):
    """Puts the conf folders of plug-ins behind prunekit's own on Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends the folders."""
        for folder in plugin_dirs():
            search_path.append("prunekit plug-in", f"file://{folder}")


def prepare(overrides: Sequence[str] = ()) -> None:
    """Tells Hydra about plug-ins and about the group `sweeps`, which lies outside conf/; safe to call again.

    Of the files of sweeps only those that `overrides` name are read: Hydra copies all it holds more than once.
    """
    Plugins.instance().register(PluginConfigs)
    store = ConfigStore.instance()
    known = store.repo.get("sweeps", {})
    given = [value for key, _, value in (text.partition("=") for text in overrides) if key.lstrip("+") == "sweeps"]
    named = {name.strip() for value in given for name in value.split(",")}
    for file in sorted(sweeps_dir().glob("*.yaml")):
        if file.stem in named or f"{file.stem}.yaml" not in known:
            node: Any = OmegaConf.load(file) if file.stem in named else {}
            store.store(group="sweeps", name=file.stem, node=node, package="_global_", provider=str(file))


# -- composing ---------------------------------------------------------------------------------------


def compose(overrides: Sequence[str], config_dir: Path | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The resolved configuration as a plain dict, and which option each group took; not validated.

    Raises ConfigError for an unknown key or option and for what cannot be read.
    """
    prepare(overrides)
    folder = str(config_dir or conf_dir())
    running = GlobalHydra.instance().hydra  # a job of Hydra's own may be asking
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=folder, job_name="train"):
            composed = hydra.compose("config", overrides=list(overrides), return_hydra_config=True)
        chosen = OmegaConf.to_container(composed.hydra.runtime.choices)
        assert isinstance(chosen, dict)
        choices = {str(k): v for k, v in chosen.items() if not str(k).startswith("hydra/")}
        cfg = goal_before_default(resolve(composed), overrides)
        return typed(cfg, choices, [Path(folder), *plugin_dirs()]), choices
    except Exception as error:
        explained = explain(error, overrides)
        if explained is None:
            raise
        raise explained from error
    finally:
        GlobalHydra.instance().hydra = running


def resolve(config: Any) -> dict[str, Any]:
    """An OmegaConf mapping as a plain dict without Hydra's own part, every interpolation replaced.

    Raises ConfigError for an interpolation that fails and for a value that is still to be given.
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


def goal_before_default(cfg: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration without the budget that is config.yaml's default, where a goal says how much to prune.

    A budget that `overrides` or a file of their choosing names stays: validation then says that there are two.
    """
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    default = read_keys(conf_dir() / "config.yaml")["budget"].default
    if not has_goal(cfg) or "budget" in given or shown(cfg.get("budget")) != default:
        return cfg
    return cfg | {"budget": None}


def has_goal(cfg: Mapping[str, Any]) -> bool:
    """Whether a latency is asked for in place of a budget."""
    return (cfg.get("goal") or {}).get("latency_ms") is not None


def without_idle_goal(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the block `goal` where no goal is set: its other keys mean nothing then."""
    return {key: value for key, value in cfg.items() if key != "goal" or has_goal(cfg)}


def explain(error: BaseException, overrides: Sequence[str]) -> ConfigError | None:
    """What Hydra, OmegaConf or the YAML reader complains about, in three lines; None for any other error."""
    if isinstance(error, ConfigError):
        return error
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return _unknown_option(group or "--config-name", option, sorted(error.options or ["config"]))
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"{error.override} cannot be read.\n"
            "Allowed: key=value, group=option, ~key; lists as [1,2].\n"
            "Quote special characters twice: 'key=\"a, b\"'."
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
    if text.startswith("Config group override must be"):  # a plain ValueError of hydra's
        return ConfigError(
            f"{', '.join(item for item in overrides if item.endswith('=null'))}: a group without which nothing runs.\n"
            "Allowed: null for launcher, sweeps, experiment and debug only.\nName an option; --help lists them."
        )
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_override(match[1].split("@")[0], overrides)
    if text.startswith(("Ambiguous value", "Sweep parameters")):
        return ConfigError(
            f"{text.splitlines()[0]}.\nAllowed: one value per key, or a list as key=[1,2].\n"
            "Add -m to run one job per value."
        )
    where = f"{error.full_key}: " if getattr(error, "full_key", None) else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return ConfigError(where + "\n".join(lines[:1] if isinstance(error, OmegaConfBaseException) else lines[:3]))


def _unknown_option(group: str, option: str, options: Sequence[str]) -> ConfigError:
    if group in ("hydra/launcher", "hydra/sweeper"):
        extra = option.partition("_")[0]
        return ConfigError(
            f"{group}={option} is not installed.\nAllowed: {', '.join(options)}.\npip install 'prunekit[{extra}]'"
        )
    near = difflib.get_close_matches(option, options, n=1)
    advice = f"Did you mean {group}={near[0]}?" if near else f"Choose one, or add {group}/{option}.yaml to conf/."
    allowed = ", ".join(options) or f"nothing yet, {group} is empty"
    return ConfigError(f"{group}={option} does not exist.\nAllowed: {allowed}.\n{advice}")


def _unknown_override(path: str, overrides: Sequence[str]) -> ConfigError:
    others = [override for override in overrides if override.lstrip("+~").split("=")[0] != path]
    given = next((override for override in overrides if override not in others), path)
    if len(others) == len(overrides):
        others = []
    try:
        _, choices = compose(others)
    except ConfigError:
        _, choices = compose([])
    if path in choices:  # hydra takes a group without any option for a key
        return _unknown_option(path, given.partition("=")[2], [])
    return _unknown_key(path, given, declared(choices))


def _unknown_key(path: str, given: str, keys: Mapping[str, Key]) -> ConfigError:
    parent, _, name = path.rpartition(".")
    elsewhere = [known for known in keys if known.rpartition(".")[2] == name]
    near = elsewhere or difflib.get_close_matches(path, keys, n=1, cutoff=0.7)
    beside = [known.rpartition(".")[2] for known in keys if known.rpartition(".")[0] == parent]
    allowed = f"{', '.join(beside)}{f' in {parent}' * bool(parent)}" if beside else f"{parent} is not a block"
    advice = f"Did you mean {' or '.join(near[:3])}?" if near else "python train.py --cfg job prints every key."
    return ConfigError(f"{given}: there is no key {path}.\nAllowed: {allowed}.\n{advice}")


def typed(cfg: Mapping[str, Any], choices: Mapping[str, Any], folders: Sequence[Path] | None = None) -> dict[str, Any]:
    """The configuration with whole numbers as floats where their key takes a float: 1 and 1.0 name one run."""
    keys = declared(choices, folders)

    def convert(value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return {name: convert(entry, f"{path}.{name}" if path else str(name)) for name, entry in value.items()}
        whole = isinstance(value, int) and not isinstance(value, bool)
        return float(value) if whole and path in keys and keys[path].domain.startswith("float") else value

    return convert(dict(cfg), "")


# -- checking ----------------------------------------------------------------------------------------


def declared(choices: Mapping[str, Any], folders: Sequence[Path] | None = None) -> dict[str, Key]:
    """Every key that the chosen files declare, by dotted path."""
    places = search_dirs() if folders is None else folders
    keys: dict[str, Key] = {}
    for folder in places:
        if (folder / "config.yaml").is_file():
            keys = read_keys(folder / "config.yaml") | keys
    for group, option in choices.items():
        if option is None or not isinstance(option, str):
            continue
        found = _inherited(places, group, option)
        if any(key.path.startswith(f"{group}.") for key in found.values()):
            keys[group] = Key(group, option, "block", False, False, False, "", next(iter(found.values())).file)
        keys |= found
    return keys


def search_dirs() -> list[Path]:
    """Where configurations are looked for, first come first served."""
    return [conf_dir(), *plugin_dirs()]


def options() -> dict[str, list[str]]:
    """The options of every group, by its name: own ones, those of plug-ins, and the published grids.

    Read from the folders, because Hydra copies all it holds for each group that it is asked for.
    """
    found: dict[str, set[str]] = {"sweeps": {file.stem for file in sweeps_dir().glob("*.yaml")}}
    for place in search_dirs():
        for file in place.glob("*/*.yaml"):
            found.setdefault(file.parent.name, set()).add(file.stem)
    return {group: sorted(found[group]) for group in sorted(found)}


def _inherited(places: Sequence[Path], group: str, option: str) -> dict[str, Key]:
    """Keys of an option and of the options of its group that it builds on."""
    files = [place / group / f"{option}.yaml" for place in places]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return {}
    content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    keys: dict[str, Key] = {}
    for parent in content.get("defaults", []):
        if isinstance(parent, str) and parent != "_self_":
            keys |= _inherited(places, group, parent)
    return keys | read_keys(file, prefix=f"{group.replace('/', '.')}.")


def validate(cfg: Mapping[str, Any], choices: Mapping[str, Any], folders: Sequence[Path] | None = None) -> None:
    """Checks every key and value against the comments of the files they come from; raises ConfigError.

    `folders` are where configurations were looked for; None = prunekit's own and the plug-ins'.
    """
    keys = declared(choices, folders)
    given = dict(_walk(cfg))
    for path, value in given.items():
        if path not in keys:
            raise _unknown_key(path, f"{path}={shown(value)}", keys)
        if keys[path].domain == "budget":
            parse_budget(value)
        wrong = keys[path].complaint(value)
        if wrong is not None:
            raise _wrong_value(keys[path], value, wrong)
    for path, key in keys.items():
        if path not in given:
            raise ConfigError(f"{path} is missing.\nAllowed: {key.allowed}.\nGive {path}=..., as {key.default}.")
    for group in ("method", "task", "backbone", "trainer", "logger"):
        if group not in given:
            raise ConfigError(f"there is no {group}.\nAllowed: an option of conf/{group}/.\nGive {group}=...")
    _check_goal(given)
    _check_knobs(given, keys)
    _check_bands(given)


def _walk(cfg: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in cfg.items():
        yield f"{prefix}{name}", value
        if isinstance(value, dict):
            yield from _walk(value, f"{prefix}{name}.")


def _wrong_value(key: Key, value: Any, wrong: str) -> ConfigError:
    choices = key.domain.removeprefix("one of ").split("|")
    near = difflib.get_close_matches(shown(value), choices, n=1) if key.domain.startswith("one of ") else []
    advice = f"Leave it out for the default, {key.default}."
    if near:
        advice = f"Did you mean {key.path}={near[0]}?"
    elif key.domain == "block":
        advice = f"Set its keys one by one, as {key.path}.<key>=<value>."
    return ConfigError(f"{key.path}={shown(value)} {wrong}.\nAllowed: {key.allowed}.\n{advice}")


def _check_goal(given: Mapping[str, Any]) -> None:
    """A goal needs a method that removes tokens, a task that the packed engine serves, and no budget beside it."""
    if given.get(GOAL) is None:
        return
    goal, method, kind = f"{GOAL}={shown(given[GOAL])}", given["method.name"], given.get("task.kind", "classification")
    if given["budget"] is not None:
        raise ConfigError(
            f"budget={shown(given['budget'])} and {goal} both say how much to prune.\n"
            f"Allowed: one of budget, {GOAL}.\nAdd budget=null to go by {GOAL}, or leave that out."
        )
    if method == "dense" or given.get("method.prunes", "tokens") != "tokens":
        raise ConfigError(
            f"{goal}: method={method} removes no tokens, so that it gets nothing faster.\n"
            "Allowed: a method that does, as topk, top or ltp.\nGive method=topk, or leave the goal out."
        )
    if kind not in GOAL_TASKS:
        raise ConfigError(
            f"{goal}: task={given['task.name']} is of kind {kind}, whose latency is not measured.\n"
            f"Allowed: tasks of kind {' and '.join(GOAL_TASKS)}.\nGive a budget instead, as budget=2x."
        )


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
    """Raises ConfigError where a key of layer numbers names one that the backbone `name` of `n_layers` layers lacks."""
    given = dict(_walk(cfg))
    for key in _everywhere().values():
        value = given.get(key.path)
        if key.domain.startswith("layers ") and value and max(value) >= n_layers:
            raise ConfigError(
                f"{key.path}={shown(value)} names layer {max(value)}, but {name} has layers 0..{n_layers - 1}.\n"
                f"Allowed: {key.domain.removeprefix('layers ')}{n_layers - 1}.\n"
                f"Set {key.path} to a subset, or choose another backbone."
            )


# -- naming ------------------------------------------------------------------------------------------


def budget_label(value: Any) -> str:
    """The budget as a folder name: "3x", "dense" where nothing is to go, "own" where the method's knob decides."""
    reduction = parse_budget(value)
    if reduction is None:
        return "own"
    return "dense" if reduction == 1 else f"{reduction:.4g}x"


def amount_label(cfg: Mapping[str, Any]) -> str:
    """How much is pruned, as a folder name: the budget, or the goal as "12ms"."""
    return f"{cfg['goal']['latency_ms']:g}ms" if has_goal(cfg) else budget_label(cfg["budget"])


def config_hash(cfg: Mapping[str, Any]) -> str:
    """Eight hex digits that name a configuration, whatever the order of its keys and the machine it runs on."""
    machine = machine_keys()
    cfg = without_idle_goal(cfg)
    flat = {path: value for path, value in _walk(cfg) if path not in machine and not isinstance(value, dict)}
    text = json.dumps(flat, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def machine_keys() -> set[str]:
    """Dotted paths of the keys that cannot change a result."""
    return {key.path for key in _everywhere().values() if key.machine}


def _everywhere() -> dict[str, Key]:
    """The keys of every file of every group, chosen or not."""
    return _all_keys(tuple(search_dirs()))


@cache
def _all_keys(folders: tuple[Path, ...]) -> dict[str, Key]:
    keys: dict[str, Key] = {}
    for folder in reversed(folders):
        for file in sorted(folder.rglob("*.yaml")):
            group = file.parent.relative_to(folder).parts
            keys |= read_keys(file, prefix="".join(f"{part}." for part in group))
    return keys
