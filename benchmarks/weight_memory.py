r"""Peak memory of a run whose blocks stay on disk, against the prediction; random models, a process per size.

    python benchmarks/weight_memory.py            # writes benchmarks/results/weight_memory.json

A run on a model of next to nothing gives the floor: Python, torch, the tokenizer. What a size takes above it is
compared with `predicted`, whose terms docs/methods/dpruner.md explains.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script
from prunekit.config.errors import DONE

ROOT = Path(__file__).parents[1]
SETTINGS = Path(__file__).with_suffix(".yaml")
MIB = 2**20
SAMPLES = 2
# hidden, feed-forward, tokens of a sample, blocks, blocks on disk; heads of 64, all with keys of their own. The last is
# LLaMA-7B with 2048 tokens at a quarter of every width and length: its block's terms are 7B's, divided by 16
SIZES = [
    (512, 1408, 128, 6, True),
    (768, 2048, 128, 3, True),
    (768, 2048, 128, 9, True),
    (768, 2048, 128, 9, False),
    (1024, 2752, 512, 3, True),
]


def terms(hidden: int, wide: int, tokens: int, vocabulary: int, heads: int) -> dict[str, int]:
    """Bytes of what a LLaMA block and its surroundings take in float32; embeddings and head counted apart."""
    block = 4 * hidden**2 + 3 * hidden * wide
    floats = {
        "block": block,
        "gradients": block,  # of which one matrix's is there at a time
        "sums": block,  # of |g w|, one per weight
        "widest_matrix": hidden * wide,
        "hessians": 3 * hidden**2 + wide**2,  # q, k and v share one, gate and up another
        "widest_hessian": max(hidden, wide) ** 2,
        # of one sample, kept to differentiate: what enters each matrix or leaves it, and attention
        "activations": tokens * (12 * hidden + 5 * wide) + heads * tokens**2,
        "outside": 2 * vocabulary * hidden,
        "logits": 3 * tokens * vocabulary,
    }
    return {name: 4 * value for name, value in floats.items()}


def predicted(found: dict[str, int]) -> dict[str, int]:
    """Bytes of each stage above the floor; the largest is the peak."""
    here = found["outside"] + found["block"]
    return {
        "observe": here + found["hessians"] + found["activations"],
        # a Hessian and two of its factorisation at a time, and the block's statistics in bfloat16
        "factorise": here + found["block"] // 2 + 3 * found["widest_hessian"],
        # the gradient of one matrix and its product with the weights
        "differentiate": here + found["sums"] + 2 * found["widest_matrix"] + found["activations"],
        "head": found["outside"] + found["logits"],
    }


def aim(found: dict[str, int]) -> int:
    """Bytes that the peak is to stay below: one block, its gradients, its Hessians, one sample's activations."""
    return sum(found[name] for name in ("outside", "block", "gradients", "hessians", "activations"))


