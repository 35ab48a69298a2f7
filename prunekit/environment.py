"""What a run ran on: package versions, git state, hardware. Found without importing torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import shlex
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

PACKAGES = (
    "prunekit",
    "torch",
    "transformers",
    "lightning",
    "datasets",
    "tokenizers",
    "safetensors",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
    "numpy",
)


def environment() -> dict[str, Any]:
    """Entries of the manifest that the machine and the installation decide."""
    return {
        "versions": versions(),
        "torch_build": torch_build(),
        "git": git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu": cpu_model(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ},
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that numbers depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def torch_build() -> dict[str, str | None]:
    """What torch was built for (cuda, hip: a version or None) and from which commit."""
    spec = importlib.util.find_spec("torch")
    path = Path(spec.origin).with_name("version.py") if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        return {}
    # read, not imported: importing torch takes seconds
    text = path.read_text()
    found = {}
    for name in ("cuda", "hip", "git_version"):
        match = re.search(rf"^{name}(?:\s*:[^=]*)?\s*=\s*(?:'([^']*)'|None)", text, re.MULTILINE)
        found[name] = match.group(1) if match else None
    return found


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Commit of the checkout that holds prunekit, and whether tracked files differ from it; None outside of one."""
    folder = folder or Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # installed inside somebody else's checkout is not being part of it
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}


def cpu_model() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if match:
            return match.group(1)
    return platform.processor() or platform.machine()


def load_average() -> list[float] | None:
    """Of the last 1, 5 and 15 minutes; None where the system does not say."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (OSError, AttributeError):
        return None


def command() -> str:
    """The command line, as it can be typed again; of this job alone, when it is one of a sweep."""
    if HydraConfig.initialized():
        return shlex.join(["python", "train.py", *HydraConfig.get().overrides.task])
    return shlex.join(["python", *sys.argv])


def forget_peak_memory() -> None:
    """Reset the peak that `peak_memory_mib` returns, as the jobs of a sweep share a process; a no-op outside Linux."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> float:
    """Return the largest resident memory of the process in MiB, since `forget_peak_memory` or else since its start."""
    with suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) / 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20
