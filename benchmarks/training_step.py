"""What a training step costs, against a step as the reference codes take it.

PRUNEKIT_DATA=... ./run python benchmarks/training_step.py out=benchmarks/results/training_step_sst2.json \
    task=sst2 budget=2x data.train_rows=1000 teacher.epochs=1

Both train ToP's loss on the same rows. The reference's step pads to `pad` tokens in random order, computes in
float32, asks a live teacher for its attention, trains the embeddings too and loops over parameters in AdamW; it is
the plain Hugging Face model, without any gate. Ours has length buckets, stored teacher outputs, bf16 autocast where
the CPU has it, frozen embeddings, fused AdamW; soft computes every token under sampled gates, hard removes tokens.
Process CPU time on one thread, the three interleaved in one process, medians over rounds.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from prunekit.bench.machine import hardware
from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script
from prunekit.config.composition import compose
from prunekit.config.errors import DONE
from prunekit.config.validation import validate
from prunekit.data.loading import bucketed_batches, generator_of
from prunekit.environment import environment
from prunekit.files import atomic_write_text
from prunekit.methods.top import ToP
from prunekit.models.sources import find_backbone
from prunekit.pipelines.inputs import RunInputs
from prunekit.pipelines.run import run
from prunekit.pipelines.tokens.preparation import prepare
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import canonical
from prunekit.runs.kinds import kind_of
from prunekit.runtime.kernels.threads import threads
from prunekit.training.hardware import precision_of

SETTINGS = Path(__file__).with_suffix(".yaml")
Step = Callable[[], None]


def reference_steps(folder: Path, batches: Sequence[dict[str, Tensor]], width: int) -> list[Step]:
    """One optimiser step per batch, padded to `width` (longer rows are cut), of a stock model under a live teacher."""
    student, teacher = (
        AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager") for _ in range(2)
    )
    student.train()
    teacher.eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-5, foreach=False, fused=False)

    def step(batch: dict[str, Tensor]) -> None:
        with torch.no_grad():
            wanted = teacher(**batch, output_attentions=True)
        found = student(**batch, output_attentions=True)
        loss = F.kl_div(
            F.log_softmax(found.logits / 2, -1),
            F.log_softmax(wanted.logits / 2, -1),
            log_target=True,
            reduction="batchmean",
        ) + F.mse_loss(found.attentions[1].sum(2).mean(1), wanted.attentions[-1].sum(2).mean(1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def padded(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids") if key in batch}
        return {key: F.pad(value[:, :width], (0, max(0, width - value.shape[1]))) for key, value in inputs.items()}

    ready = [padded(batch) for batch in batches]
    return [lambda batch=batch: step(batch) for batch in ready]


def our_steps(module: ToP, batches: Sequence[dict[str, Tensor]], precision: str) -> list[Step]:
    """One optimiser step per batch, as the trainer takes it."""
    module.train()
    module.log_dict = lambda *values, **how: None  # there is no trainer to log to
    optimizer = module.configure_optimizers()["optimizer"]

    def step(batch: dict[str, Tensor]) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            terms = module.terms(batch)
            loss = torch.stack([term.float() for term in terms.values()]).sum()
        loss.backward()
        module.configure_gradient_clipping()
        optimizer.step()
        optimizer.zero_grad()

    return [lambda batch=batch: step(batch) for batch in batches]


def measured(candidates: dict[str, list[Step]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds per round; the first round warms up, the order turns round each time."""
    spent: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        names = list(candidates) if number % 2 else list(candidates)[::-1]
        for name in names:
            start = time.process_time()
            for step in candidates[name]:
                step()
            if number:
                spent[name].append(time.process_time() - start)
    return spent


def main(arguments: Sequence[str]) -> int:
    """Train or find the teacher, then measure. Return 0."""
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    overrides = [f"{name}={value}" for name, value in given["train"].items()]
    modules: dict[str, Any] = {}
    with TemporaryDirectory() as scratch:
        for name, fraction in (("soft", 0), ("hard", 1)):
            cfg, choices = compose(["method=top", "method.init=open", *overrides, f"method.hard_fraction={fraction}"])
            validate(cfg, choices)
            cfg, kind = canonical(cfg), kind_of(cfg)
            spec, folder = kind.spec(cfg), RunFolder(Path(scratch) / name, name)
            folder.prepare(cfg, "")
            prepared = prepare(
                RunInputs(cfg, folder, spec, kind.source(spec), None, find_backbone(cfg["backbone"]), run)
            )
            modules[name], data, teacher = prepared.method, prepared.data, prepared.teacher
    modules["hard"].freeze_decisions()
    split, size = data.split("train"), cfg["trainer"]["batch_size"]
    some = torch.randperm(len(split), generator=generator_of("bench"))[: given["rows"]]
    random = [split.batch(rows) for rows in some.split(size)]
    ordered = bucketed_batches(split.lengths[some], size, generator_of("bench", "order"))
    buckets = [split.batch(some[rows]) for rows in ordered]
    precision = precision_of(cfg["trainer"]["precision"])
    with threads(1):
        candidates = {
            "reference": reference_steps(teacher.folder, random, given["pad"]),
            "soft": our_steps(modules["soft"], buckets, precision),
            "hard": our_steps(modules["hard"], buckets, precision),
        }
        spent = measured(candidates, given["rounds"])
    medians = {name: statistics.median(values) / len(some) * 1000 for name, values in spent.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(spent["reference"], spent[name], strict=True))
        for name in ("soft", "hard")
    }
    result = {
        "task": spec.name,
        "backbone": cfg["backbone"]["name"],
        "budget": cfg["budget"],
        "rows": len(some),
        "batch_size": size,
        "mean_tokens": float(split.lengths[some].float().mean()),
        "padded_to": given["pad"],
        "precision": precision,
        "cpu_ms_per_row": medians,
        "faster_than_reference": ratios,
        "seconds": spent,
        "torch": torch.__version__,
        "hardware": hardware(environment()).to_json(),
        "date": date.today().isoformat(),
        "command": "python benchmarks/training_step.py " + " ".join(overrides),
    }
    print(f"{spec.name}, {cfg['backbone']['name']}, {len(some)} rows, batch {size}, CPU ms per row on one thread")
    print(f"  reference-style  {medians['reference']:7.1f}")
    for name, ratio in ratios.items():
        print(f"  {name:15s}  {medians[name]:7.1f}   {ratio:.1f}x faster")
    if given["out"] is not None:
        atomic_write_text(given["out"], json.dumps(result, indent=1) + "\n")
    return DONE


if __name__ == "__main__":
    run_script(main)
