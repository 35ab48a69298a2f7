"""The result of a run that prunes weights: what is printed, and the card of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table

from prunekit.results.summary import print_report, shown_score

Result = Mapping[str, Any]

NO_FASTER = (
    "Unstructured zeros are stored densely and multiplied like any other number: this checkpoint is neither smaller "
    "nor faster than the dense model under ordinary kernels."
)

LOADED = (
    "```python\nfrom transformers import AutoModelForCausalLM\n\n"
    'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")\n```'
)

NOT_KEPT = "Weights were not kept (`method.save_weights=false`): the command below with `=true` makes them again."
LOWER_IS_BETTER = ("open_perplexity", "domain_perplexity")


def lines(result: Result) -> list[tuple[str, str, str, str]]:
    """What, dense, pruned and the change of each measured number."""
    dense, pruned = result["dense"], result["pruned"]
    found = []
    for stream in ("open", "domain"):
        was, now = dense[f"{stream}_perplexity"], pruned[f"{stream}_perplexity"]
        what = f"{stream} perplexity, {pruned[f'{stream}_tokens']} tokens"
        found.append((what, f"{was:.2f}", f"{now:.2f}", f"{now / was:.2f}x"))
    for name in ("choice_accuracy", "choice_macro_f1", "rouge1", "rouge2", "rougeL"):
        if name in pruned:
            rows = f", {pruned['choice_rows']} questions" if name.startswith("choice") else ""
            was, now = dense[name], pruned[name]
            what = f"{name.replace('_', ' ')}{rows}"
            found.append((what, shown_score(was), shown_score(now), f"{100 * (now - was):+.2f} points"))
    return found


def remarks(result: Result) -> list[tuple[str, str]]:
    """Label and sentence of each line below the table."""
    sparsity = result["sparsity"]
    found = [
        (
            "sparsity",
            f"{100 * sparsity['of_prunable']:.2f} % of the {sparsity['prunable']} prunable weights, "
            f"{100 * sparsity['of_model']:.2f} % of the model's {sparsity['parameters']}; per matrix "
            f"{100 * sparsity['matrix_min']:.2f} to {100 * sparsity['matrix_max']:.2f} %",
        )
    ]
    for stream, about in result["calibration"].items():
        remark = f"{about['samples']} samples, {about['tokens']} tokens of {about['file'] or 'generated text'}"
        if about["overlap"]:
            remark += f"; {about['overlap']} documents left out as they are also measured on"
        found.append((f"{stream} text", remark))
    if semi := result.get("semi_structured"):
        remark = f"torch's semi-structured format took {semi['converted']} of {semi['matrices']} matrices here"
        found.append(("2:4", remark + (f" ({semi['why_not']})" if semi["why_not"] else "")))
    found.append(("speed", NO_FASTER))
    return found


def print_result(
    result: Result, path: Path | str | None = None, *, stored: bool = False, console: Console | None = None
) -> None:
    """Prints title, table and remarks; `stored` says that nothing was run, `path` is the run's folder."""
    table = Table(box=HORIZONTALS, pad_edge=False, header_style="bold")
    for name in ("", "dense", "pruned", "change"):
        table.add_column(name, no_wrap=True, justify="left" if not name else "right")
    for row in lines(result):
        table.add_row(*row)
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result["seconds"].items())
    took = f"{spent}, at most {result['peak_memory_mib']:.0f} MiB of memory"
    print_report(title(result), table, remarks(result), path, None if stored else took, console)


def title(result: Result) -> str:
    """What was run."""
    return f"{result['variant']} on {result['task']}, {result['backbone']}, seed {result['seed']}"


def card(result: Result, base_model: str | None = None, *, weights: bool = True) -> str:
    """README.md of the checkpoint's folder, with metadata for the Hugging Face hub; `weights`: whether it has any."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        base_model=base_model,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["prunekit", "weight-pruning", "sparse", str(result["method"])],
    )
    table = ["| | dense | pruned | change |", "|---|---:|---:|---:|"]
    table += [f"| {' | '.join(row)} |" for row in lines(result)]
    sections = [
        f"# {title(result)}",
        f"`{result['backbone']}` with {100 * result['sparsity']['of_prunable']:.1f} % of the weights of its blocks "
        f"set to 0. **{NO_FASTER}**",
        "## Measured\n\n" + "\n".join(table),
        "\n".join(f"- {label}: {sentence}" for label, sentence in remarks(result)[:-1]),
        "## Use\n\n" + (LOADED if weights else NOT_KEPT) + "\n\n"
        "`masks.safetensors` says which weights stay (1 = kept, eight columns per byte, the first in the lowest bit). "
        "Fine-tune with `prunekit.weights.enforce.MaskEnforcer`, which keeps zeros zero; keep LoRA as an adapter, "
        "merging it fills them.",
        f"## Made by\n\n```bash\n{result['command']}\n```\n\nRun `{result['hash']}`.",
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"))
