"""A finished run, opened again: its model's folder, its configuration and its data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunekit.config.errors import ConfigError
from prunekit.console import say
from prunekit.data.kinds.registry import KINDS
from prunekit.data.sources import FILES
from prunekit.data.spec import TaskSpec
from prunekit.files import folder_damage
from prunekit.runs.folder import MODEL, RunFolder
from prunekit.runs.kinds import kind_of
from prunekit.runs.result import AnyResult, RunResult

_WEIGHTS = ("model.safetensors",)


@dataclass(frozen=True)
class FinishedRun:
    """A run whose result is there; nothing is read yet but its configuration and result."""

    path: Path
    cfg: dict[str, Any]
    result: RunResult
    spec: TaskSpec

    @property
    def model(self) -> Path:
        """The folder of the pruned model."""
        return self.path / MODEL

    def data(self, elsewhere: str | Path | None = None) -> Any:
        """The run's TokenPruningDataModule, set up; prints where rows, labels or lengths are not those of the run.

        `elsewhere` is where the run's own file is now, or the folder of its own files.

        Raises:
            ConfigError: the data is no longer where it was.
        """
        # torch takes seconds to import, and a stored result is told without it
        from prunekit.data.module import TokenPruningDataModule

        kind, spec = kind_of(self.cfg), self._find_files(elsewhere)
        trainer, data = self.cfg["trainer"], self.cfg["data"]
        found = TokenPruningDataModule(
            spec,
            kind.source(spec),
            self.model,
            batch_size=trainer["batch_size"],
            eval_batch_size=trainer["eval_batch_size"],
            seed=self.cfg["seed"],
            train_rows=data["train_rows"],
            eval_rows=data["eval_rows"],
            train_band=data.get("train_band"),
            eval_bands=data.get("eval_bands"),
            cache_dir=data["cache_dir"],
            prefix=spec.prefix(self.cfg["backbone"].get("prefix")),
        )
        found.setup()
        digest, stored = kind.digest(spec), self.cfg.get("own", {}).get("files")
        fingerprint = RunFolder(self.path, "").manifest().get("data_fingerprint")
        if stored is not None and digest != stored:
            say(f"data       {spec.file} is not what the run read: it has changed, and so may all numbers.")
        elif fingerprint is not None and found.fingerprint != fingerprint:
            say(f"data       {found.source} gives other rows or tokens than the run read, and so may all numbers.")
        return found

    def _find_files(self, elsewhere: str | Path | None) -> TaskSpec:
        """Return the task with its own files where they are now: where they were, or `elsewhere`."""
        named = {key: Path(value) for key in FILES if (value := getattr(self.spec, key)) is not None}
        if not named:
            if elsewhere is None:
                return self.spec
            raise ConfigError(
                f"data={elsewhere}: task={self.spec.name} reads no file of your own.\n"
                "Allowed: data=... for a run that was trained with task.file=...\nLeave data out."
            )
        if elsewhere is not None and not Path(elsewhere).is_dir() and len(named) > 1:
            raise ConfigError(
                f"data={elsewhere} is one file, and the run read {len(named)}: "
                f"{', '.join(path.name for path in named.values())}.\n"
                "Allowed: the folder that holds all of them.\nGive data=<that folder>."
            )
        found: dict[str, Any] = {}
        for key, typed in named.items():
            place = typed  # absolute, except in runs of older versions
            if elsewhere is not None:
                inside = Path(elsewhere) / typed.name
                place = inside if inside.exists() and not typed.is_dir() else Path(elsewhere)
            if not place.exists():
                raise ConfigError(
                    f"{place}, which the run read as task.{key}, does not exist.\n"
                    "Allowed: the file that the run was trained on, wherever it is now.\nGive data=<its new path>."
                )
            found[key] = str(place)
        return replace(self.spec, **found)


def open_run(given: str | Path | None) -> FinishedRun:
    """The run in a folder; its model/ will do as well.

    Raises:
        ConfigError: no folder is given, it is no run of token pruning, or the run is not finished.
    """
    if given is None:
        raise ConfigError(
            "no run is given.\nAllowed: run=runs/<task>/<method>/<backbone>/<budget>/s<seed>-<hash>.\n"
            "`prunekit table` lists finished runs; a command line of train.py prints its folder."
        )
    path = Path(given)
    if path.name == MODEL and not (path / "config.yaml").is_file():
        path = path.parent
    if not (path / "config.yaml").is_file():
        raise ConfigError(
            f"run={given} is no run: {path / 'config.yaml'} does not exist.\n"
            "Allowed: the folder of a finished run, with config.yaml, result.json and model/.\n"
            "Give such a folder, or make one with train.py."
        )
    try:
        cfg = RunFolder(path, "").read_config()
    except ValueError as error:
        raise ConfigError(
            f"run={given} cannot be used: {error}.\nAllowed: the files of a run as they were written.\n"
            "Give its train.py command again with force=true, or restore the file."
        ) from error
    kind = kind_of(cfg)
    if kind.tasks == ("text",):
        raise ConfigError(
            f"run={given} pruned weights ({cfg['method']['name']}), no tokens.\n"
            "Allowed: a run of a token method.\nIts model/ is an ordinary Hugging Face folder already."
        )
    result, problem = RunFolder(path, "").read_result()
    if not isinstance(result, RunResult) or not (path / MODEL / "config.json").is_file():
        raise ConfigError(
            f"run={given} is not finished ({problem or 'it has no result.json or no model/'}).\n"
            "Allowed: a run with a result.\nGive its train.py command again: it goes on where it stopped."
        )
    if (wrong := folder_damage(path / MODEL, result.hash)) is not None:
        raise ConfigError(
            f"run={given} cannot be used: {wrong}.\nAllowed: the files of a run as they were written.\n"
            "Restore the file, or delete it and give the run's train.py command again."
        )
    return FinishedRun(path, cfg, result, replace(kind.spec(cfg), **_settled(result)))


def _settled(result: RunResult) -> dict[str, Any]:
    """Return the keys of a task that validation decided."""
    thresholds = result.score.thresholds
    return {} if thresholds is None else {"thresholds": tuple(float(share) for share in thresholds.values())}


def open_labelling(
    given: str | Path | None, refused: str, instead: str, *, words: bool = False, vectors: bool = False
) -> FinishedRun:
    """Open a run whose model gives each text a label or a value; with `words`, or each of its words; with `vectors`,
    or a vector.

    `refused` is what the command does not do with other runs, as words after what their models do; `instead` is the
    message's last line.

    Raises:
        ConfigError: as of `open_run`, or the model does something else.
    """
    run = open_run(given)
    kind = run.spec.kind
    if not kind.labels_texts and not (words and kind.labels_words) and not (vectors and kind.gives_vectors):
        *kinds, last = [
            each.name
            for each in KINDS.values()
            if not each.asks_teacher and (each.labels_texts or (words and each.labels_words))
        ]
        raise ConfigError(
            f"run={given} {kind.does}{refused}.\nAllowed: a run of {', '.join(kinds)} or {last}.\n{instead}"
        )
    return run


def finished_result(folder: RunFolder) -> AnyResult | None:
    """Read the result of a run that need not run again; otherwise None.

    Raises:
        ConfigError: a newer prunekit wrote it.
    """
    try:
        result = folder.result()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if result is None:
        return None
    # somebody may have removed the model, or its weights: the run is not done then
    needed = [folder.path / MODEL / name for name in ("config.json", *_WEIGHTS * isinstance(result, RunResult))]
    is_there = all(path.is_file() for path in needed) and folder_damage(folder.path / MODEL, quick=True) is None
    return result if is_there else None
