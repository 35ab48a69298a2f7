"""BLEU, length and cost of a translation model whose source is pruned, at several budgets; trained for it, or as it is.

    python benchmarks/translation.py model=opus-mt-en-fr pairs=pairs.parquet source=en target=fr budgets=1.25,1.5 \
        methods=topk,dtp rows=100 out=benchmarks/results/translation.json
    ... train=train.parquet steps=200 methods=dtp,tsdtp,ltp

Rows are taken in a seeded order; half as many others set the knobs. Budgets are of the encoder's FLOPs, met on those.
Times are CPU seconds of one thread, because others may use the machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script
from prunekit.config.composition import compose
from prunekit.config.errors import DONE, ConfigError
from prunekit.cost import CostMeter, Shape
from prunekit.data.loading import generator_of
from prunekit.data.spec import TaskSpec
from prunekit.data.tables import read_table
from prunekit.evaluation.translation import translation_quality
from prunekit.files import atomic_write_text
from prunekit.methods.context import MethodContext, Training
from prunekit.pipelines.tokens.preparation import method_class
from prunekit.runs.kinds import method_options
from prunekit.tokens.encoder import encoder_of, install
from prunekit.tokens.state import Trace
from prunekit.tokens.translation import encode, forward, generate

SETTINGS = Path(__file__).with_suffix(".yaml")
NEEDED = ("model", "pairs", "source", "target", "out")
Batch = dict[str, torch.Tensor]


def batches(tokenizer: Any, texts: Sequence[str], size: int, prefix: str) -> Iterator[Batch]:
    """The texts, padded to the longest of a batch."""
    for start in range(0, len(texts), size):
        some = [prefix + text for text in texts[start : start + size]]
        encoded = tokenizer(some, return_tensors="pt", padding=True, truncation=True)
        yield {name: encoded[name] for name in ("input_ids", "attention_mask")}


def training_batches(tokenizer: Any, asked: Mapping[str, Any]) -> Iterator[Batch]:
    """Yield training batches in a seeded order, each used once: sources, and targets padded with -100."""
    table, size = read_table(Path(asked["train"])), asked["batch"]
    order = torch.randperm(len(table), generator=generator_of("translation training"))
    for rows in order[: asked["steps"] * size].split(size):
        source, target = ([str(table.column(asked[side])[row]) for row in rows] for side in ("source", "target"))
        (batch,) = batches(tokenizer, source, size, asked["prefix"])
        words = tokenizer(text_target=target, return_tensors="pt", padding=True, truncation=True)
        yield batch | {"labels": words["input_ids"].masked_fill(words["attention_mask"] == 0, -100)}


def load(source: str) -> PreTrainedModel:
    """The model as it is stored."""
    return AutoModelForSeq2SeqLM.from_pretrained(source, dtype=torch.float32).eval()


@torch.no_grad()
def cost(model: PreTrainedModel, shape: Shape, given: Sequence[Batch]) -> tuple[dict[str, float], float, float]:
    """FLOPs of the encoder, share of the source that reaches the decoder, and CPU seconds of the encoder."""
    meter, left, whole, spent = CostMeter(shape, 128), 0.0, 0.0, 0.0
    for batch in given:
        trace, start = Trace(), time.process_time()
        encode(model, **batch, trace=trace)
        spent += time.process_time() - start
        lengths = batch["attention_mask"].sum(-1)
        meter.update(trace.tokens_in, trace.tokens_out, lengths, trace.scorer_macs)
        left, whole = left + float(trace.tokens_out[-1].sum()), whole + float(lengths.sum())
    found = meter.compute()
    return {name: float(found[name]) for name in ("pruned_g", "flops_vs_unpadded")}, left / whole, spent


def method_on(model: PreTrainedModel, name: str, budget: float, context: dict[str, Any], prefix: int) -> Any:
    """The method of conf/method/`name`.yaml on a translation model: its own terms, with a decoder behind them."""
    cfg, _ = compose([f"method={name}", "task=parallel"])
    kind = method_class(cfg)

    class Translating(kind):  # type: ignore[misc, valid-type]
        """The method, with teacher forcing in place of a head."""

        global_step = 0  # of the loop below, which is no Trainer

        def forward(self, batch: Batch, execution: Any = "mask", trace: Trace | None = None) -> torch.Tensor:
            given = {key: batch[key] for key in ("input_ids", "attention_mask")}
            return forward(self.model, **given, targets=batch["labels"], execution=execution, trace=trace)

        def calibrate(self) -> None:
            if hasattr(self, "meet"):
                shape = self.context.shape
                self.meet(lambda: cost(self.model, shape, self.context.validation())[0]["flops_vs_unpadded"])

        def log_dict(self, *args: Any, **kwargs: Any) -> None:
            """Nobody listens."""

    spec = TaskSpec.from_config(cfg["task"])
    stays = {split: torch.full_like(lengths, prefix + 1) for split, lengths in context["lengths"].items()}
    given = MethodContext(spec=spec, budget=budget, protected=stays, **context)
    options = kind.Options.from_config(method_options(cfg)).completed(given)
    install(model, options.build_pruner(given.shape), prefix=prefix)
    return Translating(model, given, options)


def fit(method: Any, steps: int, given: Sequence[Batch]) -> None:
    """Trains by the method's own terms and stages; the word embeddings stay as they are."""
    method.model.get_input_embeddings().requires_grad_(False)
    if steps == 0:
        method.trains = False
        method.calibrate()
        return
    made = method.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    method.train()
    for step in range(steps):
        type(method).global_step = step
        if method.hard and step == method.soft_steps:
            method.calibrate()
            optimizer.state.clear()
        loss = torch.stack(list(method.terms(given[step % len(given)]).values())).sum()
        loss.backward()
        method.configure_gradient_clipping()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(f"  step {step} loss {float(loss.detach()):.3f}", flush=True)
    method.eval()
    type(method).global_step = steps
    method.calibrate()


