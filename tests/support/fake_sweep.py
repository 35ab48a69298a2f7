"""`train.py` with a training that takes no time; run as a script where a test needs a process.

What a run does hangs on its seed: 3 misses its budget, 4 cannot run, 13 crashes (unless the file `mended` lies in the
working directory), 9 is interrupted, 99 kills its process once. Every training appends its method and seed to the file
`trained`, and lasts as many seconds as FAKE_SECONDS says; the first one of a process waits until as many processes as
FAKE_PROCESSES says have got as far.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from prunekit.config.errors import ConfigError
from prunekit.files import atomic_write_text
from prunekit.pipelines import run as run_module
from prunekit.runs.finished import finished_result
from prunekit.runs.folder import BusyError, RunFolder
from prunekit.runs.identity import canonical, teacher_config
from prunekit.runs.result import AnyResult, RunResult
from support.run_result import changed


class Pipeline:
    """The stages of a run without any of them."""

    def __init__(self, cfg: dict[str, Any], folder: RunFolder, *, wait: bool) -> None:
        self.cfg, self.folder, self.wait = cfg, folder, wait

    def execute(self) -> RunResult:
        seed, method = self.cfg["seed"], self.cfg["method"]["name"]
        teacher = teacher_config(self.cfg)
        if teacher is not None:
            run(teacher, wait=self.wait)
        if seed == 4:
            raise ConfigError("budget=99x cannot be met.\nAllowed: 1x..5.2x.\nAsk for less.")
        if seed == 13 and method != "dense" and not Path("mended").exists():
            raise RuntimeError("the roof is on fire")
        if seed == 9:
            raise KeyboardInterrupt
        if seed == 99 and not (self.folder.path / "killed").exists():
            (self.folder.path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        Path(f"process-{os.getpid()}").touch()
        while len(list(Path().glob("process-*"))) < int(os.environ.get("FAKE_PROCESSES", "0")):
            time.sleep(0.02)
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
        with Path("trained").open("a") as stream:
            stream.write(f"{method} {seed}\n")
        print(f"trained {method} {seed}")
        for name in ("config.json", "model.safetensors"):
            atomic_write_text(self.folder.path / "model" / name, "{}")
        return changed(
            status="budget_missed" if seed == 3 else "done",
            exit_code=3 if seed == 3 else 0,
            score__pruned=0.75,
            score__validation=0.5 + seed / 100,
            budget__reached=2.0,
            seconds={"total": 8.0},
        )


def run(cfg: dict[str, Any], *, wait: bool = True) -> AnyResult:
    """As prunekit.pipelines.run.run, as far as folders, locks and results go."""
    cfg = canonical(cfg)
    folder = RunFolder.of(cfg)
    if (stored := finished_result(folder)) is not None and not cfg["force"]:
        return stored
    teacher = teacher_config(cfg)
    if not wait and teacher is not None and RunFolder.of(teacher).holder() is not None:
        raise BusyError("its teacher is being trained")
    with folder.lock(timeout=None if wait else 0):
        if (stored := finished_result(folder)) is not None and not cfg["force"]:
            return stored
        result = Pipeline(cfg, folder, wait=wait).execute()
        folder.write_result(result)
    return result


if __name__ == "__main__":
    run_module.run = run  # before prunekit.pipelines.job takes it
    from prunekit.cli.main import main
    from prunekit.runs import sweep

    sweep.POLL_SECONDS = 0.05
    main()
