"""A run's result as one table with remarks on budget and speed, for the terminal and for a README."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunekit.config.errors import shorten
from prunekit.console import clock
from prunekit.results.closing import advice, headline, next_commands
from prunekit.results.words import (
    DISTANCES,
    METRIC_NAMES,
    format_points,
    format_score,
    format_seconds,
    format_significant,
    noise,
    speed_verdict,
)
from prunekit.runs.result import Flops, Number, RunResult, Score, SpeedRow, Truncation


@dataclass(frozen=True)
class Row:
    """One line of the table, already in words; `tone` is good, bad or plain."""

    what: str
    dense: str
    pruned: str
    gain: str
    tone: str = "plain"


def _tone(change: Number) -> str:
    """Return the tone for a change of a score; less than one point is neither good nor bad."""
    return "plain" if abs(change) < 0.01 else "good" if change > 0 else "bad"


# -- the table ---------------------------------------------------------------------------------------


def title(result: RunResult) -> str:
    """Name a run by method, task, backbone and seed."""
    return f"{result.method} on {result.task}, {result.backbone}, seed {result.seed}"


def rows(result: RunResult) -> list[list[Row]]:
    """Return the lines of the table in sections: quality, quality by length, cost, speed."""
    return [section for section in (_quality(result), _bands(result), _cost(result), _speed(result)) if section]


def _quality(result: RunResult) -> list[Row]:
    score = result.score
    dense_all, pruned_all = score.dense_all or {}, score.pruned_all or {}
    every: dict[str, tuple[Number | None, Number]] = {score.metric: (score.dense, score.pruned)}
    for name, value in pruned_all.items():
        every.setdefault(name, (dense_all.get(name), value))
    found = []
    for name, (dense, pruned) in every.items():
        what = f"{metric_name(name, score)}, {score.rows} {score.split} {score.of or 'text'}s"
        if name in DISTANCES:
            found.append(Row(what, "-" if dense is None else f"{dense:.4f}", f"{pruned:.4f}", ""))
        elif dense is None:
            found.append(Row(what, "-", format_score(pruned), "-"))
        else:
            change = pruned - dense
            cells = format_score(dense), format_score(pruned), format_points(change)
            found.append(Row(what, *cells, _tone(change)))
    return found


def metric_name(name: str, score: Score) -> str:
    """Name a metric in words; F1 of one class with the class."""
    words = METRIC_NAMES.get(name) or name.replace("_", " ")
    return f"{words} of {shorten(score.positive, 40)}" if name == "f1" and score.positive is not None else words


def _bands(result: RunResult) -> list[Row]:
    """Return the score by length of the text, where a run asked for bands."""
    name = metric_name(result.score.metric, result.score)
    return [
        Row(
            f"{name}, {band.rows} of {band.low} to {band.below - 1} tokens",
            format_score(band.dense),
            format_score(band.pruned),
            f"{format_points(band.pruned - band.dense)} at {band.flops_vs_unpadded:.2f}x fewer FLOPs",
            _tone(band.pruned - band.dense),
        )
        for band in result.bands or ()
    ]


def _cost(result: RunResult) -> list[Row]:
    flops = result.flops
    one = flops.per or "text"
    pruned = format_significant(flops.pruned_g)
    unpadded = Row(
        f"GFLOPs{_part(flops)} per {one}, unpadded",
        format_significant(flops.dense_unpadded_g),
        pruned,
        f"{flops.flops_vs_unpadded:.2f}x fewer",
        "good" if flops.flops_vs_unpadded > 1.005 else "plain",
    )
    padded = Row(
        f"GFLOPs{_part(flops)} per {one}, padded to {flops.padded_to}",
        format_significant(flops.dense_padded_g),
        pruned,
        f"{flops.flops_vs_padded:.2f}x fewer",
    )
    layers = result.tokens_per_layer
    tokens = Row(
        f"tokens per {one}, mean of layers",
        format_significant(result.mean_length),
        format_significant(sum(layers) / len(layers)),
        " ".join(f"{count:.0f}" for count in layers) + " by layer",
    )
    return [unpadded, padded, tokens, *_translation(result)]


def _part(flops: Flops) -> str:
    """Name the part of the model that cost and speed are of, where it is not the whole."""
    return f" of the {flops.of}" if flops.of is not None else ""


def _translation(result: RunResult) -> list[Row]:
    """Return, of a translation, what reaches the decoder, and what encoder and decoder cost together."""
    if (found := result.translation) is None:
        return []
    whole = found.end_to_end
    lines = [
        Row("source tokens that reach the decoder", "100.0 %", f"{100 * found.source_kept:.1f} %", ""),
        Row(
            "GFLOPs with the decoder, one pass",
            format_significant(whole.dense_g),
            format_significant(whole.pruned_g),
            f"{whole.reduction:.2f}x fewer; {100 * whole.encoder_share:.0f} % of dense is the encoder",
        ),
    ]
    if found.dense.cpu_seconds and found.pruned.cpu_seconds:
        share = found.dense.encoder_cpu_seconds / found.dense.cpu_seconds
        lines.append(
            Row(
                f"CPU s of translating, {found.beams} beams",
                format_significant(found.dense.cpu_seconds),
                format_significant(found.pruned.cpu_seconds),
                f"{100 * share:.1f} % of dense is the encoder; not interleaved, an order of magnitude",
            )
        )
    return lines


def _speed(result: RunResult) -> list[Row]:
    found = []
    for row in result.speed:
        for layout, dense_ms, speedup in (
            ("packed", row.dense_packed_ms, row.speedup_vs_packed),
            ("padded", row.dense_padded_ms, row.speedup_vs_padded),
        ):
            words, tone = speed_verdict(speedup, noise(row.control))
            what = f"CPU ms{_part(result.flops)} per batch of {row.batch_size}, {layout}"
            found.append(Row(what, format_significant(dense_ms), format_significant(row.pruned_packed_ms), words, tone))
    return found


# -- the verdicts ------------------------------------------------------------------------------------


def verdicts(result: RunResult) -> list[tuple[str, str, str]]:
    """Return label, sentence and tone of each line below the table."""
    lines = [_budget_verdict(result), _goal_verdict(result), _served_budgets(result)]
    if result.speed and not result.is_dense:
        lines += [_speed_line(row, result.flops) for row in result.speed]
        lines.append(("clock", _clock(result.speed[0], result.flops.per or "text"), "plain"))
    if (threshold := result.score.null_threshold) is not None:
        lines.append(("no answer", f"where its logits exceed those of the best by more than {threshold:.3g}", "plain"))
    lines += _class_lines(result.score, dense_only=result.is_dense)
    if result.translation is not None:
        lines.append(("BLEU", result.translation.signature, "plain"))
    if cut := _cut_texts(result.truncated or {}):
        lines.append(("cut texts", cut, "plain"))
    return [line for line in lines if line[1]]


def _class_lines(score: Score, *, dense_only: bool) -> list[tuple[str, str, str]]:
    """Return which class F1 is of and how to have the other, and that a model answers one class only."""
    lines = []
    if score.positive is not None and score.negative is not None:
        first, second = shorten(score.negative, 40), shorten(score.positive, 40)
        other = shlex.quote(f"task.labels=[{second},{first}]")
        lines.append(("F1", f"of {second}, the second class; {other} makes it of {first}", "plain"))
    for model, name in (score.one_class or {}).items():
        if model == "dense" or not dense_only:
            what = f"the {model} model calls all {score.rows} {score.split} {score.of or 'text'}s {shorten(name, 40)}"
            lines.append(("one class", f"{what}: it has learnt nothing, or lost it", "bad"))
    return lines


def _goal_verdict(result: RunResult) -> tuple[str, str, str]:
    """Compare a latency that was asked for with the predicted, the measured and the feasible ones."""
    goal = result.goal
    if goal is None:
        return "goal", "", "plain"
    clock = "CPU time" if goal.clock == "cpu" else "wall time"
    threads = f"{goal.threads} thread" + "s" * (goal.threads > 1)
    low, high = goal.feasible_ms
    allowed = f"{100 * goal.tolerance:g} %"
    sentence = (
        f"{goal.asked_ms:g} ms asked per batch of {goal.batch}, {format_significant(goal.predicted_ms)} predicted, "
        f"{format_significant(goal.measured_ms)} measured (p95 {format_significant(goal.p95_ms)}): "
        + (f"met within {allowed}" if goal.met else f"MISSED, {allowed} allowed")
        + f"; feasible here: {format_significant(low)} to {format_significant(high)} ms; {clock} on {threads}, "
        + goal.dtype
        + _noise_remark(noise(goal.control))
    )
    return "goal", sentence, "good" if goal.met else "bad"


def _budget_verdict(result: RunResult) -> tuple[str, str, str]:
    budget = result.budget
    if result.is_dense:
        return "budget", "", "plain"
    tone = "good" if budget.met else "bad"
    if (knob := budget.knob) is not None:
        sentence = (
            f"{knob.name} {knob.asked:.3f} asked, {knob.reached:.3f} reached; "
            f"measured on {budget.split}: {budget.reached:.2f}x fewer FLOPs"
        )
        return "knob", sentence + ("" if budget.met else ": MISSED"), tone
    if budget.asked is None:
        return "budget", f"{budget.reached:.2f}x fewer FLOPs on {budget.split}; none was asked for", "plain"
    sentence = f"{budget.asked:.2f}x asked, {budget.reached:.2f}x on {budget.split}"
    allowed = f"{100 * budget.tolerance:g} %"
    if budget.met:
        return "budget", f"{sentence}: met within {allowed}", tone
    sentence += f": MISSED, {100 * (budget.asked / budget.reached - 1):+.1f} % FLOPs, {allowed} allowed"
    if budget.feasible is not None:
        sentence += f"; feasible here: {budget.feasible[0]:.2f}x to {budget.feasible[1]:.2f}x"
    return "budget", sentence, tone


def _served_budgets(result: RunResult) -> tuple[str, str, str]:
    """Return the score at each of the budgets that the model serves."""
    found = result.budgets or ()
    words = ", ".join(f"{one.budget} {format_score(one.score)}{'' if one.met else ' (MISSED)'}" for one in found)
    sentence = f"{words} {result.score.metric} on {result.score.split}, one model" if found else ""
    return "budgets", sentence, "good" if all(one.met for one in found) else "bad"


def _speed_line(row: SpeedRow, flops: Flops) -> tuple[str, str, str]:
    """Compare the measured with the nominal reduction, packed against packed."""
    measured, nominal, margin = row.speedup_vs_packed, flops.flops_vs_unpadded, noise(row.control)
    sentence = f"{measured:.2f}x where the FLOPs say {nominal:.2f}x: "
    tone = speed_verdict(measured, margin)[1]
    sentence += "dense is faster here" if tone == "bad" else f"{100 * measured / nominal:.0f} % of it is realised"
    return f"batch {row.batch_size}", sentence + _noise_remark(margin), "bad" if tone == "bad" else "plain"


def _noise_remark(margin: float) -> str:
    return f" (noise ±{100 * margin:.0f} %)" if margin > 0.05 else ""


def _clock(row: SpeedRow, per: str) -> str:
    """Explain what the milliseconds are."""
    texts = (row.batches or 0) * row.batch_size
    threads, rounds = ("?" if count is None else count for count in (row.threads, row.rounds))
    return (
        f"CPU time on {threads} thread, medians of {rounds} interleaved rounds over "
        f"{texts} {per}s in random order; padded = to the longest {per} of its batch"
    )


def _cut_texts(truncated: Mapping[str, Truncation]) -> str:
    """Count, by split, the texts that were longer than the model may see."""
    return ", ".join(f"{split} {cut.rows}" for split, cut in truncated.items() if cut.rows)


# -- output ------------------------------------------------------------------------------------------

_STYLES = {"good": "green", "bad": "bold red", "plain": ""}


def table(result: RunResult) -> Table:
    """Build the table for the terminal; no cell is cut, whatever the width."""
    found = Table(box=HORIZONTALS, pad_edge=False, header_style="bold")
    found.add_column("", no_wrap=True)
    found.add_column("dense", justify="right", no_wrap=True)
    if not result.is_dense:
        found.add_column(result.method, justify="right", no_wrap=True)
        found.add_column(f"{result.method} against dense", overflow="fold")
    sections = rows(result)
    for section in sections:
        for row in section:
            cells = [Text(row.what), Text(row.dense)]
            if not result.is_dense:
                cells += [Text(row.pruned), Text(row.gain, style=_STYLES[row.tone])]
            found.add_row(*cells)
        if section is not sections[-1]:
            found.add_section()
    return found


def print_result(
    result: RunResult, path: Path | str | None = None, *, stored: bool = False, console: Console | None = None
) -> None:
    """Print title, table, remarks and closing lines; `stored` is whether nothing was run, `path` is the run's folder.

    The closing lines are a verdict in one sentence, advice, and the commands that may come next.
    """
    found = [(label, Text(sentence, style=_STYLES[tone])) for label, sentence, tone in verdicts(result)]
    spent = None if stored else format_seconds(result.seconds or {}) or "done"
    closing = [("verdict", Text(sentence, style="bold")) for sentence in [headline(result)] if sentence]
    closing += [("advice", Text(sentence)) for sentence in advice(result)]
    report = Report(title(result), table(result), found, closing, [] if path is None else next_commands(result, path))
    print_report(report, path, spent, console)


@dataclass(frozen=True)
class Report:
    """What is printed of a finished run: a heading, a table, labelled remarks and closing lines, and commands."""

    heading: str
    body: Table
    remarks: Sequence[tuple[str, str | Text]]
    closing: Sequence[tuple[str, str | Text]] = ()
    commands: Sequence[tuple[str, str]] = ()  # what it does, and what to type


def print_report(report: Report, path: Path | str | None, spent: str | None, console: Console | None = None) -> None:
    """Print the result of a run of any kind, and the run's folder.

    `spent` is how long the run took; None = its result was stored and nothing was run. Without `path` neither is
    printed.
    """
    console = console or Console(highlight=False)
    console.print()
    console.print(Text(f" {report.heading}", style="bold"))
    console.print(report.body)
    console.print(_labelled(report.remarks))
    if report.closing:
        console.print()
        console.print(_labelled(report.closing))
    if path is not None:
        state = "stored result, nothing was run (force=true runs it again)" if spent is None else spent
        console.print(Text(f"\n {state}\n {path}", style="dim"), soft_wrap=True)
    if report.commands:
        console.print(Text("\n next", style="bold"))
        for purpose, command in report.commands:  # whole, so that it can be copied
            console.print(Text.assemble(f" {command}", (f"   # {purpose}", "dim")), soft_wrap=True)


def _labelled(lines: Iterable[tuple[str, str | Text]]) -> Table:
    """Return labelled sentences as a grid; a label that repeats is shown once."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    last = None
    for label, sentence in lines:
        grid.add_row("" if label == last else f" {label}", sentence)
        last = label
    return grid


