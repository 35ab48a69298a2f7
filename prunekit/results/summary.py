"""A result as one table and a few one-line verdicts, for the terminal and for a README."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table
from rich.text import Text

Result = Mapping[str, Any]
NOISE = 0.02  # a measured ratio this near to 1 says nothing, even on a quiet machine


@dataclass(frozen=True)
class Row:
    """One line of the table, already worded; `tone` is good, bad or plain."""

    what: str
    dense: str
    pruned: str
    gain: str
    tone: str = "plain"


# -- numbers into words ------------------------------------------------------------------------------


def shown_score(value: float | int) -> str:
    """Scores as the literature writes them: in hundredths, two decimals."""
    return f"{100 * value:.2f}"


def points(change: float | int) -> str:
    """A change of a score in points (hundredths) with its sign."""
    shown = f"{100 * change:+.2f}"
    return "0.00 points" if float(shown) == 0 else f"{shown} points"


def significant(value: float | int, digits: int = 3) -> str:
    """At least `digits` significant digits, and never fewer than the whole part has: 1234, 12.3, 0.0123."""
    if value == 0:
        return "0"
    decimals = 0
    while abs(value) * 10**decimals < 10 ** (digits - 1) and decimals < 8:
        decimals += 1
    return f"{value:.{decimals}f}"


def noise(row: Mapping[str, Any]) -> float:
    """How far a ratio of this measurement may be from 1 without meaning anything: by its A/A control, at least 2 %."""
    control = float(row.get("control", 1.0))
    return max(NOISE, abs(control - 1), abs(1 / control - 1))


def speed_verdict(ratio: float | int, margin: float | int) -> tuple[str, str]:
    """The words and the tone for a measured ratio dense / pruned."""
    if ratio >= 1 + margin:
        return f"{ratio:.2f}x faster", "good"
    if ratio <= 1 / (1 + margin):
        return f"{ratio:.2f}x: dense is faster here", "bad"
    return f"{ratio:.2f}x: no difference", "plain"


# -- the table ---------------------------------------------------------------------------------------


def is_dense(result: Result) -> bool:
    """Whether nothing was pruned, so that there is nothing to compare."""
    return str(result["method"]) == "dense"


def title(result: Result) -> str:
    """What was run."""
    return f"{result['method']} on {result['task']}, {result['backbone']}, seed {result['seed']}"


def rows(result: Result) -> list[list[Row]]:
    """The lines of the table in sections: quality, cost, speed."""
    return [section for section in (_quality(result), _bands(result), _cost(result), _speed(result)) if section]


def _quality(result: Result) -> list[Row]:
    score = result["score"]
    every = {score["metric"]: (score["dense"], score["pruned"])}
    for name, value in score.get("pruned_all", {}).items():
        every.setdefault(name, (score.get("dense_all", {}).get(name), value))
    found = []
    for name, (dense, pruned) in every.items():
        known = dense is not None
        change = pruned - dense if known else 0.0
        tone = "plain" if not known or abs(change) < 0.01 else "good" if change > 0 else "bad"
        found.append(
            Row(
                f"{name.replace('_', ' ')}, {score['rows']} {score['split']} {score.get('of', 'text')}s",
                shown_score(dense) if known else "-",
                shown_score(pruned),
                points(change) if known else "-",
                tone,
            )
        )
    return found


def _bands(result: Result) -> list[Row]:
    """The score by length of the text, where a run asked for bands."""
    name = result["score"]["metric"].replace("_", " ")
    found = []
    for band in result.get("bands", []):
        change = band["pruned"] - band["dense"]
        found.append(
            Row(
                f"{name}, {band['rows']} of {band['from']} to {band['below'] - 1} tokens",
                shown_score(band["dense"]),
                shown_score(band["pruned"]),
                f"{points(change)} at {band['flops_vs_unpadded']:.2f}x fewer FLOPs",
                "plain" if abs(change) < 0.01 else "good" if change > 0 else "bad",
            )
        )
    return found


def _cost(result: Result) -> list[Row]:
    flops = result["flops"]
    one = flops.get("per", "text")
    of = f" of the {flops['of']}" if "of" in flops else ""
    pruned = significant(flops["pruned_g"])
    unpadded = Row(
        f"GFLOPs{of} per {one}, unpadded",
        significant(flops["dense_unpadded_g"]),
        pruned,
        f"{flops['flops_vs_unpadded']:.2f}x fewer",
        "good" if flops["flops_vs_unpadded"] > 1.005 else "plain",
    )
    padded = Row(
        f"GFLOPs{of} per {one}, padded to {flops['padded_to']}",
        significant(flops["dense_padded_g"]),
        pruned,
        f"{flops['flops_vs_padded']:.2f}x fewer",
    )
    layers = result["tokens_per_layer"]
    tokens = Row(
        f"tokens per {one}, mean of layers",
        significant(result["mean_length"]),
        significant(sum(layers) / len(layers)),
        " ".join(f"{count:.0f}" for count in layers) + " by layer",
    )
    return [unpadded, padded, tokens, *_translating(result)]


def _translating(result: Result) -> list[Row]:
    """Of a translation: what reaches the decoder, and what encoder and decoder cost together."""
    if "translation" not in result:
        return []
    found = result["translation"]
    whole, kept = found["end_to_end"], found["source_kept"]
    clock = {name: found[name].get("cpu_seconds") for name in ("dense", "pruned")}
    rows = [
        Row("source tokens that reach the decoder", "100.0 %", f"{100 * kept:.1f} %", ""),
        Row(
            "GFLOPs with the decoder, one pass",
            significant(whole["dense_g"]),
            significant(whole["pruned_g"]),
            f"{whole['reduction']:.2f}x fewer; {100 * whole['encoder_share']:.0f} % of dense is the encoder",
        ),
    ]
    if all(clock.values()):
        rows.append(
            Row(
                f"CPU s of translating, {found['beams']} beams",
                significant(clock["dense"]),
                significant(clock["pruned"]),
                f"{100 * found['dense']['encoder_cpu_seconds'] / clock['dense']:.1f} % of dense is the encoder; "
                "not interleaved, an order of magnitude",
            )
        )
    return rows


def _speed(result: Result) -> list[Row]:
    found = []
    of = f" of the {result['flops']['of']}" if "of" in result["flops"] else ""
    for row in result["speed"]:
        for layout in ("packed", "padded"):
            words, tone = speed_verdict(row[f"speedup_vs_{layout}"], noise(row))
            found.append(
                Row(
                    f"CPU ms{of} per batch of {row['batch_size']}, {layout}",
                    significant(row[f"dense_{layout}_ms"]),
                    significant(row["pruned_packed_ms"]),
                    words,
                    tone,
                )
            )
    return found


# -- the verdicts ------------------------------------------------------------------------------------


def verdicts(result: Result) -> list[tuple[str, str, str]]:
    """Label, sentence and tone of each line below the table."""
    lines = [_budget_verdict(result), _goal_verdict(result)]
    if not is_dense(result):
        lines += [_speed_line(row, result["flops"]) for row in result["speed"]]
        if result["speed"]:
            lines.append(("clock", _clock(result["speed"][0], result["flops"].get("per", "text")), "plain"))
    if (threshold := result["score"].get("null_threshold")) is not None:
        lines.append(("no answer", f"where its logits exceed those of the best by more than {threshold:.3g}", "plain"))
    if "translation" in result:
        lines.append(("BLEU", result["translation"]["signature"], "plain"))
    if cut := _truncated(result.get("truncated", {})):
        lines.append(("cut texts", cut, "plain"))
    return [line for line in lines if line[1]]


def _goal_verdict(result: Result) -> tuple[str, str, str]:
    """A latency that was asked for: what was predicted and measured, and what would have been feasible."""
    goal = result.get("goal")
    if goal is None:
        return "goal", "", "plain"
    clock = "CPU time" if goal["clock"] == "cpu" else "wall time"
    threads = f"{goal['threads']} thread" + "s" * (goal["threads"] > 1)
    low, high = goal["feasible_ms"]
    sentence = (
        f"{goal['asked_ms']:g} ms asked per batch of {goal['batch']}, {significant(goal['predicted_ms'])} predicted, "
        f"{significant(goal['measured_ms'])} measured (p95 {significant(goal['p95_ms'])}): "
        + (
            f"met within {100 * goal['tolerance']:g} %"
            if goal["met"]
            else f"MISSED, {100 * goal['tolerance']:g} % allowed"
        )
        + f"; feasible here: {significant(low)} to {significant(high)} ms; {clock} on {threads}, {goal['dtype']}"
    )
    if (margin := noise(goal)) > 0.05:
        sentence += f" (noise ±{100 * margin:.0f} %)"
    return "goal", sentence, "good" if goal["met"] else "bad"


def _budget_verdict(result: Result) -> tuple[str, str, str]:
    budget = result["budget"]
    asked, reached = budget["asked"], budget.get("reached")
    if is_dense(result) or reached is None:
        return "budget", "", "plain"
    if knob := budget.get("knob"):
        sentence = (
            f"{knob['name']} {knob['asked']:.3f} asked, {knob['reached']:.3f} reached; "
            f"measured on {budget['split']}: {reached:.2f}x fewer FLOPs"
        )
        return "knob", sentence + ("" if budget["met"] else ": MISSED"), "good" if budget["met"] else "bad"
    if asked is None:
        return "budget", f"{reached:.2f}x fewer FLOPs on {budget['split']}; none was asked for", "plain"
    found = f"{asked:.2f}x asked, {reached:.2f}x on {budget['split']}"
    tolerance = f"{100 * budget['tolerance']:g} %"
    if budget["met"]:
        return "budget", f"{found}: met within {tolerance}", "good"
    sentence = f"{found}: MISSED, {100 * (asked / reached - 1):+.1f} % FLOPs, {tolerance} allowed"
    if feasible := budget.get("feasible"):
        sentence += f"; feasible here: {feasible[0]:.2f}x to {feasible[1]:.2f}x"
    return "budget", sentence, "bad"


def _speed_line(row: Mapping[str, Any], flops: Mapping[str, Any]) -> tuple[str, str, str]:
    """How much of the nominal reduction the clock shows, packed against packed."""
    measured, nominal, margin = row["speedup_vs_packed"], flops["flops_vs_unpadded"], noise(row)
    sentence = f"{measured:.2f}x where the FLOPs say {nominal:.2f}x: "
    tone = speed_verdict(measured, margin)[1]
    sentence += "dense is faster here" if tone == "bad" else f"{100 * measured / nominal:.0f} % of it is realised"
    if margin > 0.05:
        sentence += f" (noise ±{100 * margin:.0f} %)"
    return f"batch {row['batch_size']}", sentence, "bad" if tone == "bad" else "plain"


def _clock(row: Mapping[str, Any], per: str) -> str:
    """What the milliseconds are."""
    texts = row.get("batches", 0) * row["batch_size"]
    return (
        f"CPU time on {row.get('threads', '?')} thread, medians of {row.get('rounds', '?')} interleaved rounds over "
        f"{texts} {per}s in random order; padded = to the longest {per} of its batch"
    )


def _truncated(truncated: Mapping[str, Any]) -> str:
    """How many texts of each split were longer than the model may see."""
    found = []
    for split, entry in truncated.items():
        cut = entry.get("rows", 0) if isinstance(entry, Mapping) else entry
        if cut:
            found.append(f"{split} {cut}")
    return ", ".join(found)


# -- output ------------------------------------------------------------------------------------------

_STYLES = {"good": "green", "bad": "bold red", "plain": ""}


def table(result: Result) -> Table:
    """The table; no cell is cut, whatever the width."""
    found = Table(box=HORIZONTALS, pad_edge=False, header_style="bold")
    found.add_column("", no_wrap=True)
    found.add_column("dense", justify="right", no_wrap=True)
    if not is_dense(result):
        found.add_column(str(result["method"]), justify="right", no_wrap=True)
        found.add_column(f"{result['method']} against dense", overflow="fold")
    sections = rows(result)
    for section in sections:
        for row in section:
            cells = [Text(row.what), Text(row.dense)]
            if not is_dense(result):
                cells += [Text(row.pruned), Text(row.gain, style=_STYLES[row.tone])]
            found.add_row(*cells)
        if section is not sections[-1]:
            found.add_section()
    return found


def print_result(
    result: Result, path: Path | str | None = None, *, stored: bool = False, console: Console | None = None
) -> None:
    """Prints title, table and verdicts; `stored` says that nothing was run, `path` is the run's folder."""
    found = [(label, Text(sentence, style=_STYLES[tone])) for label, sentence, tone in verdicts(result)]
    print_report(title(result), table(result), found, path, None if stored else _seconds(result), console)


