"""What a dense teacher says about each training row, computed once: it is deterministic, so no step recomputes it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.losses import PADDING
from prunekit.models.forward import decodes, forward_logits
from prunekit.models.heads import MASKED_LOGIT, by_token
from prunekit.tokens.policies import ranks
from prunekit.tokens.state import Trace

# of each word's logits so many are kept, the others count as impossible: all of a vocabulary of 60,000 words would be
# terabytes.  Source: Tan et al., arXiv:1902.10461, who distil translators from the best 8
LIKELY_WORDS = 32


@dataclass(frozen=True)
class TeacherOutputs:
    """Logits of every training row, and the rank of each token by the attention it receives in the last layer.

    `ranks` lie end to end, `offsets[row]` is where a row begins; 0 = best, -1 = [CLS]. Where answers are found there
    are logits per token, [1, total, 2], end to end too. Of a translation there are those of the most likely words,
    `ids`, at each word of the targets, end to end; `word_offsets[row]` is where a row's begin, `vocabulary` how many
    words there are.
    """

    logits: Float[Tensor, "rows classes"] | Float[Tensor, "1 total 2"]
    ranks: Int[Tensor, "total"]
    offsets: Int[Tensor, "boundaries"]
    ids: Int[Tensor, "words likely"] | None = None
    word_offsets: Int[Tensor, "boundaries"] | None = None
    vocabulary: Int[Tensor, ""] | None = None

    def batch(
        self, index: Int[Tensor, "batch"], width: int
    ) -> tuple[Float[Tensor, "decisions classes"] | Float[Tensor, "batch width 2"], Int[Tensor, "batch width"]]:
        """Logits and ranks of the rows `index`, padded to `width` columns where they are per token; ranks with -1.

        Of a translation the logits have a row per word of the targets, as those of `heads.forward_logits`.
        """
        rows = index.cpu()
        start, end = self.offsets[rows], self.offsets[rows + 1]
        column = torch.arange(width)[None, :]
        inside = column < (end - start)[:, None]
        place = (start[:, None] + column).clamp(max=len(self.ranks) - 1)
        found = torch.where(inside, self.ranks[place].long(), -1)
        logits = self.logits
        if by_token(logits):
            logits = logits[0, place].masked_fill(~inside[..., None], MASKED_LOGIT)
        elif self.ids is not None and self.word_offsets is not None and self.vocabulary is not None:
            borders = zip(self.word_offsets[rows].tolist(), self.word_offsets[rows + 1].tolist(), strict=True)
            words = torch.cat([torch.arange(first, last) for first, last in borders])
            every = logits.new_full((len(words), int(self.vocabulary)), MASKED_LOGIT)
            logits = every.scatter(1, self.ids[words].long(), logits[words])
        else:
            logits = logits[rows]
        return logits.to(index.device), found.to(index.device)

    def save(self, path: Path) -> None:
        """Writes the outputs atomically."""
        scratch = path.with_suffix(f".tmp{os.getpid()}")
        save_file({name: tensor for name, tensor in vars(self).items() if tensor is not None}, scratch)
        scratch.replace(path)

    @classmethod
    def load(cls, path: Path) -> TeacherOutputs:
        """Reads what `save` wrote."""
        return cls(**load_file(path))

    @classmethod
    def load_if_whole(cls, path: Path) -> TeacherOutputs | None:
        """Reads what `save` wrote; None where there is nothing, or nothing that can be read."""
        try:
            return cls.load(path) if path.is_file() else None
        except (SafetensorError, OSError, TypeError):
            return None


@torch.no_grad()
def teacher_outputs(
    model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]], lengths: Int[Tensor, "rows"]
) -> TeacherOutputs:
    """Runs a dense model that carries the traversal over every row once.

    `batches` carry `index`, the row's number; `lengths` are the token counts of all rows.
    """
    model.eval()
    translated = _Translated() if decodes(model) else None
    last = model.config.num_hidden_layers - 1
    offsets = torch.nn.functional.pad(lengths.long().cumsum(0), (1, 0))
    flat = torch.full((int(offsets[-1]),), -1, dtype=torch.int16)
    logits: Tensor | None = None
    for batch in batches:
        trace = Trace.scoring([last])
        # ranked are all that any method may remove: tokens that a task marks are ranked, [CLS] is not
        given = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "protected"}
        out = forward_logits(model, given, "dense", trace).float().cpu()
        scores = trace.layers[last].received
        assert scores is not None
        real = batch["attention_mask"].float()
        ranked = real * (trace.layers[last].protected.cpu() <= 0)
        order = ranks(scores.cpu(), ranked).masked_fill(ranked == 0, -1)
        place = offsets[batch["index"]][:, None] + torch.arange(real.shape[1])
        flat[place[real > 0]] = order[real > 0].to(torch.int16)
        if translated is not None:
            translated.add(out, batch)
            continue
        if logits is None:
            logits = out.new_zeros((1, len(flat), 2) if by_token(out) else (len(lengths), out.shape[-1]))
        if by_token(out):
            logits[0, place[real > 0]] = out[real > 0]
        else:
            logits[batch["index"]] = out
    if translated is not None and translated.found:
        return translated.outputs(flat, offsets)
    if logits is None:
        raise ValueError("the teacher was given 0 batches; the training split must have at least one row.")
    return TeacherOutputs(logits, flat, offsets)


class _Translated:
    """Collects the most likely words of each row's targets."""

    def __init__(self) -> None:
        self.found: dict[int, tuple[Tensor, Tensor]] = {}
        self.vocabulary = 0

    def add(self, logits: Float[Tensor, "words vocabulary"], batch: Mapping[str, Tensor]) -> None:
        """Adds a batch; `logits` have a row per word of its targets."""
        self.vocabulary = logits.shape[-1]
        best = logits.topk(min(LIKELY_WORDS, self.vocabulary), dim=-1)
        counts = (batch["labels"] != PADDING).sum(-1).tolist()
        parts = zip(best.values.split(counts), best.indices.split(counts), strict=True)
        for row, (values, ids) in zip(batch["index"].tolist(), parts, strict=True):
            self.found[row] = (values.clone(), ids.to(torch.int32))

    def outputs(self, ranks: Int[Tensor, "total"], offsets: Int[Tensor, "boundaries"]) -> TeacherOutputs:
        """Of all rows, in the order of their numbers."""
        values, ids = zip(*(self.found[row] for row in range(len(self.found))), strict=True)
        starts = torch.tensor([0, *(len(some) for some in ids)]).cumsum(0)
        return TeacherOutputs(torch.cat(values), ranks, offsets, torch.cat(ids), starts, torch.tensor(self.vocabulary))
