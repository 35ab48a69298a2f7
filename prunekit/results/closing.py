"""The closing lines of a run: the verdict in one sentence, advice, and the commands to type next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from prunekit.console import typed_path
from prunekit.results.words import noise
from prunekit.runs.result import RunResult, SpeedRow

POINT = 0.01  # of a score
MANY_CUT = 0.1  # share of the texts
LONGEST = 512  # tokens that nearly every encoder reads
FEW_ROWS = 300  # of a test
BUDGETS = (1.2, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)

# -- the verdict -------------------------------------------------------------------------------------


def headline(result: RunResult) -> str:
    """Return what pruning gained and what it cost, in a sentence; "" where nothing was pruned."""
    if result.is_dense:
        return ""
    flops = result.flops
    part = f" of the {flops.of}" if flops.of else ""
    change = result.score.pruned - result.score.dense
    joined = "and" if change > 0 else "for"
    cost = f"{flops.flops_vs_unpadded:.2f}x fewer FLOPs{part} {joined} {_points(change)}"
    speeds = sorted(result.speed, key=lambda row: row.batch_size, reverse=True)
    return "; ".join([cost, *([", ".join(_speeds(speeds))] if speeds else [])])


def _points(change: float) -> str:
    text = f"{100 * change:+.1f}"
    return "0.0 points" if float(text) == 0 else f"{text} points"


def _speeds(rows: Sequence[SpeedRow]) -> list[str]:
    """Return the measured ratio at each batch size; "faster" is said once."""
    said: list[str] = []
    for row in rows:
        ratio, margin, where = row.speedup_vs_packed, noise(row.control), f"at batch {row.batch_size}"
        if ratio >= 1 + margin:
            faster = " faster" * (not any("x faster" in words for words in said))
            said.append(f"{ratio:.1f}x{faster} {where}")
        elif is_slower(row):
            said.append(f"slower {where} ({ratio:.2f}x)")
        else:
            said.append(f"no faster {where}")
    return said


def is_slower(row: SpeedRow) -> bool:
    """Return whether the pruned model takes longer than the dense one, beyond the noise."""
    return row.speedup_vs_packed <= 1 / (1 + noise(row.control))


# -- advice ------------------------------------------------------------------------------------------


def advice(result: RunResult) -> list[str]:
    """Return what the numbers suggest, the gravest first."""
    found = [_collapse(result), _loss(result), _cut(result), _slow(result), _few(result)]
    return [sentence for sentence in found if sentence]


def _collapse(result: RunResult) -> str:
    models = result.score.one_class or {}
    model = next((name for name in ("dense", "pruned") if name in models), None)
    if model is None:
        return ""
    longer = "teacher.epochs" if model == "dense" and not result.is_dense else "trainer.epochs"
    return f"the {model} model predicts one class only: train longer ({longer}), or on more rows (data.train_rows)"


def _loss(result: RunResult) -> str:
    lost = result.score.dense - result.score.pruned
    if result.is_dense or lost < POINT:
        return ""
    reached = result.budget.reached if result.budget.asked is None else result.budget.asked
    milder = [budget for budget in BUDGETS if budget <= 0.85 * reached]
    if result.goal is not None:
        remedy = "a longer goal.latency_ms"
    elif result.budget.knob is not None:
        remedy = f"method.{result.budget.knob.name} below {result.budget.knob.asked:g}"
    elif milder:
        remedy = f"budget={milder[-1]:g}x"
    else:
        remedy = "another method"
    return f"{100 * lost:.1f} points are lost: try {remedy}, or train longer (trainer.epochs)"


def _cut(result: RunResult) -> str:
    cuts = [cut for cut in (result.truncated or {}).values() if cut.of]
    rows = sum(cut.of or 0 for cut in cuts)
    share = sum(cut.rows for cut in cuts) / rows if rows else 0.0
    length = next((cut.max_length for cut in cuts if cut.max_length), None)
    if share < MANY_CUT or length is None:
        return ""
    sentence = f"{100 * share:.0f} % of the texts are cut at {length} tokens"
    return f"{sentence}: try task.max_length={min(2 * length, LONGEST)}" if length < LONGEST else sentence


def _slow(result: RunResult) -> str:
    slow = [row for row in result.speed if is_slower(row)]
    if result.is_dense or not slow:
        return ""
    sizes = " and ".join(str(row.batch_size) for row in slow)
    fast = [row for row in result.speed if row.speedup_vs_packed >= 1 + noise(row.control)]
    remedy = "it pays for longer texts and larger batches"
    if fast:
        remedy = f"give it texts in batches, as of {fast[-1].batch_size}"
    return f"slower than dense at batch {sizes}: {remedy}; prunekit bench compares runtimes"


def _few(result: RunResult) -> str:
    score = result.score
    if score.rows >= FEW_ROWS:
        return ""
    share = min(0.95, max(0.05, score.pruned))
    error = 100 * math.sqrt(share * (1 - share) / score.rows)
    return (
        f"{score.rows} {score.split} {score.of or 'text'}s are few: a score is known to about ±{error:.1f} points; "
        "use more rows, or several seeds (-m seed=1,2,3)"
    )


# -- what to type next -------------------------------------------------------------------------------


def next_commands(result: RunResult, path: Path | str) -> list[tuple[str, str]]:
    """Return what can be done with a run in this folder, and the words to type; paths are quoted for a shell."""
    run = shlex.quote(f"run={path}")
    folder = Path(path)
    runs = folder.parents[4] if len(folder.parents) > 4 else folder
    found = [("compare all runs", f"prunekit report {typed_path(runs)}")]
    if result.labels_words:
        found.append(("your own words", f"prunekit predict {run} data=new.jsonl out=predicted.jsonl"))
    elif result.translation is None:
        found.append(("for ONNX Runtime", f"prunekit export {run}"))
    if result.gives_vectors:
        found.append(("vectors over HTTP", f"prunekit serve {run}"))
    elif not result.labels_words and result.translation is None and result.score.of in (None, "text"):
        found.append(("milliseconds beside other runtimes", f"prunekit bench {run}"))
        found.append(("your own texts", f"prunekit predict {run} data=new.csv out=predicted.csv"))
    call = ".encode(texts)" * result.gives_vectors
    return [*found, ("in Python", f"{'vectors' if call else 'model'} = prunekit.load({str(path)!r}){call}")]