def translate(model: PreTrainedModel, tokenizer: Any, given: Sequence[Batch], beams: int) -> tuple[list[str], float]:
    """Detokenised translations, and the CPU seconds they took, encoder included."""
    found, start = [], time.process_time()
    for batch in given:
        found += tokenizer.batch_decode(generate(model, **batch, beams=beams), skip_special_tokens=True)
    return found, time.process_time() - start


def main(arguments: Sequence[str]) -> int:
    """Print and write one row per method and budget, dense first. Return 0.

    Raises:
        ConfigError: a setting that is missing or not allowed.
    """
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    asked = parse_settings(SETTINGS, arguments)
    if missing := [name for name in NEEDED if asked[name] is None]:
        raise ConfigError(
            f"{', '.join(missing)} not given.\nAllowed: model=... pairs=... source=... target=... out=...\n"
            "python benchmarks/translation.py --help explains them."
        )
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    torch.manual_seed(1)
    shape = Shape.from_config(load(asked["model"]).config)
    table = read_table(Path(asked["pairs"]))
    rows, size = asked["rows"], asked["batch"]
    order = torch.randperm(len(table), generator=generator_of("translation"))[: rows + rows // 2].tolist()
    source, target = ([str(table.column(asked[side])[row]) for row in order] for side in ("source", "target"))
    prefix = len(tokenizer(asked["prefix"], add_special_tokens=False)["input_ids"]) if asked["prefix"] else 0
    test, tune = (list(batches(tokenizer, texts, size, asked["prefix"])) for texts in (source[:rows], source[rows:]))
    lengths = [int(n) for batch in test for n in batch["attention_mask"].sum(-1)]
    learned = list(training_batches(tokenizer, asked)) if asked["steps"] else []
    context = {
        "shape": shape,
        "training": Training(1, max(1, asked["steps"]), asked["lr"], warmup_fraction=0.1, freeze_embeddings=False),
        "lengths": {"validation": torch.cat([batch["attention_mask"].sum(-1) for batch in tune])},
        "validation": lambda: tune,
    }
    plan = [("dense", None), *((method, budget) for method in asked["methods"] for budget in asked["budgets"])]
    results = []
    for method, budget in plan:
        model = load(asked["model"])
        if budget is None:
            install(model, None, prefix=prefix)
        else:
            fit(method_on(model, method, budget, context, prefix), asked["steps"], learned)
        install(model.eval(), encoder_of(model).pruner, prefix=prefix)
        flops, share, encoder_seconds = cost(model, shape, test)
        found, seconds = translate(model, tokenizer, test, asked["beams"])
        quality = translation_quality(found, target[:rows], lengths)
        row = {
            "method": method,
            "budget": budget,
            **flops,
            "source_kept": share,
            "encoder_cpu_seconds": encoder_seconds,
        }
        results.append(row | {"cpu_seconds": seconds, **quality.as_dict(), "example": found[0]})
        print(
            f"{method:10} {budget or 1:.2f}x asked {flops['flops_vs_unpadded']:.2f}x  source kept {share:.3f}  "
            f"BLEU {quality.bleu:.1f}  chrF {quality.chrf:.1f}  length {quality.length_ratio:.3f}  "
            f"encoder {encoder_seconds:.1f} s, whole {seconds:.1f} s of CPU",
            flush=True,
        )
        about = {"model": Path(asked["model"]).name, "pairs": Path(asked["pairs"]).name}
        about |= {"rows": rows, "beams": asked["beams"]}
        atomic_write_text(asked["out"], json.dumps({**about, "results": results}, indent=2) + "\n")
    return DONE


if __name__ == "__main__":
    run_script(main)
