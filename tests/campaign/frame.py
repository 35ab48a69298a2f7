"""The frame of a campaign of attacks: each attack is a module `attack_<name>.py` here, and a row of the table.

An attack module has `TITLE`, what is attacked in the words of the table, `LONG` and `SHORT`, how many cases the long
campaign and the slow suite try, and `cases(count, rng, folder)`, which yields that many `Case`s drawn with `rng`; what
they write goes into `folder`, where they may keep what several need. A case does its harm, then what a user would do
next, and returns one of the outcomes below or a `Verdict`; a colon and a reason may follow an outcome.

Cases come in pieces, each drawn with a generator of its own, so that a campaign can be interrupted and go on.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

# nothing noticed and nothing changed; said and made good; refused in plain words with a way on that works
SAME, REPAIRED, REFUSED = "same result", "repaired", "refused"
SURVIVED = (SAME, REPAIRED, REFUSED)
# what must not happen
SILENT, DEAD_END, EXECUTED = "silent wrong result", "dead end", "executed code"
TRACEBACK, HANGS = "traceback", "does not end"
UNTRIED = "not attacked"  # the harm came too late to do any: counted apart
PIECE = 20  # cases that are drawn with one generator; a module may have its own
PATIENCE_S = 1800  # for one case: a campaign may run beside everything else


@dataclass(frozen=True)
class Case:
    """One attack: what is done, and the function that does it and returns the outcome."""

    name: str
    attack: Callable[[], str | Verdict]


@dataclass(frozen=True)
class Verdict:
    """The outcome of a case, why, and what else is counted, such as kills by what they interrupted."""

    outcome: str
    reason: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """What became of the cases of one attack so far; failures have a number, a name, an outcome and a reason each."""

    attack: str
    cases: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    failures: Sequence[Mapping[str, Any]] = ()
    seconds: float = 0.0

    @property
    def tried(self) -> int:
        """Number of cases in which harm was done."""
        return self.cases - self.outcomes.get(UNTRIED, 0)

    @property
    def survived(self) -> int:
        """Number of cases that came out as they may."""
        return sum(self.outcomes.get(outcome, 0) for outcome in SURVIVED)

    def with_case(self, name: str, verdict: Verdict, seconds: float) -> Row:
        """Return the row after one more case."""
        failure = {"number": self.cases, "case": name, "outcome": verdict.outcome, "reason": verdict.reason}
        has_failed = verdict.outcome not in (*SURVIVED, UNTRIED)
        return Row(
            self.attack,
            self.cases + 1,
            dict(Counter(self.outcomes) + Counter([verdict.outcome])),
            dict(Counter(self.counts) + Counter(verdict.counts)),
            [*self.failures, *[failure] * has_failed],
            self.seconds + seconds,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the row as it is committed."""
        return {
            "attack": self.attack,
            "cases": self.cases,
            "tried": self.tried,
            "survived": self.survived,
            "failed": self.tried - self.survived,
            "outcomes": dict(sorted(self.outcomes.items())),
            "counts": dict(sorted(self.counts.items())),
            "failures": list(self.failures),
            "seconds": round(self.seconds, 1),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Row:
        """Return a row that was committed."""
        names = ("attack", "cases", "outcomes", "counts", "failures", "seconds")
        return cls(**{name: content[name] for name in names})


def attacks() -> dict[str, Any]:
    """Return the attack modules by name."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("attack_*.py"))
    return {name.removeprefix("attack_"): importlib.import_module(f"campaign.{name}") for name in names}


def numbered(module: Any, seed: int, start: int, folder: Path) -> Iterator[Case]:
    """Yield the cases of an attack from number `start` on, without end: the same for the same seed."""
    size = getattr(module, "PIECE", PIECE)
    piece, skipped = divmod(start, size)
    while True:
        drawn = module.cases(size, random.Random(f"{module.TITLE} {seed} {piece}"), folder)
        yield from islice(drawn, skipped, None)
        piece, skipped = piece + 1, 0


def run_attack(
    module: Any, count: int, seed: int, folder: Path, row: Row | None = None, say: Callable[[str], None] | None = None
) -> Iterator[Row]:
    """Go on with an attack until it has had `count` cases; yield the row after each."""
    row = Row(module.TITLE) if row is None else row
    folder.mkdir(parents=True, exist_ok=True)
    for case in islice(numbered(module, seed, row.cases, folder), max(0, count - row.cases)):
        began = time.monotonic()
        verdict = judged(case)
        row = row.with_case(case.name, verdict, time.monotonic() - began)
        if say is not None:
            say(f"{module.TITLE}: {case.name}: {verdict.outcome} {verdict.reason[-200:]}".rstrip())
        yield row


def judged(case: Case) -> Verdict:
    """Run one case, for a limited time, and return what became of it."""
    try:
        with limited(PATIENCE_S):
            found = case.attack()
    except TimeoutError:
        return Verdict(HANGS, f"after {PATIENCE_S} s")
    except Exception as error:
        return Verdict(TRACEBACK, "".join(traceback.format_exception(error))[-1500:])
    return found if isinstance(found, Verdict) else Verdict(*found.split(": ", 1))


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so many seconds; for the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"{seconds} s are over")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def quietly() -> Iterator[io.StringIO]:
    """Collect what is printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        yield printed


@contextlib.contextmanager
def place_for(case: str, folder: Path, like: Path | None = None) -> Iterator[Path]:
    """Yield a folder of a case's own, a copy of `like` if there is one, and remove it afterwards."""
    outer = Path(tempfile.mkdtemp(prefix=f"{case}-", dir=folder))
    try:
        inner = outer / "place"
        if like is None:
            inner.mkdir()
        else:
            shutil.copytree(like, inner)
        yield inner
    finally:
        shutil.rmtree(outer, ignore_errors=True)
