"""How far imported checkpoints are from what their repositories computed.

python benchmarks/golden.py folders=[checkpoints/top,checkpoints/ltp]
python benchmarks/golden.py    # the tables again, from benchmarks/results/golden.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from prunekit.bench.table import put_table
from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script
from prunekit.config.errors import DONE, MISSED, ConfigError
from prunekit.files import atomic_write_text
from prunekit.models.pretrained import load_hf
from prunekit.pipelines.imports.importing import import_checkpoint
from prunekit.pipelines.imports.published import Given, read_settings, read_tensors
from prunekit.tokens.state import Trace

ROOT = Path(__file__).parents[1]
SETTINGS = Path(__file__).with_suffix(".yaml")
STORED = ROOT / "benchmarks" / "results" / "golden.json"
GOLDEN = "golden_logits.pt"
PADDED = re.compile(r"logits(?:_hard)?_padded_to_(\d+|longest)")


def measure(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a row per padding and profile: the largest difference of logits, and on how many texts."""
    repository = "top" if read_settings(folder)["model_type"] == "bert" else "ltp"
    golden = read_tensors(folder / GOLDEN, ("input_ids", "attention_mask"))
    longest = int(golden["attention_mask"].sum(-1).max())
    for name, expected in golden.items():
        if (found := PADDED.fullmatch(name)) is None:
            continue
        width = longest if found[1] == "longest" else int(found[1])
        for profile in ("reference", "house"):
            logits, kept = _computed(repository, folder, golden, width, profile)
            # where the repository drops [CLS], its output is another by definition: docs/methods/ltp.md
            alive = golden.get("cls_alive", torch.ones(len(expected), dtype=torch.bool))
            theirs = golden[f"tokens_per_layer_padded_to_{found[1]}" if repository == "top" else "tokens_attention"]
            yield {
                "repository": repository,
                "padded_to": width,
                "profile": profile,
                "texts": int(alive.sum()),
                "most": float((logits - expected)[alive].abs().max()),
                "cls_dropped": int((~alive).sum()),
                "most_cls_dropped": None if alive.all() else float((logits - expected)[~alive].abs().max()),
                "same_labels": int((logits.argmax(-1) == expected.argmax(-1))[alive].sum()),
                "same_tokens": int((kept == theirs).all(0)[alive].sum()),
            }


def _computed(
    repository: str, folder: Path, golden: Mapping[str, Tensor], width: int, profile: str
) -> tuple[Tensor, Tensor]:
    """Return the logits of the imported model, and how many tokens enter each layer."""
    inputs = {
        name: golden[name][:, :width] for name in ("input_ids", "attention_mask", "token_type_ids") if name in golden
    }
    with TemporaryDirectory() as scratch, torch.no_grad():
        out = Path(scratch) / "imported"
        model = load_hf(import_checkpoint(repository, folder, out, Given(profile, max_length=width)).folder)
        trace = Trace()
        return model(**inputs, trace=trace).logits, trace.tokens_in


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of one repository; texts whose [CLS] is dropped there have columns where there are some."""
    head = ["profile", "padded to", "texts", "logits differ by at most", "same class", "same tokens per layer"]
    if apart := any(row["cls_dropped"] for row in rows):
        head += ["[CLS] dropped", "logits differ by at most"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows:
        line = [f"`{row['profile']}`", row["padded_to"], row["texts"], f"{row['most']:.1e}"]
        line += [row["same_labels"], row["same_tokens"]]
        if apart:
            line += [row["cls_dropped"], "" if row["most_cls_dropped"] is None else f"{row['most_cls_dropped']:.1e}"]
        lines.append(line)
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def main(arguments: Sequence[str]) -> int:
    """Measure the folders that are given, and write the tables. Return 0, or 3 where a repository's logits are missed.

    Raises:
        ConfigError: a folder that is no checkpoint, or has no golden logits.
    """
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    if given["folders"]:
        rows = [row for folder in given["folders"] for row in measure(Path(folder))]
        if not rows:
            raise ConfigError(f"no logits in {GOLDEN} are known.\nAllowed: logits_padded_to_<tokens>.\nRename them.")
        atomic_write_text(STORED, json.dumps(rows, indent=1) + "\n")
    rows = json.loads(STORED.read_text())
    for repository in sorted({row["repository"] for row in rows}):
        page = ROOT / given["into"] / f"{repository}.md"
        put_table(page, table([row for row in rows if row["repository"] == repository]), "golden")
        print(page)
    met = all(row["most"] <= given["most"] for row in rows if row["profile"] == "reference")
    return DONE if met else MISSED


if __name__ == "__main__":
    run_script(main)
