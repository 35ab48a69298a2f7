"""Count the FLOPs that the engines under test execute, beside those of the dense model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunekit.bench.inputs import BatchPadder
from prunekit.bench.subject import BenchSubject
from prunekit.cost import Shape, dense_macs, encoder_macs
from prunekit.evaluation.evaluate import predict
from prunekit.runtime.engine import is_first_enough
from prunekit.tokens.state import Trace

BATCH = 32  # texts of a forward pass


@dataclass(frozen=True)
class Flops:
    """FLOPs of all texts without padding: what the dense model needs, and which share of it each engine executes.

    Our engines compute of the last layer only what the head reads, pruned or not: that is no merit of pruning, so
    what a method can realise is the ratio of what the two execute. The packed engine computes keys and values of all
    tokens and the rest of [CLS], a graph everything but the feed-forward half of all tokens.
    """

    needed: float
    method: float  # share that the pruned model is left with, as the method's budget counts
    packed: tuple[float, float]  # shares that our engines execute, unpruned and pruned
    graph: tuple[float, float]

    @property
    def ratio(self) -> float:
        """The method's FLOPs reduction."""
        return 1 / self.method

    @property
    def executed_ratio(self) -> float:
        """The FLOPs reduction that the packed engine executes, against itself unpruned."""
        return self.packed[0] / self.packed[1]

    @classmethod
    def of(cls, subject: BenchSubject) -> Flops:
        """Count the FLOPs on the subject's texts, for each of which a pruned model decides anew."""
        shape, first_only = Shape.from_config(subject.model.config), is_first_enough(subject.model)
        padder = BatchPadder.of(subject.model.config)
        needed, method = 0.0, 0.0
        shares = torch.zeros(2, 2, dtype=torch.float64)  # packed and graph, unpruned and pruned
        ordered = sorted(subject.texts, key=len)
        for start in range(0, len(ordered), BATCH):
            texts = ordered[start : start + BATCH]
            lengths = torch.tensor([len(text) for text in texts])
            whole = lengths.expand(shape.layers, -1).float()
            needed += float(dense_macs(shape, lengths).sum())
            counts = [(whole, whole, 0.0)]
            if subject.prunes:
                batch = {key: torch.from_numpy(array) for key, array in padder.pad(texts).items()}
                _, trace = predict(subject.model, batch, "pack")
                method += float(encoder_macs(shape, trace.tokens_in, trace.tokens_out).sum() + trace.scorer_macs.sum())
                # the packed engine takes no decision in a last layer that it computes for [CLS] alone
                decided = Trace(layers=trace.layers[:-1] if first_only else trace.layers)
                counts.append((trace.tokens_in, trace.tokens_out, float(decided.scorer_macs.sum())))
            for pruned, (tokens_in, tokens_out, scoring) in enumerate(counts):
                shares[0, pruned] += encoder_macs(shape, tokens_in, tokens_out, first_only=first_only).sum() + scoring
                read = torch.cat([tokens_out[:-1], torch.ones_like(tokens_out[-1:])]) if first_only else tokens_out
                shares[1, pruned] += encoder_macs(shape, tokens_in, read).sum() + scoring
        if not subject.prunes:
            method, shares[:, 1] = needed, shares[:, 0]
        packed, graph = (shares / needed).tolist()
        return cls(2 * needed, method / needed, (packed[0], packed[1]), (graph[0], graph[1]))
