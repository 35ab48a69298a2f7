"""Weights & Biases: online with a key, offline without."""

from __future__ import annotations

import json
import netrc
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from urllib.parse import urlsplit

from prunekit.config.errors import first_line
from prunekit.console import say
from prunekit.loggers.base import RunSink
from prunekit.loggers.names import project_name, run_group, run_name, run_tags
from prunekit.runs.folder import RunFolder

WandbMode = Literal["online", "offline", "disabled"]


class WandbSink(RunSink):
    """A W&B run, whose id is the hash of the configuration."""

    title = "W&B"

    def __init__(self, run: Any, library: ModuleType) -> None:
        super().__init__(run, library)
        self._safely(lambda: run.define_metric("trainer/global_step"))
        self._safely(lambda: run.define_metric("*", step_metric="trainer/global_step", step_sync=True))

    def send_metrics(self, metrics: dict[str, float], step: int | None) -> None:
        """Send one row."""
        self.run.log(metrics if step is None else metrics | {"trainer/global_step": step})

    def send_summary(self, values: dict[str, Any]) -> None:
        """Put the final numbers into the run's summary, where W&B's scatter plots and tables look for them."""
        self.run.summary.update(values)

    def finish(self, exit_code: int) -> None:
        """End the W&B run, also one that failed before: its files are kept."""
        try:
            self.run.finish(exit_code=exit_code)
        except Exception as error:
            self._fail(error)
            # W&B's process is gone: without this the next run could not start, and Python would end in a traceback
            with suppress(Exception):
                self.library.teardown()
        else:
            if lost := unwritten(Path(self.run.dir).parent):
                self._fail(OSError(lost))


def unwritten(folder: Path) -> str | None:
    """Return why W&B could not write all of an offline run; it says so nowhere but in the log of its own process."""
    log = folder / "logs" / "debug-internal.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    for line in lines:
        with suppress(ValueError):
            entry = json.loads(line)
            if entry.get("level") == "ERROR" and entry["msg"].startswith("writer: "):
                return str(entry["msg"]).rpartition(": ")[2]
    return None


def wandb_mode(asked: str | None) -> tuple[WandbMode, str | None]:
    """Return the mode to start in, and a line to print where it is not the one asked for.

    `asked` decides, or else WANDB_MODE; without either the mode is online with a key and offline without. It is never
    online without a key: W&B would ask for one and wait.
    """
    wanted = asked or os.environ.get("WANDB_MODE")
    if wanted == "disabled":
        return "disabled", None
    if wanted == "offline":
        return "offline", None
    if has_wandb_key():
        return "online", None
    if wanted == "online":
        return "offline", (
            "W&B: online was asked for, but there is no key (WANDB_API_KEY or `wandb login`); "
            "this run is recorded offline, `wandb sync` uploads it later."
        )
    return "offline", None


def has_wandb_key() -> bool:
    """Return whether the environment or netrc holds a key for the W&B server; the key itself is not kept."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    places = [os.environ["NETRC"]] if "NETRC" in os.environ else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for place in places:
        with suppress(OSError, netrc.NetrcParseError):
            if host in netrc.netrc(place).hosts:
                return True
    return False


def start(
    cfg: Mapping[str, Any], folder: RunFolder, *, project: str, mode: str | None, entity: str | None
) -> WandbSink | None:
    """Start a W&B run that a resumed run continues: its id is the configuration's hash.

    Returns None, and reports why in one line, where W&B is disabled, not installed, or cannot start.
    """
    chosen, remark = wandb_mode(mode)
    if remark is not None:
        say(remark)
    if chosen == "disabled":
        return None
    try:
        import wandb  # not at the top: a run without it, and --help, start faster

        init = wandb.init  # a folder named wandb in the working directory imports as an empty package
    except (ImportError, AttributeError):
        say("W&B: not installed, so not used (pip install wandb; wandb.enabled=false hides this).")
        return None
    folder.path.mkdir(parents=True, exist_ok=True)
    attempts: list[WandbMode] = ["online", "offline"] if chosen == "online" else ["offline"]
    for attempt in attempts:
        try:
            run = init(
                mode=attempt,
                project=project_name(project),
                entity=entity,
                dir=str(folder.path),
                id=folder.hash,
                # offline there is nothing to resume from: each start is a fragment that `wandb sync` joins by id
                resume="allow" if attempt == "online" else None,
                name=run_name(cfg, folder),
                group=run_group(cfg),
                job_type="train",
                tags=run_tags(cfg, folder),
                config=dict(cfg),
                reinit="create_new",  # neither reuses nor ends another run of this process
                settings=wandb.Settings(init_timeout=30, silent=True, console="off"),
            )
        except Exception as error:
            fallback = "the run is recorded offline" if attempt == "online" else "the run continues without it"
            say(f"W&B: {attempt} did not start ({first_line(error)}); {fallback}.")
            continue
        return WandbSink(run, wandb)
    return None
