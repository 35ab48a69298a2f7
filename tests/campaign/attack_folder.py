"""Hostile folders of models and runs: no code of theirs is run, and nothing wrong in them is taken in silence."""

from __future__ import annotations

import hashlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import torch

import prunekit
from campaign.frame import EXECUTED, HANGS, REFUSED, SAME, SILENT, TRACEBACK, Case, Verdict, place_for
from campaign.hostile import EVIL, HOSTILE, HOSTILE_RUNS, Hostility, agree, marker_of
from campaign.isolated import Told, isolated
from campaign.small_runs import JOBS, at_home, finished
from prunekit.config.composition import compose
from prunekit.data.encoding import load_tokenizer
from prunekit.models.loading import load_stock
from prunekit.pipelines.inputs import RunInputs
from prunekit.pipelines.run import run
from prunekit.pipelines.tokens.checks import check_models
from prunekit.runs.finished import open_run
from prunekit.runs.folder import RunFolder
from prunekit.runs.kinds import kind_of
from prunekit.serving.model import load_all

TITLE = "hostile folders of models and runs"
LONG, SHORT = 500, 3
PART = 50
NAME = "topk"
TEXTS = ["the first words of a text", "others"]
SERVED = {"dtype": "fp32", "threads": 1, "max_length": None, "batch_tokens": 4096, "batch_texts": 32, "cut": False}


def cases(count: int, rng: random.Random, folder: Path) -> Iterator[Case]:
    """Yield folders: how they are opened, and what is in them."""
    for _ in range(count):
        way = rng.choice(sorted(WAYS))
        kinds = HOSTILE_RUNS if WAYS[way][0] == "run" else HOSTILE
        names = rng.sample(sorted(kinds), 1 if rng.random() < 0.8 else 2)
        seed = rng.randrange(2**32)
        case = f"{way}: {', '.join(names)} ({seed})"
        yield Case(case, partial(attack, way, [kinds[name] for name in names], seed, folder))


@cache
def whole(way: str, folder: Path) -> tuple[Path, Told]:
    """Return the folder that is copied for a way to open one, and what the original computes."""
    job, place = JOBS[NAME], finished(NAME, folder)
    original = {"run": job.folder(place), "model": job.folder(place) / "model", "dense": job.teacher(place) / "model"}
    kind, opening = WAYS[way]
    for _ in range(2):  # the first compiles kernels, which others then find
        told = isolated(partial(in_folder, opening, original[kind], folder), EVIL)
    assert told.kind == "returned", told
    return original[kind], told


def attack(way: str, hostilities: list[Hostility], seed: int, folder: Path) -> Verdict:
    """Make a copy hostile, open it, and compare what it computes with what the original does."""
    original, truth = whole(way, folder)
    kind, opening = WAYS[way]
    rng = random.Random(seed)
    with place_for("hostile", folder, original) as target:
        for hostility in hostilities:
            try:
                hostility(target, rng)
            except (OSError, ValueError, TypeError, KeyError, RecursionError):
                continue  # the one before left nothing to do this to
        if rng.random() < 0.8:
            agree(target / "model" if kind == "run" else target)
        told = isolated(partial(in_folder, opening, target, folder), EVIL)
        return verdict(told, truth, marker_of(target).exists())


def in_folder(opening: Callable[[Path], str], target: Path, folder: Path) -> str:
    """Open a folder from inside it, where Python would find its modules."""
    os.chdir(target)
    sys.path.insert(0, "")
    with at_home(folder):
        return opening(target)


def verdict(told: Told, truth: Told, has_run: bool) -> Verdict:
    """Return what became of a folder, by what was told of it and of the original."""
    executed = set(told.executed) - set(truth.executed)  # which asks for the compiler's version
    if executed or has_run:
        return Verdict(EXECUTED, f"{', '.join(executed)} {told.what}")
    if told.kind == "returned":
        return Verdict(SAME) if told.what == truth.what else Verdict(SILENT, f"{told.what} instead of {truth.what}")
    if told.kind == "refused":
        lines = told.what.splitlines()
        return (
            Verdict(REFUSED)
            if len(lines) <= 3 and max(map(len, lines)) < 1000
            else Verdict("ill said", told.what[:500])
        )
    return Verdict(HANGS if told.kind in ("slow", "ended") else TRACEBACK, told.what)


# -- ways to open a folder ---------------------------------------------------------------------------


def digest(*found: torch.Tensor) -> str:
    """Return a digest of tensors."""
    return hashlib.sha256(b"".join(one.numpy().tobytes() for one in found)).hexdigest()[:16]


def computed(model: torch.nn.Module, folder: Path) -> str:
    """Return a digest of what a model computes of a few texts."""
    batch = load_tokenizer(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        return digest(model(**batch).logits)


def given(folder: Path) -> str:
    """Give a model to a run, as far as that checks it before training."""
    words = [*JOBS[NAME].words, f"model={folder}", f"data.cache_dir={folder.parent / 'cache'}"]
    cfg = compose(words)[0]
    kind = kind_of(cfg)
    spec = kind.spec(cfg)
    source = kind.source(spec)
    rows = kind.read(spec, source, cfg)
    check_models(RunInputs(cfg, RunFolder.of(cfg), spec, source, rows, folder, train_dense=run))
    return computed(load_stock(folder).eval(), folder)


def served(folder: Path) -> str:
    """Load the model of a run, as the server does, and let it answer."""
    from prunekit.serving.requests import Text

    (one,) = load_all([open_run(folder)], SERVED).values()
    texts = [Text("", (text,)) for text in TEXTS]
    return str(one.model.compute(one.model.read(texts)))


WAYS: dict[str, tuple[str, Callable[[Path], str]]] = {
    "prunekit.load": ("model", lambda folder: computed(prunekit.load(folder, "mask"), folder)),
    "the packed engine": ("model", lambda folder: digest(prunekit.load(folder, engine="packed")(TEXTS).logits)),
    "model=": ("dense", given),
    "prunekit serve": ("run", served),
}
