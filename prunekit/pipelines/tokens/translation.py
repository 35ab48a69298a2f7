"""Runs on translation tasks: the test split is translated, and the translations are scored."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.console import track
from prunekit.cost import DecoderShape, decoder_macs, dense_macs, encoder_macs
from prunekit.data.encoding import Batch, load_tokenizer
from prunekit.data.kinds.translation import WORD_ACCURACY
from prunekit.data.module import TokenPruningDataModule
from prunekit.evaluation.evaluate import EvaluationResult
from prunekit.evaluation.translation import BUCKETS, TranslationQuality, translation_quality
from prunekit.methods.base import TokenPruningMethod
from prunekit.models.forward import model_inputs, run_encoder
from prunekit.models.reading import read_config
from prunekit.pipelines.tokens.pipeline import Pipeline
from prunekit.pipelines.tokens.testing import ExtraTests
from prunekit.runs.result import Band, RunResult
from prunekit.tokens.encoder import encoder_of
from prunekit.tokens.state import Execution
from prunekit.tokens.translation import generate


class TranslationTests(ExtraTests):
    """Scores translations; validation is by teacher forcing and chooses the checkpoint by word accuracy."""

    def complete(
        self,
        measured: EvaluationResult,
        execution: Execution,
        model: PreTrainedModel,
        data: TokenPruningDataModule,
        stored: RunResult | None = None,
    ) -> EvaluationResult:
        """Add the quality of translations: those decoded now, or those that the dense run stored in its result."""
        if stored is not None:
            assert stored.translation is not None
            details = stored.translation.pruned.to_json()
            return replace(measured, metrics=dict(stored.score.pruned_all or {}), details=details)
        texts, details = self._translated(model, data, execution)
        references = data.split("test").targets.references
        quality = translation_quality(texts, references, measured.per_row.lengths.tolist(), BUCKETS)
        metrics = _metrics(quality) | {WORD_ACCURACY: measured.metrics[WORD_ACCURACY]}
        details |= {"signature": quality.signature, "buckets": quality.as_dict()["buckets"]}
        chosen = {name: metrics[name] for name in self.run.spec.metrics}
        by_row = {str(row): text for row, text in enumerate(texts, 1)}
        return replace(measured, metrics=chosen, texts=by_row, details=details)

    def _translated(
        self, model: PreTrainedModel, data: TokenPruningDataModule, execution: Execution
    ) -> tuple[list[str], dict[str, Any]]:
        """Return the test rows' translations, in order, and the CPU seconds of that and of the encoder alone."""
        tokenizer = load_tokenizer(self.run.backbone)
        batches = data.loader("test")
        texts: dict[int, str] = {}
        start = time.process_time()
        for batch in track(batches, f"test ({execution}), translating", len(batches)):
            inputs: dict[str, Any] = model_inputs(batch)
            words = generate(
                model,
                **inputs,
                beams=self.run.spec.beams,
                max_new_tokens=self.run.spec.max_target_length,
                execution=execution,
            )
            found = tokenizer.batch_decode(words, skip_special_tokens=True)
            texts |= dict(zip(batch["index"].tolist(), found, strict=True))
        spent = time.process_time() - start
        details = {
            "cpu_seconds": spent,
            "encoder_cpu_seconds": _encoding_seconds(model, batches, execution),
            "threads": torch.get_num_threads(),
        }
        return [texts[row] for row in range(len(texts))], details

    def details(self, method: TokenPruningMethod, test: EvaluationResult, dense: EvaluationResult) -> dict[str, Any]:
        """Return how BLEU was computed, what reaches the decoder, and what the decoder adds to the cost."""
        lengths, kept, words = test.per_row.lengths, test.per_row.tokens[:, -1], test.per_row.decisions
        decoder = DecoderShape.from_config(read_config(self.run.backbone))
        encoder = {"dense": test.cost["dense_unpadded_g"], "pruned": test.cost["pruned_g"]}
        giga = {
            name: encoder[name] + 2e-9 * float(decoder_macs(decoder, sources, words).mean())
            for name, sources in (("dense", lengths), ("pruned", kept))
        }
        return {
            "translation": {
                "signature": test.details["signature"],
                "beams": self.run.spec.beams,
                "source_kept": float(kept.sum() / lengths.sum()),
                "end_to_end": {
                    "dense_g": giga["dense"],
                    "pruned_g": giga["pruned"],
                    "reduction": giga["dense"] / giga["pruned"],
                    "encoder_share": encoder["dense"] / giga["dense"],
                },
                "dense": dense.details,
                "pruned": test.details,
            }
        }

    def bands(
        self,
        method: TokenPruningMethod,
        dense_model: PreTrainedModel,
        data: TokenPruningDataModule,
        test: EvaluationResult,
        dense: EvaluationResult,
    ) -> list[Band]:
        """Return BLEU by the length of the source, of the translations that scored the whole test."""
        lengths, tokens = test.per_row.lengths, test.per_row.tokens
        before = {bucket["low"]: bucket for bucket in dense.details["buckets"]}
        spent = _spent(method, lengths, tokens)
        whole = dense_macs(method.context.shape, lengths)
        rows = []
        for bucket in test.details["buckets"]:
            here = (lengths >= bucket["low"]) & (lengths < bucket["high"])
            dense_bleu, pruned_bleu = before[bucket["low"]]["bleu"] / 100, bucket["bleu"] / 100
            rows.append(
                Band(
                    low=bucket["low"],
                    below=min(bucket["high"], int(lengths.max()) + 1),
                    rows=bucket["rows"],
                    dense=dense_bleu,
                    pruned=pruned_bleu,
                    dense_all={"bleu": dense_bleu},
                    pruned_all={"bleu": pruned_bleu},
                    flops_vs_unpadded=float(whole[here].sum() / spent[here].sum()),
                    mean_length=float(lengths[here].float().mean()),
                    tokens_per_layer=tuple(tokens[here].float().mean(0).tolist()),
                )
            )
        return rows


class TranslationPipeline(Pipeline):
    """A run on a translation task."""

    extra_tests = TranslationTests


def _metrics(quality: TranslationQuality) -> dict[str, float]:
    """Return shares of 1, as all scores are."""
    return {"bleu": quality.bleu / 100, "chrf": quality.chrf / 100, "length_ratio": quality.length_ratio}


def _encoding_seconds(model: PreTrainedModel, batches: Iterable[Batch], execution: Execution) -> float:
    start = time.process_time()
    with torch.inference_mode():
        for batch in batches:
            run_encoder(model, batch, execution)
    return time.process_time() - start


def _spent(
    module: TokenPruningMethod, lengths: Int[Tensor, "rows"], tokens: Int[Tensor, "rows layers"]
) -> Float[Tensor, "rows"]:
    """Return the MACs of the encoder per sentence, from what was executed, with the scorer's."""
    counts = tokens.T.double()
    tokens_in = torch.cat([lengths[None].double(), counts[:-1]])
    spent = encoder_macs(module.context.shape, tokens_in, counts)
    pruner = encoder_of(module.model).pruner
    if pruner is None:
        return spent
    return spent + torch.stack([pruner.scorer.macs(tokens_in[layer].float()) for layer in sorted(pruner.layers)]).sum(0)
