"""What a dense teacher predicts for each training row, computed once: it is deterministic, so no step recomputes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.config.errors import first_line
from prunekit.console import say
from prunekit.data import spill
from prunekit.data.encoding import Batch
from prunekit.files import damage, write_sealed
from prunekit.losses import decisions_per_row
from prunekit.models.forward import decodes, evaluating, forward_logits, on_device
from prunekit.models.heads import MASKED_LOGIT, by_token, labels_words
from prunekit.tokens.policies import ranks
from prunekit.tokens.state import Trace

# of each word's logits this many are kept, the others count as impossible: all of a vocabulary of 60,000 words would be
# terabytes.  Source: Tan et al., arXiv:1902.10461, who distil translators from the best 8
LIKELY_WORDS = 32


class TeacherLogits(ABC):
    """Logits of every training row, in the form that the model's head gives them."""

    @abstractmethod
    def batch(
        self, rows: Int[Tensor, "batch"], place: Int[Tensor, "batch width"], inside: Bool[Tensor, "batch width"]
    ) -> Float[Tensor, "decisions outputs"] | Float[Tensor, "batch width 2"]:
        """Return the logits of these rows, as `models.forward.forward_logits` gives them.

        `place` is where each of their tokens is among those of all rows, `inside` which tokens are not padding.
        """


