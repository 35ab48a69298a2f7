"""The folder of one run: its path, its contents, and whether the run is finished. Imports nothing heavy.

    runs/<task>/<method>/<backbone>/<budget>/s<seed>-<hash8>/
        config.yaml    the resolved configuration
        manifest.json  versions, git state, hardware, command line; data and weights once they are known
        metrics.jsonl  one line per logged step
        goal.json      the budget that a goal in milliseconds came to, and what it was derived from
        examples.npz   predictions on the test rows, and which tokens of the first ones stayed
        result.json    written last, so that it is there only when the run is done
        checkpoints/   while the run is not finished; with trainer.keep_checkpoints the best one stays
        model/         the pruned model
        log.txt        what it printed, when it ran in a sweep; failed.json: why there is no result

The configuration alone decides the folder: the same configuration finds its result, or resumes where it stopped.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import filelock
import yaml

from prunekit.config.errors import first_line
from prunekit.config.identity import config_hash
from prunekit.environment import environment
from prunekit.files import (
    atomic_write_text,
    damage,
    remove_leftovers,
    remove_sealed,
    write_sealed_text,
)
from prunekit.runs.kinds import kind_of
from prunekit.runs.names import byte_size, fit_name
from prunekit.runs.result import SCHEMA, AnyResult, Status, parse_result

MODEL = "model"  # the folder of the pruned model
LAST, PREVIOUS, BEST, CLOSEST = "last.ckpt", "previous.ckpt", "best.ckpt", "closest.ckpt"
LONGEST = 255  # bytes of a folder's name
SETTLING = "settle"  # the folder of what a method measures after the fit


def discard_resume_points(folder: str | Path, *, keep_best: bool = True) -> None:
    """Remove what only a killed run needs; the best or the closest checkpoint too, unless it is to be kept."""
    folder = Path(folder)
    names = [LAST, PREVIOUS, f"{LAST}.staged", *([] if keep_best else [BEST, CLOSEST])]
    remove_sealed(*(folder / name for name in names))
    shutil.rmtree(folder / SETTLING, ignore_errors=True)
    with suppress(OSError):  # not empty, or not there
        folder.rmdir()


FINISHED = get_args(Status)


class BusyError(TimeoutError):
    """Another process is running this run."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one configuration; it need not exist yet."""

    path: Path
    hash: str

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> RunFolder:
        """Return the folder of a configuration; machine keys do not affect it."""
        digest = config_hash(cfg)
        label = kind_of(cfg).label(cfg)
        parts = [cfg["task"]["name"], cfg["method"]["name"], cfg["backbone"]["name"], label]
        path = Path(cfg["runs_dir"]).joinpath(*(_folder_name(part) for part in parts), f"s{cfg['seed']}-{digest}")
        return cls(path, digest)

    @property
    def metrics(self) -> Path:
        """metrics.jsonl."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of best.ckpt, closest.ckpt and what a killed run resumes from."""
        return self.path / "checkpoints"

    # -- beginning -------------------------------------------------------------------------------------

    def remove_leftovers(self) -> None:
        """Remove the unfinished files that killed processes of this run left, in its folder and those below."""
        remove_leftovers(self.path, *(path for path in self.path.glob("*") if path.is_dir()))

    def prepare(self, cfg: Mapping[str, Any], command: str) -> None:
        """Make the folder and write config.yaml and manifest.json; with `force`, remove what a finished run left.

        In a resumed run, the manifest keeps the first start and lists this one under "resumed".
        """
        if cfg.get("force") and (self.path / "result.json").exists():
            self.clear()  # without a result this run was interrupted, and is resumed
        elif problem := self.read_result()[1]:
            print(problem, file=sys.stderr)
        self.remove_leftovers()
        text = yaml.safe_dump(dict(cfg), sort_keys=False, allow_unicode=True)
        write_sealed_text(self.path / "config.yaml", text, self.hash)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        before = self.manifest()
        self._write_manifest(
            {
                **before,
                **environment(),
                "hash": self.hash,
                "command": command,
                "started": before.get("started", now),
                "resumed": [*before.get("resumed", []), *([now] if "started" in before else [])],
            }
        )

    def check_present(self) -> None:
        """Check that the folder is the one that was prepared: a result must not stand alone in a new one.

        Raises:
            FileNotFoundError: somebody removed it since.
        """
        (self.path / "config.yaml").stat()
        if self.manifest().get("hash") != self.hash:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path / "manifest.json"))

    def clear(self) -> None:
        """Remove result, metrics, manifest and checkpoints, so that the next run starts from scratch."""
        names = (
            "result.json",
            "failed.json",
            "goal.json",
            "manifest.json",
            "metrics.jsonl",
            "metrics.csv",
            "examples.npz",
        )
        remove_sealed(*(self.path / name for name in names))
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def manifest(self) -> dict[str, Any]:
        """Return the content of manifest.json; empty if it is missing or damaged."""
        return _read_json(self.path / "manifest.json", self.hash)[0] or {}

    def update_manifest(self, entries: Mapping[str, Any]) -> None:
        """Add entries to manifest.json, or replace them."""
        self._write_manifest({**self.manifest(), **entries})

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        write_sealed_text(self.path / "manifest.json", text, self.hash)

    def read_config(self) -> dict[str, Any]:
        """Return the configuration in config.yaml.

        Raises:
            ValueError: it is missing, damaged, or no configuration.
        """
        path = self.path / "config.yaml"
        if (wrong := damage(path, self.hash)) is not None:
            raise ValueError(f"{path} {wrong}")
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read ({first_line(error)})") from error
        if not isinstance(found, dict):
            raise ValueError(f"{path} holds a {type(found).__name__} instead of a configuration")
        return found

    # -- ending ----------------------------------------------------------------------------------------

    def result(self) -> AnyResult | None:
        """Return the stored result of a finished run, else None; `read_result` also returns why it does not count.

        Raises:
            ValueError: a newer prunekit wrote it.
        """
        return self.read_result()[0]

    def read_result(self) -> tuple[AnyResult | None, str | None]:
        """Return the result and None, or None and why it does not count: unreadable, another schema, unfinished.

        Where nothing is stored both are None.

        Raises:
            ValueError: a newer prunekit wrote it; running again would overwrite it.
        """
        path = self.path / "result.json"
        if not path.exists():
            return None, None
        content, why = _read_json(path, self.hash)
        if content is not None:
            schema, status = content.get("schema"), content.get("status")
            if isinstance(schema, int) and schema > SCHEMA:
                raise ValueError(
                    f"{path} has schema {schema}, this prunekit reads up to {SCHEMA}; "
                    f"upgrade prunekit, or run again with force=true."
                )
            if schema != SCHEMA:
                why = f"has schema {schema}, this prunekit writes {SCHEMA}"
            elif status not in FINISHED:
                why = f"has status {status!r}, finished runs have {' or '.join(FINISHED)}"
            else:
                try:
                    return parse_result(content), None
                except ValueError as error:
                    why = f"{error}: an older prunekit wrote it"
        return None, f"{path} {why}; the run counts as not done and is finished now."

    def write_result(self, result: AnyResult) -> None:
        """Write result.json atomically. Call it last: from then on the run is finished."""
        # json's default refuses what it does not know, so a tensor cannot slip in as text
        content = json.dumps(result.to_json(), indent=2, ensure_ascii=False) + "\n"
        (self.path / "failed.json").unlink(missing_ok=True)
        write_sealed_text(self.path / "result.json", content, self.hash)

    # -- one process at a time -------------------------------------------------------------------------

    @contextmanager
    def lock(self, timeout: float | int | None = None) -> Iterator[None]:
        """Lock the run for this process; wait for another process at most `timeout` seconds, None = without limit.

        Raises:
            BusyError: another process still holds the lock; the message names it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        owner = self.path / ".lock.owner"
        lock = filelock.FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            if timeout != 0:
                print(f"{self.path} is being run by {_holder(owner)}; waiting for it.", file=sys.stderr, flush=True)
            try:
                lock.acquire(timeout=-1 if timeout is None else timeout)
            except filelock.Timeout:
                raise BusyError(
                    f"{self.path} is still held by {_holder(owner)} after {timeout:g} s; one process at a time may run "
                    f"it. Wait for it or end it, or change the configuration or the seed."
                ) from None
        try:
            mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
            atomic_write_text(owner, json.dumps(mine))
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def holder(self) -> str | None:
        """Return a description of the process that holds the lock now; None if there is none."""
        if not (self.path / ".lock").exists():
            return None
        try:
            with filelock.FileLock(self.path / ".lock", timeout=0):
                return None
        except filelock.Timeout:
            return _holder(self.path / ".lock.owner")

    # -- what went wrong -------------------------------------------------------------------------------

    @property
    def log(self) -> Path:
        """log.txt: the output of a job of a sweep."""
        return self.path / "log.txt"

    def write_failure(self, exit_code: int, message: str) -> None:
        """Write why there is no result into failed.json, which a finished run removes."""
        failure = {
            "exit_code": exit_code,
            "message": message,
            "log": str(self.log),
            "time": time.time(),
            "id": uuid.uuid4().hex,
        }
        atomic_write_text(self.path / "failed.json", json.dumps(failure, indent=2, ensure_ascii=False) + "\n")

    def failure(self, before: str | None = None) -> dict[str, Any] | None:
        """Return the content of failed.json; None without one, or where its `failure_id` is that of `before`."""
        found, _ = _read_json(self.path / "failed.json") if (self.path / "failed.json").is_file() else (None, None)
        return None if found is None or _id_of(found) == before else found

    def failure_id(self) -> str | None:
        """Return what tells this failure from later ones, whatever clocks say; None without one."""
        found = self.failure()
        return None if found is None else _id_of(found)


def _id_of(failure: Mapping[str, Any]) -> str:
    return str(failure.get("id", failure.get("time")))


def _holder(owner: Path) -> str:
    found, _ = _read_json(owner)
    if found is None:
        return "another process"
    since = datetime.fromtimestamp(found["since"]).strftime("%Y-%m-%d %H:%M:%S")
    return f"process {found['pid']} on {found['host']} (since {since})"


def _read_json(path: Path, owner: str = "") -> tuple[dict[str, Any] | None, str | None]:
    """Return the JSON object in a file and None, or None and what is wrong with the file."""
    if (wrong := damage(path, owner)) is not None:
        return None, wrong
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also a UnicodeDecodeError
        return None, f"is not readable as JSON ({error})"
    except OSError as error:
        return None, f"cannot be read ({error.strerror})"
    if not isinstance(found, dict):
        return None, f"holds a {type(found).__name__} instead of an object"
    return found, None


def _folder_name(part: object) -> str:
    """A name without what file systems or shells take amiss, and no longer than they admit."""
    return fit_name(re.sub(r"[^\w.+-]+", "-", str(part)).strip(".-") or "unnamed", LONGEST, byte_size)
