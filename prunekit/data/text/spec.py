"""Text tasks: a domain and an open corpus, each with text to calibrate on and held-out text to measure on.

A task is one file in conf/task with `kind: text`, for methods that prune weights. Imports nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prunekit.config.errors import ConfigError, shown
from prunekit.data.contents import content_digest
from prunekit.data.hub import DATA_VARIABLE, cached_snapshot, why_unreachable

STREAMS = ("open", "domain")
SUFFIXES = (".jsonl", ".json", ".txt", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Corpus:
    """One corpus; its fields are the keys of its block in conf/task, which explains each."""

    template: str = "{{ text }}"
    completion: str | None = None
    pack: Literal["packed", "examples"] = "packed"
    samples: int = 128
    seqlen: int = 512
    held_out: float = 0.1
    file: str | None = None
    eval_file: str | None = None
    folder: str | None = None
    eval_folder: str | None = None
    hub: str | None = None
    hub_file: str | None = None
    eval_hub_file: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class ChoiceSpec:
    """Questions with fixed answers, scored by likelihood per character; keys as in conf/task."""

    template: str
    answer: str
    choices: tuple[str, ...]
    rows: int = 200
    file: str | None = None
    folder: str | None = None
    hub: str | None = None
    hub_file: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class GenerationSpec:
    """Prompts with reference texts, scored by ROUGE; keys as in conf/task."""

    template: str
    reference: str
    rows: int = 32
    new_tokens: int = 64
    file: str | None = None
    folder: str | None = None
    hub: str | None = None
    hub_file: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class TextSpec:
    """A text task; the fields are the keys of conf/task/domain_*.yaml."""

    name: str
    domain: Corpus
    open: Corpus
    choice: ChoiceSpec | None = None
    generation: GenerationSpec | None = None
    loss_on: Literal["all", "completion"] = "all"
    window: int = 512
    stride: int | None = None
    eval_tokens: int = 16384
    reduction: Literal["token", "window"] = "token"
    synthetic_rows: int | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TextSpec:
        """Return the spec of a resolved `task` block.

        Raises:
            ConfigError: values that contradict each other.
        """
        given = {key: value for key, value in config.items() if key != "kind" and value is not None}
        blocks = {"domain": Corpus, "open": Corpus, "choice": ChoiceSpec, "generation": GenerationSpec}
        for name, kind in blocks.items():
            block = {key: value for key, value in (given.pop(name, None) or {}).items() if value is not None}
            block.pop("enabled", None) if (config.get(name) or {}).get("enabled", True) else block.clear()
            values = {key: tuple(value) if isinstance(value, list) else value for key, value in block.items()}
            if values or name in STREAMS:
                given[name] = kind(**values)
        spec = cls(**given)
        if spec.stride is not None and spec.stride > spec.window:
            raise ConfigError(
                f"task.stride={spec.stride} skips text between windows of task.window={spec.window}.\n"
                f"Allowed: 1..{spec.window}.\nLeave it out for a quarter of the window."
            )
        if spec.loss_on == "completion" and not spec.domain.completion:
            raise ConfigError(
                "task.loss_on=completion, but task.domain.completion is null.\n"
                "Allowed: completion with a template for the completion.\nSet task.loss_on=all, or give the template."
            )
        if spec.loss_on == "completion" and spec.domain.pack != "examples":
            raise ConfigError(
                f"task.loss_on=completion, but task.domain.pack={spec.domain.pack} cuts samples out of running text, "
                "which does not separate prompts from completions.\n"
                "Allowed: task.loss_on=completion with task.domain.pack=examples.\nSet that, or task.loss_on=all."
            )
        for name in STREAMS:
            corpus = getattr(spec, name)
            if corpus.hub and not corpus.hub_file and not (corpus.file or corpus.folder):
                raise ConfigError(
                    f"task.{name}.hub={shown(corpus.hub)} without task.{name}.hub_file.\n"
                    "Allowed: both, a dataset and the path of a .jsonl, .csv, .txt or .parquet file in it.\n"
                    f"Give task.{name}.hub_file=..."
                )
            if corpus.eval_file and not corpus.file:
                raise ConfigError(
                    f"task.{name}.eval_file={shown(corpus.eval_file)} without task.{name}.file.\n"
                    "Allowed: both, or the file alone, from which some documents are then held out.\n"
                    f"Give task.{name}.file=..."
                )
        return spec


@dataclass(frozen=True)
class CorpusFiles:
    """Files of a corpus; if `evaluation` is None, documents of `calibration` are held out for it."""

    calibration: Path
    evaluation: Path | None


@dataclass(frozen=True)
class TextSource:
    """Files of a text task; None where its texts are synthetic."""

    open: CorpusFiles | None
    domain: CorpusFiles | None
    choice: Path | None = None
    generation: Path | None = None


def _configured_files(spec: TextSpec) -> dict[str, str]:
    """Return the files that the configuration names by path, by their keys."""
    named = {
        f"{name}.{key}": path
        for name in (*STREAMS, "choice", "generation")
        for key in ("file", "eval_file")
        if (path := getattr(getattr(spec, name), key, None)) is not None
    }
    return {key: path for key, path in named.items() if Path(path).is_file()}


def text_files_digest(spec: TextSpec) -> str | None:
    """Return the hex digest of the contents of files that the configuration names by path; None if there are none."""
    named = _configured_files(spec)
    return content_digest(named) if named else None


def find_texts(spec: TextSpec, env: Mapping[str, str] | None = None) -> TextSource:
    """Find a text task's files: at a configured path, in PRUNEKIT_DATA, or on the hub.

    Raises:
        ConfigError: a file is in none of these places; raised within 5 seconds, with what was tried and two fixes.
    """
    env = os.environ if env is None else env
    if spec.synthetic_rows:
        return TextSource(None, None)
    return TextSource(
        _corpus("open", spec.open, env),
        _corpus("domain", spec.domain, env),
        _table("choice", spec.choice, env),
        _table("generation", spec.generation, env),
    )


def _corpus(name: str, corpus: Corpus, env: Mapping[str, str]) -> CorpusFiles:
    if corpus.file is not None:
        calibration = _check_file(f"task.{name}.file", corpus.file)
        evaluation = None if corpus.eval_file is None else _check_file(f"task.{name}.eval_file", corpus.eval_file)
        return CorpusFiles(calibration, evaluation)
    tried = []
    if corpus.folder:
        path, problem = _find_in_data_folder(corpus.folder, env)
        evaluation, eval_problem = (
            (None, "") if corpus.eval_folder is None else _find_in_data_folder(corpus.eval_folder, env)
        )
        if path and not eval_problem:
            return CorpusFiles(path, evaluation)
        tried.append(problem or eval_problem)
    if corpus.hub and corpus.hub_file:
        problem = _why_not_on_hub(corpus, env)
        if not problem:
            return CorpusFiles(
                _from_hub(corpus.hub, corpus.hub_file, corpus.revision),
                _from_hub(corpus.hub, corpus.eval_hub_file, corpus.revision) if corpus.eval_hub_file else None,
            )
        tried.append(problem)
    raise ConfigError(
        f"task.{name}: no texts. Tried {'; '.join(tried) or 'nothing: no file, folder or hub is given'}.\n"
        f"Option 1: task.{name}.file=<a .jsonl, .txt, .csv or .parquet file>.\n"
        f"Option 2: {DATA_VARIABLE}=<folder that holds {corpus.folder or 'it'}>."
    )


def _table(name: str, part: ChoiceSpec | GenerationSpec | None, env: Mapping[str, str]) -> Path | None:
    if part is None:
        return None
    if part.file is not None:
        return _check_file(f"task.{name}.file", part.file)
    path, problem = _find_in_data_folder(part.folder or name, env)
    if path is None and part.hub and part.hub_file:
        unreachable = _why_not_on_hub(part, env)
        if not unreachable:
            return _from_hub(part.hub, part.hub_file, part.revision)
        problem = f"{problem}; {unreachable}"
    if path is None:
        raise ConfigError(
            f"task.{name}: no rows. Tried {problem}.\nWay on 1: task.{name}.file=<a .jsonl, .csv or .parquet file>.\n"
            f"Way on 2: task.{name}.enabled=false leaves it out."
        )
    return path


def _why_not_on_hub(part: Corpus | ChoiceSpec | GenerationSpec, env: Mapping[str, str]) -> str:
    """Return why a file of the hub can be had neither from its cache nor from there; "" if it can."""
    assert part.hub is not None
    cached = cached_snapshot(part.hub, "dataset", env, part.revision or "main")
    return "" if cached else why_unreachable(part.hub, "datasets", env)


def _check_file(key: str, given: str) -> Path:
    """Return the path of a configured file after checking that it exists and has a known suffix."""
    path = Path(given)
    if not path.is_file():
        raise ConfigError(
            f"{key}={shown(given)} is not a file (looked in {Path.cwd()}).\n"
            f"Allowed: {', '.join(SUFFIXES)}.\nCorrect the path."
        )
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"{key}={shown(given)} has the suffix {shown(path.suffix) or '(none)'}.\n"
            f"Allowed: {', '.join(SUFFIXES)}.\nConvert the file."
        )
    return path


def _find_in_data_folder(place: str, env: Mapping[str, str]) -> tuple[Path | None, str]:
    """Return a file in the data folder, or None and the reason why not."""
    root = env.get(DATA_VARIABLE)
    if not root:
        return None, f"{DATA_VARIABLE} (not set)"
    path = Path(root) / place
    return (path, "") if path.is_file() else (None, f"{DATA_VARIABLE}={root} (has no {place})")


def _from_hub(repo: str, file: str, revision: str | None) -> Path:
    # heavy, and most tasks read no file from the hub
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(hf_hub_download(repo, file, repo_type="dataset", revision=revision))
    except (EntryNotFoundError, RepositoryNotFoundError) as error:
        raise ConfigError(
            f"the hub's dataset {repo} has no file {file} ({type(error).__name__}).\n"
            "Allowed: the path of a .jsonl, .csv, .txt or .parquet file in a public dataset.\n"
            "Correct hub_file or eval_hub_file, or give a local file."
        ) from error
