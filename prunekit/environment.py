"""What a run ran on: package versions, git state, hardware, memory. Read without importing torch."""

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
    """Return the entries of a run's manifest that describe the machine and the installation."""
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
    """Return the installed versions of the packages that numbers depend on."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def torch_build() -> dict[str, str | None]:
    """Return what torch was built for (cuda, hip: a version or None) and from which commit."""
    spec = importlib.util.find_spec("torch")
    path = Path(spec.origin).with_name("version.py") if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        return {}
    # read, not imported: importing torch takes seconds
    text = path.read_text()
    build = {}
    for name in ("cuda", "hip", "git_version"):
        match = re.search(rf"^{name}(?:\s*:[^=]*)?\s*=\s*(?:'([^']*)'|None)", text, re.MULTILINE)
        build[name] = match.group(1) if match else None
    return build


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Return the commit of prunekit's checkout and whether tracked files differ from it; None outside a checkout."""
    folder = folder or Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # a copy installed inside another project's checkout is not part of it
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}


def cpu_model() -> str:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if match:
            return match.group(1)
    return platform.processor() or platform.machine()


def load_average() -> list[float] | None:
    """Return the load of the last 1, 5 and 15 minutes; None where the system does not report it."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (OSError, AttributeError):
        return None


def command() -> str:
    """Return the command line as it can be typed again; in a sweep, that of this job alone."""
    if HydraConfig.initialized():
        return shlex.join(["python", "train.py", *HydraConfig.get().overrides.task])
    return shlex.join(["python", *sys.argv])


def forget_peak_memory() -> bool:
    """Start the peak of this process's memory anew, as jobs of a sweep share a process; return whether that worked.

    Only Linux can.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory() -> float:
    """Return the largest resident memory since `forget_peak_memory`, otherwise since the process began, in MiB."""
    if (peak := _memory("VmHWM")) is not None:
        return peak
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20


def resident_memory() -> float | None:
    """Return the resident memory of this process in MiB; None where the system does not report it."""
    return _memory("VmRSS")


def _memory(entry: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    values = (int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{entry}:"))
    return next(values, None)