@dataclass(frozen=True)
class RowLogits(TeacherLogits):
    """Logits per row."""

    logits: Float[Tensor, "rows classes"]

    def batch(
        self, rows: Int[Tensor, "batch"], place: Int[Tensor, "batch width"], inside: Bool[Tensor, "batch width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the logits of these rows."""
        return self.logits[rows]


@dataclass(frozen=True)
class TokenLogits(TeacherLogits):
    """Logits of the first and last token of an answer per token, all rows end to end."""

    logits: Float[Tensor, "1 total 2"]

    def batch(
        self, rows: Int[Tensor, "batch"], place: Int[Tensor, "batch width"], inside: Bool[Tensor, "batch width"]
    ) -> Float[Tensor, "batch width 2"]:
        """Return the logits of these rows' tokens."""
        return self.logits[0, place].masked_fill(~inside[..., None], MASKED_LOGIT)


@dataclass(frozen=True)
class WordLogits(TeacherLogits):
    """Logits of the most likely words, `ids`, at each word of the targets, all rows end to end; or of all classes.

    `word_offsets[row]` is where a row's words begin, `vocabulary` how many words there are.
    """

    logits: Float[Tensor, "words likely"]
    ids: Int[Tensor, "words likely"]
    word_offsets: Int[Tensor, "boundaries"]
    vocabulary: Int[Tensor, ""]

    def batch(
        self, rows: Int[Tensor, "batch"], place: Int[Tensor, "batch width"], inside: Bool[Tensor, "batch width"]
    ) -> Float[Tensor, "decisions vocabulary"]:
        """Return a row of logits per word of these rows' targets."""
        borders = zip(self.word_offsets[rows].tolist(), self.word_offsets[rows + 1].tolist(), strict=True)
        words = torch.cat([torch.arange(first, last) for first, last in borders])
        every = self.logits.new_full((len(words), int(self.vocabulary)), MASKED_LOGIT)
        return every.scatter(1, self.ids[words].long(), self.logits[words])


@dataclass(frozen=True)
class TeacherOutputs:
    """Logits of every training row, and the rank of each token by the attention it receives in the last layer.

    `ranks` are end to end, `offsets[row]` is where a row begins; 0 = best, -1 = [CLS].
    """

    logits: TeacherLogits
    ranks: Int[Tensor, "total"]
    offsets: Int[Tensor, "boundaries"]

    def batch(
        self, index: Int[Tensor, "batch"], width: int
    ) -> tuple[Float[Tensor, "decisions outputs"] | Float[Tensor, "batch width 2"], Int[Tensor, "batch width"]]:
        """Return logits and ranks of the rows `index`, padded to `width` columns where they are per token; ranks with
        -1.
        """
        rows = index.cpu()
        start, end = self.offsets[rows], self.offsets[rows + 1]
        column = torch.arange(width)[None, :]
        inside = column < (end - start)[:, None]
        place = (start[:, None] + column).clamp(max=len(self.ranks) - 1)
        order = torch.where(inside, self.ranks[place].long(), -1)
        return self.logits.batch(rows, place, inside).to(index.device), order.to(index.device)

    def save(self, path: Path) -> None:
        """Write the outputs atomically, sealed."""
        tensors = {"ranks": self.ranks, "offsets": self.offsets, **vars(self.logits)}
        write_sealed(path, partial(save_file, tensors))

    @classmethod
    def load(cls, path: Path) -> TeacherOutputs:
        """Read what `save` wrote."""
        tensors = load_file(path)
        order, offsets = tensors.pop("ranks"), tensors.pop("offsets")
        # the forms are told apart by what they hold, so that a file says all about itself
        form = WordLogits if "ids" in tensors else TokenLogits if by_token(tensors["logits"]) else RowLogits
        return cls(form(**tensors), order, offsets)

    @classmethod
    def load_if_whole(cls, path: Path) -> TeacherOutputs | None:
        """Read what `save` wrote; None where there is nothing, or where it is damaged, which is printed."""
        if not path.is_file():
            return None
        wrong = damage(path)
        if wrong is None:
            try:
                return cls.load(path)
            except (SafetensorError, OSError, TypeError, KeyError) as error:
                wrong = f"cannot be read ({first_line(error)})"
        say(f"cache      {path} {wrong}; it is made again.")
        return None


def teacher_outputs(model: PreTrainedModel, batches: Iterable[Batch], lengths: Int[Tensor, "rows"]) -> TeacherOutputs:
    """Run a dense model that carries the pruned encoder over every row once.

    `batches` carry `index`, the row's number; `lengths` are the token counts of all rows.
    """
    last = model.config.num_hidden_layers - 1
    offsets = torch.from_numpy(spill.empty(len(lengths) + 1, np.int64))
    torch.cumsum(lengths, 0, out=offsets[1:])
    flat = torch.from_numpy(spill.empty(int(offsets[-1]), np.int16)).fill_(-1)
    collected: _Collector | None = None
    for batch in batches:
        trace = Trace.scoring([last])
        # every token that a method may drop is ranked: those that a task protects are, [CLS] is not
        given = {name: tensor for name, tensor in on_device(batch, model.device).items() if name != "protected"}
        with evaluating(model):
            out = forward_logits(model, given, "dense", trace).float().cpu()
        scores = trace.layers[last].received
        assert scores is not None
        real = batch["attention_mask"].float()
        ranked = real * (trace.layers[last].protected.cpu() <= 0)
        order = ranks(scores.cpu(), ranked).masked_fill(ranked == 0, -1)
        place = (offsets[batch["index"]][:, None] + torch.arange(real.shape[1]))[real > 0]
        flat[place] = order[real > 0].to(torch.int16)
        collected = collected or _collector(model, out, len(lengths), len(flat))
        collected.add(out, batch, place)
    if collected is None:
        raise ValueError("the teacher was given 0 batches; the training split must have at least one row.")
    return TeacherOutputs(collected.logits(), flat, offsets)


class _Collector(ABC):
    """Logits, collected batch by batch."""

    @abstractmethod
    def add(self, logits: Shaped[Tensor, "..."], batch: Batch, place: Int[Tensor, "tokens"]) -> None:
        """Add a batch; `place` is where its tokens are among those of all rows."""

    @abstractmethod
    def logits(self) -> TeacherLogits:
        """Return the logits of all rows, in the order of their numbers."""


def _collector(model: PreTrainedModel, logits: Tensor, rows: int, tokens: int) -> _Collector:
    """Return what collects logits like the first ones, `logits`."""
    if decodes(model):
        return _Words(LIKELY_WORDS)
    if labels_words(model):
        return _Words(logits.shape[-1])
    return _Tokens(tokens) if by_token(logits) else _Rows(rows, logits.shape[-1])


class _Rows(_Collector):
    """A row of logits per row."""

    def __init__(self, rows: int, outputs: int) -> None:
        self.all = torch.from_numpy(spill.empty((rows, outputs), np.float32))

    def add(self, logits: Shaped[Tensor, "..."], batch: Batch, place: Int[Tensor, "tokens"]) -> None:
        """Add a batch."""
        self.all[batch["index"]] = logits

    def logits(self) -> RowLogits:
        """Return the logits."""
        return RowLogits(self.all)


class _Tokens(_Collector):
    """Two logits per token."""

    def __init__(self, tokens: int) -> None:
        self.all = torch.from_numpy(spill.empty((1, tokens, 2), np.float32))

    def add(self, logits: Shaped[Tensor, "..."], batch: Batch, place: Int[Tensor, "tokens"]) -> None:
        """Add a batch."""
        self.all[0, place] = logits[batch["attention_mask"] > 0]

    def logits(self) -> TokenLogits:
        """Return the logits."""
        return TokenLogits(self.all)


class _Words(_Collector):
    """The `most` highest logits of each decision of a row, such as the most likely words of its target."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.found: dict[int, tuple[Tensor, Tensor]] = {}
        self.vocabulary = 0

    def add(self, logits: Shaped[Tensor, "..."], batch: Batch, place: Int[Tensor, "tokens"]) -> None:
        """Add a batch; `logits` have a row per decision."""
        self.vocabulary = logits.shape[-1]
        best = logits.topk(min(self.most, self.vocabulary), dim=-1)
        counts = decisions_per_row(batch["labels"]).tolist()
        parts = zip(best.values.split(counts), best.indices.split(counts), strict=True)
        for row, (values, ids) in zip(batch["index"].tolist(), parts, strict=True):
            self.found[row] = (values.clone(), ids.to(torch.int32))

    def logits(self) -> WordLogits:
        """Return the logits."""
        values, ids = zip(*(self.found[row] for row in range(len(self.found))), strict=True)
        starts = torch.tensor([0, *(len(some) for some in ids)]).cumsum(0)
        return WordLogits(torch.cat(values), torch.cat(ids), starts, torch.tensor(self.vocabulary))
