"""The frame of a campaign of attacks: each attack is a module `attack_<name>.py` here, and a row of the table.

An attack module has `TITLE`, what is attacked in the words of the table, and `cases(count, rng, folder)`, which yields
that many `Case`s drawn with `rng`; what they write goes into `folder`. A case does its harm, then what a user would do
next, and returns one of the outcomes below; a colon and a reason may follow it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# nothing noticed and nothing changed; said and made good; refused in plain words with a way on that works
SAME, REPAIRED, REFUSED = "same result", "repaired", "refused"
SURVIVED = (SAME, REPAIRED, REFUSED)
# what must not happen
SILENT, DEAD_END, TRACEBACK = "silent wrong result", "dead end", "traceback"


@dataclass(frozen=True)
class Case:
    """One attack: what is done, and the function that does it and returns the outcome."""

    name: str
    attack: Callable[[], str]


@dataclass(frozen=True)
class Row:
    """What became of the cases of one attack; failures have a name, an outcome and a reason each."""

    attack: str
    tried: int
    outcomes: Mapping[str, int]
    failures: Sequence[Mapping[str, str]]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the row as it is committed."""
        survived = sum(self.outcomes.get(outcome, 0) for outcome in SURVIVED)
        return {
            "attack": self.attack,
            "tried": self.tried,
            "survived": survived,
            "failed": self.tried - survived,
            "outcomes": dict(sorted(self.outcomes.items())),
            "failures": list(self.failures),
            "seconds": round(self.seconds, 1),
        }


def attacks() -> dict[str, Any]:
    """Return the attack modules by name."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("attack_*.py"))
    return {name.removeprefix("attack_"): importlib.import_module(f"campaign.{name}") for name in names}


def run_attack(module: Any, count: int, seed: int, folder: Path, say: Callable[[str], None] = lambda line: None) -> Row:
    """Run `count` cases of an attack and count what became of them."""
    began, outcomes, failures = time.monotonic(), Counter[str](), []
    for case in module.cases(count, random.Random(f"{module.TITLE} {seed}"), folder):
        try:
            outcome, _, reason = case.attack().partition(": ")
        except Exception as error:
            outcome, reason = TRACEBACK, "".join(traceback.format_exception(error))[-600:]
        outcomes[outcome] += 1
        if outcome not in SURVIVED:
            failures.append({"case": case.name, "outcome": outcome, "reason": reason})
        say(f"{module.TITLE}: {case.name}: {outcome} {reason[:200]}".rstrip())
    return Row(module.TITLE, sum(outcomes.values()), outcomes, failures, time.monotonic() - began)


@contextlib.contextmanager
def quietly() -> Iterator[io.StringIO]:
    """Collect what is printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        yield printed
