"""Settings drawn from the comments of conf/: each is taken as it was meant, or refused by name before anything runs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from campaign.config_values import EITHER, REFUSED, Typed, draw
from campaign.frame import REFUSED as SAID_NO
from campaign.frame import SAME, SILENT, Case, Verdict
from prunekit.config.composition import compose
from prunekit.config.errors import SHOWN, ConfigError
from prunekit.config.keys import Key, declared, flatten
from prunekit.config.validation import validate
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import canonical
from prunekit.runs.kinds import kind_of, method_options, target_of

TITLE = "settings"
LONG, SHORT = 1500, 8
PART = 200
TOKENS = ("dense", "random", "first", "topk", "threshold", "ltp", "top", "lat", "tsdtp", "dtp")
WEIGHTS = ("magnitude", "wanda", "gblm", "sparsegpt", "dpruner")
LABELLED = ("bbc_news", "cola", "mnli", "stsb", "csv", "hub", "synthetic")
CORPORA = ("domain_legal", "domain_medical", "domain_text")
ENCODERS = ("tiny", "minilm", "bert_base", "roberta_base", "distilbert_base")
GROUPS = ("method", "task", "backbone", "trainer")
DECODERS = ("tiny_decoder", "smollm2")


def cases(count: int, rng: random.Random, folder: Path) -> Iterator[Case]:
    """Yield command lines: a method, a task and a backbone, and one or two settings of any of their keys."""
    for _ in range(count):
        if rng.random() < 0.8:
            base = rng.choice(TOKENS), rng.choice(LABELLED), rng.choice(ENCODERS)
        else:
            base = rng.choice(WEIGHTS), rng.choice(CORPORA), rng.choice(DECODERS)
        if rng.random() < 0.12:
            setting = misspelt(rng, keys_of(base))
            yield Case(f"{' '.join(base)}: {setting!r}", partial(refused, words_of(base), setting))
            continue
        key = rng.choice(keys_of(base))
        typed = draw(key.domain, key.nullable, rng)
        # which chooses none of its options, or is short for logger.trackio.enabled=true
        if key.domain == "block" and key.path.startswith("logger") and typed.text in ("[]", "true"):
            typed = Typed(typed.text, EITHER)
        extra = ["budget=null"] if key.knob and rng.random() < 0.5 else []
        case = f"{' '.join([*base, *extra])}: {key.path}={typed.text[:SHOWN]!r}"
        yield Case(case, partial(attack, [*words_of(base), *extra], key, typed.text, typed.value))


def words_of(base: Sequence[str]) -> list[str]:
    """Return the command line for a method, a task and a backbone."""
    return [f"{group}={name}" for group, name in zip(("method", "task", "backbone"), base, strict=True)]


@cache
def keys_of(base: tuple[str, str, str]) -> list[Key]:
    """Return every key that a command line may set."""
    return list(declared(compose(words_of(base))[1]).values())


def misspelt(rng: random.Random, keys: Sequence[Key]) -> str:
    """Return a setting of a key, an option or a form that there is not."""
    path = rng.choice(keys).path
    spot = rng.randrange(len(path))
    return rng.choice(
        (
            f"{path[:spot]}{rng.choice('qzx')}{path[spot:]}=1",
            f"{path}.deeper=1",
            f"~{path}",
            f"+{path}x=1",
            f"++nothing.{path}=1",
            f"{path}",
            f"{path} = = 1",
            f"{rng.choice(GROUPS)}={rng.choice(('../x', 'topkk', '/etc/passwd', '7', 'a/b', '[]'))}",
            f"{path.upper()}=1",
            f"{path}@x=1",
        )
    )


def checked(words: Sequence[str]) -> dict[str, Any]:
    """Compose and check a configuration as a run does before it reads or trains anything. Raises ConfigError."""
    cfg, choices = compose(words)
    validate(cfg, choices)
    kind = kind_of(cfg)
    kind.spec(cfg)
    target_of(cfg).Options.from_config(method_options(cfg))
    RunFolder.of(canonical(cfg))
    return cfg


def attack(words: Sequence[str], key: Key, text: str, wanted: Any) -> Verdict:
    """Give one setting, and compare what became of it with what it means."""
    try:
        cfg = checked([*words, f"{key.path}={text}"])
    except ConfigError as error:
        counts = {"refused as it should": int(wanted is REFUSED)}
        return ill_said(str(error), key.path, text) or Verdict(SAID_NO, counts=counts)
    found = flatten(cfg).get(key.path)
    if wanted is REFUSED:
        return Verdict(SILENT, f"accepted as {found!r}")
    if wanted is not EITHER and (found != wanted or type(found) is not type(wanted)):
        return Verdict(SILENT, f"meant {wanted!r}, became {found!r}")
    return Verdict(SAME, counts={"taken as it was meant": 1})


def refused(words: Sequence[str], setting: str) -> Verdict:
    """Give a setting that there is not; the message must name a part of it."""
    try:
        checked([*words, setting])
    except ConfigError as error:
        name = setting.lstrip("+~").partition("=")[0].partition("@")[0].strip()
        return ill_said(str(error), name, setting) or Verdict(SAID_NO, counts={"refused as it should": 1})
    return Verdict(SILENT, "accepted")


def ill_said(message: str, path: str, text: str) -> Verdict | None:
    """Return what is wrong with a refusal; None if it names the key, in three lines, and shows little of the value."""
    lines = message.splitlines()
    if len(lines) > 3:
        return Verdict("ill said", f"{len(lines)} lines: {message[:400]}")
    if path.rpartition(".")[2].lower() not in message.lower():
        return Verdict("ill said", f"does not name {path}: {message[:400]}")
    if len(text) > 2 * SHOWN and text[: SHOWN + 10] in message:
        return Verdict("ill said", f"shows all of the value: {message[:400]}")
    return None