def make(folder: Path, hidden: int, wide: int, blocks: int) -> int:
    """Writes a random model with the tokenizer of the tests' tiny one; returns the size of its vocabulary."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from prunekit.models.tiny import build_tiny_backbone

    build_tiny_backbone(folder / "tiny", "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")
    config = AutoConfig.from_pretrained(folder / "tiny")
    config.update({"hidden_size": hidden, "intermediate_size": wide, "num_hidden_layers": blocks})
    config.update({"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64, "head_dim": 64})
    config.initializer_range = 0.02
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return int(config.vocab_size)


def run_one(backbone: str, tokens: int, streamed: bool, folder: str) -> float:
    """Peak memory in MiB of one run, in a process of its own."""
    # the buffers that linear algebra keeps once it was used at size are the floor's
    code = (
        "import torch; a = torch.rand(1500, 1500); b = a @ a.T + 9 * torch.eye(1500)\n"
        "torch.cholesky_inverse(torch.linalg.cholesky(b)); del a, b\n"
        "import sys; from prunekit.config.composition import compose; from prunekit.config.validation import validate\n"
        "from prunekit.pipelines.run import run\n"
        "cfg, choices = compose(sys.argv[1:]); validate(cfg, choices); print('peak', run(cfg)['peak_memory_mib'])"
    )
    given = [
        "method=dpruner", "method.weight_update=obs", f"method.stream={str(streamed).lower()}", "method.chunk=1",
        "task=domain_legal", "task.synthetic_rows=64", f"task.open.seqlen={tokens}", f"task.domain.seqlen={tokens}",
        f"task.open.samples={SAMPLES}", f"task.domain.samples={SAMPLES}", "task.eval_tokens=64", "task.window=64",
        "backbone=tiny_decoder", f"backbone.path={backbone}", "trainer.threads=1", "logger.wandb.enabled=false",
        f"runs_dir={folder}/runs", f"data.cache_dir={folder}/cache",
    ]  # fmt: skip
    # an allocator that gives large blocks back at once, so that the peak is of what is in use
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    import os

    done = subprocess.run(
        [sys.executable, "-c", code, *given],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return float(done.stdout.rpartition("peak ")[2].split()[0])


def measure(sizes: list[tuple[int, int, int, int, bool]]) -> dict:
    rows = []
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(2) as pool:
        waiting = []
        for hidden, wide, tokens, blocks, streamed in [(64, 64, 128, 1, True), *sizes]:
            folder = Path(place) / f"{hidden}-{blocks}-{streamed}"
            folder.mkdir()
            vocabulary = make(folder, hidden, wide, blocks)
            waiting.append(pool.submit(run_one, str(folder / "model"), tokens, streamed, str(folder)))
        floor, *peaks = [one.result() for one in waiting]
        for (hidden, wide, tokens, blocks, streamed), peak in zip(sizes, peaks, strict=True):
            found = terms(hidden, wide, tokens, vocabulary, hidden // 64)
            stages = {name: round(value / MIB, 1) for name, value in predicted(found).items()}
            weights = blocks * found["block"] + found["outside"]
            row = {"hidden": hidden, "feed_forward": wide, "tokens": tokens, "blocks": blocks}
            row |= {"streamed": streamed, "aim_mib": round(aim(found) / MIB, 1)}
            row |= {"weights_mib": round(weights / MIB, 1), "measured_mib": round(peak - floor, 1)}
            rows.append(row | {"predicted_mib": max(stages.values()), "stages_mib": stages})
            print(rows[-1], flush=True)
    return {"floor_mib": round(floor, 1), "samples": SAMPLES, "rows": rows}


def at_seven_billion() -> dict[str, float]:
    """The same prediction in GiB for LLaMA-7B and samples of 2048 tokens, where attention keeps no matrix of scores."""
    found = terms(4096, 11008, 2048, 32000, 0)
    found |= {f"stage {name}": value for name, value in predicted(found).items()}
    return {name: value / 2**30 for name, value in found.items()}


def table(found: dict) -> str:
    """What is measured next to what is predicted, in Markdown."""
    lines = [
        "| hidden, feed-forward | tokens | blocks | where | weights | aim | peak, predicted | measured |",
        "|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        where = "on disk" if row["streamed"] else "in memory"
        shown = [f"{row[key]:.0f}" if row["streamed"] else "-" for key in ("aim_mib", "predicted_mib")]
        lines.append(
            f"| {row['hidden']}, {row['feed_forward']} | {row['tokens']} | {row['blocks']} | {where} | "
            f"{row['weights_mib']:.0f} | {' | '.join(shown)} | {row['measured_mib']:.0f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Measure and store if asked to, and print the table. Return 0."""
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    results = ROOT / given["results"]
    if given["measure"]:
        found = measure(SIZES) | {"at_7b_gib": at_seven_billion()}
        results.write_text(json.dumps(found, indent=1) + "\n")
    print(table(json.loads(results.read_text())))
    return DONE


if __name__ == "__main__":
    run_script(main)
