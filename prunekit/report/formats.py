"""Write a comparison table as Markdown, LaTeX or CSV, with its notes."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

from prunekit.report.comparison import TOGETHER, Cell
from prunekit.report.measures import Measure
from prunekit.report.seeds import LEVEL
from prunekit.report.table import Column, Table


def notes(table: Table, spread: str) -> list[str]:
    """Explain the marks and numbers that occur in a table."""
    cells = [cell for cell in table.cells if cell.values]
    counts = sorted({len(cell.values) for cell in cells})
    many = counts[-1:] > [1]
    lines = []
    if spread != "none" and many:
        what = "half the 95 % interval of the mean (Student's t)" if spread == "ci" else "standard deviation"
        lines.append(f"mean ± {what} over seeds; n = {', '.join(map(str, counts))}")
    elif many:
        lines.append(f"mean over seeds; n = {', '.join(map(str, counts))}")
    if any(cell.best for cell in cells):
        group = " and ".join(["column", *(name for name in table.rows if name in TOGETHER)])
        text = f"bold: best of its {group}, dense apart"
        if any(cell.p is not None for cell in cells) and table.test == "examples":
            text += (
                f"; * worse than it, p < {LEVEL}, on other texts with these seeds: paired bootstrap over test examples "
                "(one seed and accuracy: McNemar's exact test), corrected for the number of comparisons (Holm)"
            )
        elif table.test == "examples":
            text += "; no test: it needs the predictions that runs store"
        elif any(cell.p is not None for cell in cells):
            text += (
                f"; * worse than it, p < {LEVEL}: paired t-test over the seeds that both have, Welch's where they "
                "share fewer than two, corrected for the number of comparisons (Holm)"
            )
        else:
            text += "; no test: it needs two seeds or more"
        lines.append(text)
    if any(cell.missed for cell in cells):
        lines.append("† a run of it missed its budget")
    if len(counts) > 1:
        lines.append("(n) over that many seeds, where some have more")
    return lines


def words(cell: Cell, measure: Measure, spread: str, most: int) -> str:
    """Write a cell in plain characters: 61.20 ± 0.85*."""
    seeds = cell.summary
    if seeds is None:
        return cell.note or "-" * bool(cell.dense)
    text = f"{seeds.mean:.{measure.digits}f}{measure.unit}"
    width = {"ci": seeds.half, "sd": seeds.sd, "none": None}[spread]
    if width is not None:
        text += f" ± {width:.{measure.digits}f}"
    if cell.p is not None and cell.p < LEVEL:
        text += "*"
    if cell.missed:
        text += "†"
    return text + f" ({seeds.n})" * (seeds.n < most)


def title(table: Table, column: Column) -> str:
    """Name a column by the values of its fields, then the metric."""
    several = len({one.measure.name for one in table.columns}) > 1
    parts = [part for part in column.head if part]
    name = column.measure.name.replace("_", " ")
    if column.measure.name in ("score", "drop", "validation") and column.metric:
        metric = column.metric.replace("_", " ")
        name = metric if column.measure.name == "score" else f"{metric}, {name}"
    if not parts:
        return name
    return (
        f"{' '.join(parts)} {name}"
        if several or column.measure.tested or column.measure.name == "score"
        else " ".join(parts)
    )


def _most(table: Table) -> int:
    return max((len(cell.values) for cell in table.cells), default=1)


def markdown(table: Table, spread: str = "ci") -> str:
    """Write the table in Markdown, caption above and notes below."""
    heads = [*table.rows, *(title(table, column) for column in table.columns)]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(table.rows) + "---:|" * len(table.columns)]
    for head, cells in table.lines:
        texts = [
            words(cell, column.measure, spread, _most(table)) for cell, column in zip(cells, table.columns, strict=True)
        ]
        bold = [
            f"**{text}**" if cell.best else text.replace("*", "\\*") for text, cell in zip(texts, cells, strict=True)
        ]
        lines.append(f"| {' | '.join([*head, *bold])} |")
    below = [f"- {note.replace('*', chr(92) + '*')}" for note in notes(table, spread)]
    return "\n".join([table.caption, "", *lines, *([""] * bool(below)), *below]) + "\n"


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
}


def _latex(text: str) -> str:
    return "".join(LATEX.get(sign, f"\\{sign}" if sign in "&%$#_{}" else sign) for sign in text)


def latex(table: Table, spread: str = "ci") -> str:
    """Write the table in LaTeX, which needs the package booktabs alone."""
    heads = [*table.rows, *(title(table, column) for column in table.columns)]
    lines = [
        f"% {table.caption}; needs \\usepackage{{booktabs}}",
        f"\\begin{{tabular}}{{{'l' * len(table.rows)}{'r' * len(table.columns)}}}",
        "\\toprule",
        " & ".join(map(_latex, heads)) + r" \\",
        "\\midrule",
    ]
    for head, cells in table.lines:
        texts = []
        for cell, column in zip(cells, table.columns, strict=True):
            text = _latex(words(cell, column.measure, spread, _most(table))).replace("*", "$^*$")
            texts.append(f"\\textbf{{{text}}}" if cell.best else text)
        lines.append(" & ".join([*map(_latex, head), *texts]) + r" \\")
    below = [f"% {note}" for note in notes(table, spread)]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", *below]) + "\n"


def as_csv(table: Table, spread: str = "ci") -> str:
    """Write a line per cell with everything known about it, whatever `spread`; p is corrected, and against the best."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        [*table.rows, *table.cols, "measure", "metric", "n", "mean", "sd", "low", "high", "best", "p", "missed", "note"]
    )
    for head, cells in table.lines:
        for cell, column in zip(cells, table.columns, strict=True):
            if not cell.values and not cell.note:
                continue
            numbers = ["", "", "", "", ""]
            if (one := cell.summary) is not None:
                numbers = [
                    str(one.n),
                    *("" if x is None else f"{x:.6g}" for x in (one.mean, one.sd, one.low, one.high)),
                ]
            p = "" if cell.p is None else f"{cell.p:.4g}"
            marks = [str(int(cell.best)), p, str(int(cell.missed)), cell.note]
            writer.writerow([*head, *column.head, column.measure.name, column.metric, *numbers, *marks])
    return stream.getvalue()


WRITERS: dict[str, Callable[[Table, str], str]] = {"markdown": markdown, "latex": latex, "csv": as_csv}