def print_report(
    heading: str,
    body: Table,
    remarks: Iterable[tuple[str, str | Text]],
    path: Path | str | None,
    spent: str | None,
    console: Console | None = None,
) -> None:
    """Prints the result of a run of any kind: a heading, a table, labelled remarks, and where the run lies.

    `spent` says what the run took; None = it was not run, its result was stored. Without `path` neither is said.
    """
    console = console or Console(highlight=False)
    console.print()
    console.print(Text(f" {heading}", style="bold"))
    console.print(body)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, sentence in remarks:
        grid.add_row(f" {label}", sentence)
    console.print(grid)
    if path is not None:
        state = "stored result, nothing was run (force=true runs it again)" if spent is None else spent
        console.print(Text(f"\n {state}\n {path}", style="dim"), soft_wrap=True)


def _seconds(result: Result) -> str:
    spent = [
        f"{name} {seconds:.0f} s"
        for name, seconds in result.get("seconds", {}).items()
        if isinstance(seconds, int | float)
    ]
    return ", ".join(spent) or "done"


def markdown(result: Result) -> str:
    """The same table and verdicts in Markdown, ending in a line break."""
    method = result["method"]
    if is_dense(result):
        lines = ["| | dense |", "|---|---:|"]
        lines += [f"| {row.what} | {row.dense} |" for section in rows(result) for row in section]
    else:
        lines = [f"| | dense | {method} | {method} against dense |", "|---|---:|---:|---|"]
        lines += [
            f"| {row.what} | {row.dense} | {row.pruned} | {row.gain} |" for section in rows(result) for row in section
        ]
    lines += ["", *(f"- {label}: {sentence}" for label, sentence, _ in verdicts(result))]
    return f"**{title(result)}**\n\n" + "\n".join(lines) + "\n"
