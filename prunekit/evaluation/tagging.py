"""Judge the labels of words: entities by type and boundaries, and words one by one, each text once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from prunekit.data.encoding import Batch
from prunekit.data.spec import TaskSpec
from prunekit.data.tagging import BETWEEN, OUTSIDE, entities, marks_entities
from prunekit.data.words import WordTargets
from prunekit.evaluation.judging import Judge, Predictions, Verdict
from prunekit.losses import decisions_per_row

CLASSES = ("wrong", "right")  # of a text's prediction: right where the labels of all words are


class TagJudge(Judge):
    """A judge of a label per word. A word that is not read has no prediction: it is wrong, and in no entity."""

    def __init__(self, spec: TaskSpec, targets: WordTargets, device: torch.device | str) -> None:
        self.wanted = spec.metrics
        self.targets = targets
        self.marked = marks_entities(targets.names)
        self._found: dict[int, list[int]] = {}

    def update(self, logits: Float[Tensor, "words classes"], batch: Batch) -> None:
        """Add a batch; `logits` have a row per word that is read."""
        counts = decisions_per_row(batch["labels"]).tolist()
        parts = logits.argmax(-1).cpu().split(counts)
        self._found |= {row: part.tolist() for row, part in zip(batch["index"].tolist(), parts, strict=True)}

    def compute(self) -> Verdict:
        """Return the metrics, and each text's entities."""
        both = predicted = real = words = right = 0
        are_right, texts = [], []
        for row in sorted(self._found):
            gold, own = self._labels(row)
            gold_entities, own_entities = (entities(labels, marked=self.marked) for labels in (gold, own))
            both += len({*gold_entities} & {*own_entities})
            predicted += len(own_entities)
            real += len(gold_entities)
            equal = sum(one == other for one, other in zip(gold, own, strict=True))
            words += len(gold)
            right += equal
            are_right.append(equal == len(gold))
            spelt = self.targets.texts[row].split(BETWEEN)
            texts.append((_in_words(gold_entities, spelt), _in_words(own_entities, spelt)))
        every = scores(both, predicted, real) | {"word_accuracy": right / max(1, words)}
        found = torch.tensor(are_right, dtype=torch.long)
        return Verdict(
            {name: every[name] for name in self.wanted},
            len(found),
            Predictions(torch.ones_like(found), found, CLASSES, texts),
        )

    def _labels(self, row: int) -> tuple[list[str], list[str | None]]:
        """Return the right label of each word of a text, and the predicted one, None where it was not read."""
        names = self.targets.names
        gold = [names[number] for number in self.targets.labels_of(row).tolist()]
        own: list[str | None] = [None] * len(gold)
        for word, number in zip(self.targets.read_words(row).tolist(), self._found[row], strict=True):
            own[word] = names[number]
        return gold, own


def scores(both: int, predicted: int, real: int) -> dict[str, float]:
    """Return precision, recall and F1 of entities from their numbers; 0 where there are none."""
    return {
        "entity_f1": 2 * both / max(1, predicted + real),
        "entity_precision": both / max(1, predicted),
        "entity_recall": both / max(1, real),
    }


def _in_words(found: Sequence[tuple[int, int, str]], words: Sequence[str]) -> str:
    """Return entities as a line: PER John Smith; LOC Paris."""
    return "; ".join(f"{kind} {' '.join(words[first:end])}".strip() for first, end, kind in found) or OUTSIDE
