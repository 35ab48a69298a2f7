"""The result of a run that prunes weights: what is printed, and the card of its checkpoint."""

from __future__ import annotations

from pathlib import Path

from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table

from prunekit.results.summary import Report, print_report
from prunekit.results.words import format_score, format_seconds
from prunekit.runs.result import WeightRunResult

NO_FASTER = (
    "Unstructured zeros are stored densely and multiplied like any other number: this checkpoint is neither smaller "
    "nor faster than the dense model under ordinary kernels."
)

LOADED = (
    "```python\nfrom transformers import AutoModelForCausalLM\n\n"
    'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")\n```'
)

NOT_KEPT = "Weights were not kept (`method.save_weights=false`): the command below with `=true` makes them again."


def lines(result: WeightRunResult) -> list[tuple[str, str, str, str]]:
    """Return name, dense, pruned and the change of each measured number."""
    dense, pruned = result.dense, result.pruned
    found = []
    for what, tokens, was, now in (
        ("open perplexity", pruned.open_tokens, dense.open_perplexity, pruned.open_perplexity),
        ("domain perplexity", pruned.domain_tokens, dense.domain_perplexity, pruned.domain_perplexity),
    ):
        found.append((f"{what}, {tokens} tokens", f"{was:.2f}", f"{now:.2f}", f"{now / was:.2f}x"))
    questions = f", {pruned.choice_rows} questions"
    for what, before, after in (
        (f"choice accuracy{questions}", dense.choice_accuracy, pruned.choice_accuracy),
        (f"choice macro f1{questions}", dense.choice_macro_f1, pruned.choice_macro_f1),
        ("rouge1", dense.rouge1, pruned.rouge1),
        ("rouge2", dense.rouge2, pruned.rouge2),
        ("rougeL", dense.rouge_l, pruned.rouge_l),
    ):
        if before is not None and after is not None:
            change = f"{100 * (after - before):+.2f} points"
            found.append((what, format_score(before), format_score(after), change))
    return found


def remarks(result: WeightRunResult) -> list[tuple[str, str]]:
    """Return label and sentence of each line below the table."""
    sparsity = result.sparsity
    found = [
        (
            "sparsity",
            f"{100 * sparsity.of_prunable:.2f} % of the {sparsity.prunable} prunable weights, "
            f"{100 * sparsity.of_model:.2f} % of the model's {sparsity.parameters}; per matrix "
            f"{100 * sparsity.matrix_min:.2f} to {100 * sparsity.matrix_max:.2f} %",
        )
    ]
    for stream, text in result.calibration.items():
        remark = f"{text.samples} samples, {text.tokens} tokens of {text.file or 'generated text'}"
        if text.overlap:
            remark += f"; {text.overlap} documents left out as they are also measured on"
        found.append((f"{stream} text", remark))
    if (semi := result.semi_structured) is not None:
        remark = f"torch's semi-structured format took {semi.converted} of {semi.matrices} matrices here"
        found.append(("2:4", remark + (f" ({semi.why_not})" if semi.why_not else "")))
    found.append(("speed", NO_FASTER))
    return found


def print_result(
    result: WeightRunResult,
    path: Path | str | None = None,
    *,
    stored: bool = False,
    console: Console | None = None,
) -> None:
    """Print title, table and remarks; `stored` is whether nothing was run, `path` is the run's folder."""
    table = Table(box=HORIZONTALS, pad_edge=False, header_style="bold")
    for name in ("", "dense", "pruned", "change"):
        table.add_column(name, no_wrap=True, justify="left" if not name else "right")
    for row in lines(result):
        table.add_row(*row)
    spent = f"{format_seconds(result.seconds)}, at most {result.peak_memory_mib:.0f} MiB of memory"
    print_report(Report(title(result), table, remarks(result)), path, None if stored else spent, console)


def title(result: WeightRunResult) -> str:
    """Name a run by the method's variant, task, backbone and seed."""
    return f"{result.variant} on {result.task}, {result.backbone}, seed {result.seed}"


def card(result: WeightRunResult, base_model: str | None = None, *, weights: bool = True) -> str:
    """Write README.md of the checkpoint's folder, with metadata for the Hugging Face hub.

    `weights` is whether the folder holds any.
    """
    # slow to import, and a stored result is printed without it
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        base_model=base_model,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["prunekit", "weight-pruning", "sparse", result.method],
    )
    table = ["| | dense | pruned | change |", "|---|---:|---:|---:|"]
    table += [f"| {' | '.join(row)} |" for row in lines(result)]
    sections = [
        f"# {title(result)}",
        f"`{result.backbone}` with {100 * result.sparsity.of_prunable:.1f} % of the weights of its blocks "
        f"set to 0. **{NO_FASTER}**",
        "## Measured\n\n" + "\n".join(table),
        "\n".join(f"- {label}: {sentence}" for label, sentence in remarks(result)[:-1]),
        "## Use\n\n" + (LOADED if weights else NOT_KEPT) + "\n\n"
        "`masks.safetensors` has a bit per weight (1 = kept; eight columns per byte, the first in the lowest bit). "
        "Fine-tune with `prunekit.weights.enforce.MaskEnforcer`, which keeps zeros zero; keep LoRA as an adapter, "
        "merging it fills them.",
        f"## Made by\n\n```bash\n{result.command}\n```\n\nRun `{result.hash}`.",
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"))
