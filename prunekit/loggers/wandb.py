"""Weights & Biases: online with a key, offline without."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from lightning.pytorch.utilities import rank_zero_only

from prunekit.console import say
from prunekit.loggers.base import Sink, _first_line, run_name, wandb_group
from prunekit.runs.folder import RunFolder

WandbMode = Literal["online", "offline", "disabled"]


class WandbLogger(Sink):
    """A W&B run, whose id is the hash of the configuration."""

    title = "W&B"
    library = "wandb"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._safely(lambda: run.define_metric("trainer/global_step"))
        self._safely(lambda: run.define_metric("*", step_metric="trainer/global_step", step_sync=True))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Sends one row."""
        row = dict(metrics)
        if step is not None:
            row["trainer/global_step"] = step
        self._safely(lambda: self.run.log(row))

    @rank_zero_only
    def summarize(self, values: Mapping[str, Any]) -> None:
        """Puts final values into the run's summary, where W&B's scatter plots and tables look for them."""
        self._safely(lambda: self.run.summary.update(dict(values)))

    def finish(self, exit_code: int) -> None:
        """Ends the W&B run."""
        try:
            self.run.finish(exit_code=exit_code)
        except Exception as error:
            say(f"W&B: the run could not be closed ({_first_line(error)}); {self.run.dir} keeps what it has.")


def wandb_mode(asked: str | None) -> tuple[WandbMode, str | None]:
    """ "online", "offline" or "disabled", and a line to say when what was asked is not possible.

    `asked` or else WANDB_MODE decides; otherwise online with a key and offline without. Never online without a
    key: W&B would ask for one and wait.
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
    """Whether a key for the W&B server is in the environment or in netrc; the key itself is not kept."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    places = [os.environ["NETRC"]] if "NETRC" in os.environ else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for place in places:
        with suppress(OSError, netrc.NetrcParseError):
            if host in netrc.netrc(place).hosts:
                return True
    return False


def start_wandb(cfg: Mapping[str, Any], folder: RunFolder) -> WandbLogger | None:
    """A W&B run whose id is the configuration's hash, so that a resumed run goes on in it; None when there can be none.

    Says in one line why there is none.
    """
    settings = cfg["logger"]["wandb"]
    mode, remark = wandb_mode(settings["mode"])
    if remark is not None:
        say(remark)
    if mode == "disabled":
        return None
    try:
        import wandb

        init = wandb.init  # a folder named wandb beside the code imports as a package without anything in it
    except (ImportError, AttributeError):
        say("W&B: not installed, so not used (pip install 'prunekit[wandb]'; logger.wandb.enabled=false hides this).")
        return None
    folder.path.mkdir(parents=True, exist_ok=True)
    names = [cfg[key]["name"] for key in ("method", "task", "backbone")]
    attempts: list[WandbMode] = ["online", "offline"] if mode == "online" else ["offline"]
    for attempt in attempts:
        try:
            run = init(
                mode=attempt,
                project=settings["project"],
                entity=settings["entity"],
                dir=str(folder.path),
                id=folder.hash,
                # offline there is nothing to resume from: each start is a fragment that `wandb sync` joins by id
                resume="allow" if attempt == "online" else None,
                name=run_name(cfg, folder),
                group=wandb_group(cfg),
                job_type="train",
                tags=[*names, folder.path.parent.name],
                config=dict(cfg),
                reinit="create_new",  # neither reuses nor ends another run of this process
                settings=wandb.Settings(init_timeout=30, silent=True, console="off"),
            )
        except Exception as error:
            fallback = "the run is recorded offline" if attempt == "online" else "the run goes on without it"
            say(f"W&B: {attempt} did not start ({_first_line(error)}); {fallback}.")
            continue
        return WandbLogger(run)
    return None