def print_teacher(result: RunResult, path: Path | str, *, stored: bool, console: Console | None = None) -> None:
    """Print the result of a teacher in the middle of the run that learns from it: a line with its score."""
    score = result.score
    spent = "found, not trained again" if stored else f"trained in {clock((result.seconds or {}).get('total', 0))}"
    name = metric_name(score.metric, score)
    line = f"teacher    {spent}: {name} {format_score(score.dense)} on {score.rows} {score.split} {score.of or 'text'}s"
    (console or Console(highlight=False)).print(Text(line), soft_wrap=True)


def markdown(result: RunResult) -> str:
    """Write the same table and verdicts in Markdown, ending in a line break."""
    method = result.method
    if result.is_dense:
        lines = ["| | dense |", "|---|---:|"]
        lines += [f"| {row.what} | {row.dense} |" for section in rows(result) for row in section]
    else:
        lines = [f"| | dense | {method} | {method} against dense |", "|---|---:|---:|---|"]
        lines += [
            f"| {row.what} | {row.dense} | {row.pruned} | {row.gain} |" for section in rows(result) for row in section
        ]
    lines += ["", *(f"- {label}: {sentence}" for label, sentence, _ in verdicts(result))]
    return f"**{title(result)}**\n\n" + "\n".join(lines) + "\n"
