"""Where metrics go: metrics.jsonl is the record; CSV, W&B, trackio and TensorBoard are views of it.

None of them can stop a run, or asks for anything.
"""

from __future__ import annotations

import csv
import io
import netrc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from prunekit.config import config_hash
from prunekit.progress import say
from prunekit.report import examples, media
from prunekit.runs import RunFolder, append_jsonl, atomic_write_text, read_jsonl, write_jsonl

WandbMode = Literal["online", "offline", "disabled"]


class JsonlLogger(Logger):
    """Appends each logged row to a file as {"step", "epoch", "time", ...metrics}; NaN and infinities become null.

    `step` counts optimizer steps from 0 and names the last one that was taken; `time` is in seconds since 1970.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def version(self) -> str:
        """Always empty: a run has one file."""
        return ""

    @property
    def save_dir(self) -> str:
        """The file's folder."""
        return str(self.path.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends one row."""
        values = {key: float(value) for key, value in metrics.items() if key not in ("epoch", "step")}
        epoch = metrics.get("epoch")
        row = {"step": step, "epoch": None if epoch is None else int(epoch), "time": round(time.time(), 3)}
        append_jsonl(self.path, row | values)

    @rank_zero_only
    def rewind(self, steps: int) -> None:
        """Drops the rows of all but the first `steps` optimizer steps: what comes after them is run again."""
        rows = read_jsonl(self.path)
        kept = [row for row in rows if row["step"] is None or row["step"] < steps]
        if len(kept) < len(rows) or not self.path.is_file():
            write_jsonl(self.path, kept)

    @rank_zero_only
    def write_csv(self, path: str | Path) -> None:
        """The rows as a table; a metric that a row lacks is left empty."""
        rows = read_jsonl(self.path)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_write_text(path, text.getvalue())


@dataclass(frozen=True)
class Media:
    """A run's texts for a logger that shows more than numbers."""

    picture: np.ndarray  # [height, width, 3] bytes
    columns: list[str]
    rows: list[list[Any]]  # a token each


class Sink(Logger):
    """Sends rows to a `run` of a tracking library; the first failure is told in one line and ends the sending.

    `title` is what users call the library, `library` what Python does: it has a `Table` and an `Image`.
    """

    title = ""
    library = ""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run = run
        self._failed = False

    @property
    def name(self) -> str:
        """The project."""
        return str(self.run.project)

    @property
    def version(self) -> str:
        """The id of the run."""
        return str(self.run.id)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the whole configuration was given at the start."""

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Keeps final values."""
        raise NotImplementedError

    @rank_zero_only
    def show(self, shown: Media) -> None:
        """Sends the picture as tokens/heatmap and the table as tokens/table."""

        def send() -> None:
            library: Any = import_module(self.library)
            table = library.Table(columns=shown.columns, data=shown.rows)
            self.run.log({"tokens/heatmap": library.Image(shown.picture), "tokens/table": table})

        self._safely(send)

    def finish(self, exit_code: int) -> None:
        """Ends the run, so that the next job of the same process gets one of its own."""
        raise NotImplementedError

    def _safely(self, call: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            call()
        except Exception as error:
            self._failed = True
            say(
                f"{self.title}: logging failed ({_first_line(error)}); "
                "the run goes on without it, metrics.jsonl has everything."
            )


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


class TrackioLogger(Sink):
    """A trackio run, in trackio's own database on this machine."""

    title = "trackio"
    library = "trackio"

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Sends one row."""
        self._safely(lambda: self.run.log(dict(metrics), step=step))

    @rank_zero_only
    def summarize(self, values: Mapping[str, Any]) -> None:
        """Sends final values as a last row: trackio has no summary."""
        self._safely(lambda: self.run.log(dict(values)))

    def finish(self, exit_code: int) -> None:
        """Ends the trackio run; waits until everything is in its database."""

        def end() -> None:
            import trackio

            with redirect_stdout(io.StringIO()):
                trackio.finish()

        self._safely(end)


@contextmanager
def tracking(cfg: Mapping[str, Any], folder: RunFolder) -> Iterator[list[Logger]]:
    """The loggers of one job, for Lightning's Trainer; closes them whatever happens.

    metrics.jsonl always; metrics.csv when the job ends; W&B, trackio and TensorBoard as `logger` says.
    """
    settings = cfg["logger"]
    record = JsonlLogger(folder.metrics)
    sinks: list[Sink | None] = []
    if rank_zero_only.rank == 0:
        sinks.append(start_wandb(cfg, folder) if settings["wandb"]["enabled"] else None)
        sinks.append(start_trackio(cfg, folder) if settings["trackio"] else None)
    started = [sink for sink in sinks if sink is not None]
    board = start_tensorboard(folder) if settings["tensorboard"] else None
    exit_code = 1
    try:
        yield [record, *started, *([board] if board is not None else [])]
        exit_code = 0
    finally:
        for sink in started:
            sink.finish(exit_code)
        if board is not None:
            board.finalize("success" if exit_code == 0 else "failed")
        if settings["csv"] and record.path.is_file():
            record.write_csv(folder.path / "metrics.csv")


def log_result(loggers: Sequence[Logger], result: Mapping[str, Any]) -> None:
    """Gives the numbers of result.json to the loggers that keep a summary, as final/<name>."""
    numbers = final_numbers(result)
    for logger in loggers:
        if isinstance(logger, Sink):
            logger.summarize(numbers)


def log_tokens(loggers: Sequence[Logger], folder: RunFolder, texts: int) -> None:
    """Shows which tokens stayed, of at most `texts` test texts, to the loggers that show pictures and tables.

    Nothing where the run stored no tokens, as a dense one. What goes wrong here is said and stops nothing.
    """
    able = [logger for logger in loggers if isinstance(logger, Sink | TensorBoardLogger)]
    if not able or not texts:
        return
    try:
        found = examples.load(folder.path)
        if found is None or not len(found.index):
            return
        places = media.chosen(found, texts)
        shown = Media(media.pixels(media.heat_map(found, places)), *media.token_table(found, places))
    except Exception as error:
        say(f"tokens are not shown in {' and '.join(_title(logger) for logger in able)} ({_first_line(error)}).")
        return
    for logger in able:
        if isinstance(logger, Sink):
            logger.show(shown)
        else:
            logger.experiment.add_image("tokens/heatmap", shown.picture, dataformats="HWC")


def _title(logger: Sink | TensorBoardLogger) -> str:
    return logger.title if isinstance(logger, Sink) else "TensorBoard"


def final_numbers(result: Mapping[str, Any]) -> dict[str, float | str]:
    """The numbers of a result under flat names, such as final/score and final/speedup_vs_packed_b32."""
    score, budget = result["score"], result["budget"]
    numbers: dict[str, Any] = {
        "status": result["status"],
        "score": score["pruned"],
        "score_dense": score["dense"],
        "budget_asked": budget["asked"],
        "budget_reached": budget["reached"],
        **{key: value for key, value in result["flops"].items() if isinstance(value, int | float)},
        "flops_kept": 1 / result["flops"]["flops_vs_unpadded"],
    }
    for row in result["speed"]:
        for key in ("speedup_vs_padded", "speedup_vs_packed"):
            numbers[f"{key}_b{row['batch_size']}"] = row[key]
    return {f"final/{key}": value for key, value in numbers.items() if value is not None}


# -- W&B ---------------------------------------------------------------------------------------------


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


def wandb_group(cfg: Mapping[str, Any]) -> str:
    """The name that runs share which differ in nothing but the seed."""
    path = RunFolder.of(cfg).path
    rest = {key: value for key, value in cfg.items() if key != "seed"}
    return "/".join([*path.parts[-5:-1], config_hash(rest)])


def run_name(cfg: Mapping[str, Any], folder: RunFolder) -> str:
    """Readable, and sorted with its like: top-cola-minilm-3x-s1."""
    names = [cfg[key]["name"] for key in ("method", "task", "backbone")]
    return "-".join([*names, folder.path.parent.name, f"s{cfg['seed']}"])


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


# -- trackio -----------------------------------------------------------------------------------------


def start_trackio(cfg: Mapping[str, Any], folder: RunFolder) -> TrackioLogger | None:
    """A trackio run named like the W&B one with its hash, which a resumed run goes on in; None when there can be none.

    Says in one line why there is none. Metrics stay on this machine unless trackio's own TRACKIO_SPACE_ID says else.
    """
    try:
        import trackio

        init = trackio.init
    except (ImportError, AttributeError):
        say("trackio: not installed, so not used (pip install 'prunekit[trackio]').")
        return None
    try:
        with redirect_stdout(io.StringIO()):
            run = init(
                project=cfg["logger"]["wandb"]["project"],
                name=f"{run_name(cfg, folder)}-{folder.hash}",
                group=wandb_group(cfg),
                config=dict(cfg),
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
    except Exception as error:
        say(f"trackio: did not start ({_first_line(error)}); the run goes on without it.")
        return None
    return TrackioLogger(run)


# -- TensorBoard -------------------------------------------------------------------------------------


def start_tensorboard(folder: RunFolder) -> TensorBoardLogger | None:
    """Lightning's TensorBoard logger, or None and a line that says that it is not installed."""
    try:
        return TensorBoardLogger(save_dir=folder.path, name="tensorboard", version="")
    except ModuleNotFoundError:
        say("TensorBoard: not installed, so not used (pip install 'prunekit[tensorboard]').")
        return None


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160]
