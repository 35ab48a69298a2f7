"""The packed engine: a trained model compiled for speed on a CPU, with the method's own decisions.

Tokens of the whole batch lie end to end, [rows, hidden]; no padding is ever computed. Who leaves is decided by the
model's own TokenPruner after each layer's attention; who leaves is gone before the output projection. All decisions of
a batch depend on their own sentence alone, and so do all results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from prunekit.heads import NOWHERE, behind_encoder, by_token
from prunekit.runtime.attention import Plan, attend, attend_from_first
from prunekit.runtime.linears import FLOWING, Dtype, Linear, choose, dtype_of
from prunekit.runtime.native import NativeAttention, native_attention
from prunekit.runtime.threads import threads as computing_with
from prunekit.tokens.backbones import LayerParts, family_of, most_tokens, row_embedder
from prunekit.tokens.encoder import TokenPruner, encoder_of
from prunekit.tokens.packing import Packing
from prunekit.tokens.state import LayerTrace, TokenState, Trace

# one sentence, a pair of sentences, its token ids; or a padded batch as Hugging Face's tokenizers make them
Text = str | tuple[str, str] | Sequence[int]
Inputs = Text | Sequence[Text] | Mapping[str, Tensor]
# up to so many rows their count is rounded up to a multiple of: a new count costs oneDNN a compilation
ROUNDING = ((32, 4), (128, 8), (512, 16))
ROUNDING_ABOVE = 32


def load(folder: str | Path, *, dtype: str = "fp32", threads: int | None = None, **options: Any) -> PackedEngine:
    """The engine of a checkpoint folder, with the folder's tokenizer if it has one; options as `PackedEngine`."""
    dtype_of(dtype)
    from prunekit import pretrained

    has_tokenizer = any(Path(folder).glob("tokenizer*")) or (Path(folder) / "vocab.txt").is_file()
    tokenizer = AutoTokenizer.from_pretrained(folder) if has_tokenizer else None
    return PackedEngine(pretrained.load(folder), tokenizer, dtype=dtype, threads=threads, **options)


def rounded(rows: int, sentences: int) -> int:
    """The number of rows that is computed for so many: rounded up, so that new counts are rare.

    One sentence alone is rounded only where few rows cost no less than a few more.
    """
    step = next((step for most, step in ROUNDING if rows <= most), ROUNDING_ABOVE)
    if sentences == 1 and rows > ROUNDING[0][0]:
        return rows
    return -(-rows // step) * step


@dataclass(frozen=True)
class Rows:
    """A batch without padding: rows of all sentences end to end, and how many each sentence has."""

    ids: Int[Tensor, "rows"]
    packing: Packing
    types: Int[Tensor, "rows"] | None = None
    protected: Bool[Tensor, "rows"] | None = None


@dataclass(frozen=True)
class Result:
    """What the engine says about a batch.

    `logits` are float32: per class, or [batch, tokens, 2] of the first and last token of an answer, where padding has
    none. `labels` are the names of the best classes; None for regression and answers.
    """

    logits: Float[Tensor, "batch outputs"] | Float[Tensor, "batch tokens 2"]
    labels: list[str] | None
    steps: tuple[_Step, ...]

    @cached_property
    def kept(self) -> list[list[list[int]]]:
        """For each layer and sentence, the places in the sentence of the tokens that entered its feed-forward half.

        Under `cls_last` these are of the last layer [CLS] alone, whatever the method would have decided there.
        """
        return [
            [place[keep > 0].tolist() for place, keep in zip(step.position, step.keep, strict=True)]
            for step in self.steps
        ]

    @cached_property
    def trace(self) -> Trace:
        """The same as the traversal's trace, for cost meters and reports."""
        return Trace(layers=[step.entry() for step in self.steps])


@dataclass(frozen=True)
class _Step:
    """What happened at one layer, as cheaply as it can be remembered; all but counts as in `LayerTrace`."""

    layer: int
    decided: bool
    tokens_in: tuple[int, ...]
    keep: Float[Tensor, "batch tokens"]
    position: Int[Tensor, "batch tokens"]
    protected: Float[Tensor, "batch tokens"]
    macs: Float[Tensor, "batch"] | None = None

    def entry(self) -> LayerTrace:
        return LayerTrace(
            self.layer,
            self.decided,
            torch.tensor(self.tokens_in, dtype=torch.float32),
            (self.keep > 0).float().sum(-1),
            self.keep,
            self.position,
            self.protected,
            scorer_macs=self.macs,
        )


class _Layer:
    """One layer, compiled."""

    def __init__(self, parts: LayerParts, linear: type[Linear], dtype: Dtype, first_only: bool) -> None:
        kind = FLOWING[dtype]
        self.heads = parts.heads
        scale = (parts.query.out_features // parts.heads) ** -0.5
        # attention's scale goes into the queries' weights; one product makes queries, keys and values
        query = parts.query.weight * scale, parts.query.bias * scale
        keys: tuple[list[Tensor], list[Tensor]] = (
            [parts.key.weight, parts.value.weight],
            [parts.key.bias, parts.value.bias],
        )
        if first_only:
            self.query = linear(query[0], query[1], dtype)
            self.key_value = linear(torch.cat(keys[0]), torch.cat(keys[1]), dtype)
        else:
            self.qkv = linear(torch.cat([query[0], *keys[0]]), torch.cat([query[1], *keys[1]]), dtype)
        self.output = linear(parts.output.weight, parts.output.bias, dtype)
        self.up = linear(parts.up.weight, parts.up.bias, dtype, parts.activation)
        self.down = linear(parts.down.weight, parts.down.bias, dtype)
        self.norms = [
            (norm.weight.to(kind), norm.bias.to(kind), norm.eps) for norm in (parts.attention_norm, parts.norm)
        ]

    def finish(self, mixed: Float[Tensor, "rows hidden"], hidden: Float[Tensor, "rows hidden"]) -> Tensor:
        """What is left of a layer behind its attention, row by row."""
        attended = self._norm(0, self.output(mixed, hidden))
        return self._norm(1, self.down(self.up(attended), attended))

    def _norm(self, which: int, rows: Tensor) -> Tensor:
        weight, bias, epsilon = self.norms[which]
        return F.layer_norm(rows, weight.shape, weight, bias, epsilon)


class PackedEngine:
    """A trained model, compiled for inference; calling it gives a `Result`.

        engine = prunekit.load("runs/.../model", engine="packed")
        engine(["The match ended in a draw.", "Shares fell."]).labels

    `dtype` "int8" quantises the matrix products of the layers, activations row by row; "bf16" computes everything but
    scores, embeddings and head in bfloat16. `threads` None leaves torch's number of threads alone. `linears` names a
    backend (prunekit.runtime.linears), "auto" takes the fastest that works here; `attention` is "native" (C++, built at
    first use), "torch", or "auto": native where it can be built and computes right. `cls_last` computes the last layer
    for the first token alone where the head reads no other: that changes no logit, and is no merit of pruning.

    Some weights are shared with the model and others are copied: if the model is trained on, make a new engine.

    Raises:
        ValueError: a family or head that the engine does not know, a model in training mode or not on the CPU, or an
            unknown dtype or backend.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any = None,
        *,
        dtype: str = "fp32",
        threads: int | None = None,
        linears: str = "auto",
        attention: str = "auto",
        cls_last: bool = True,
    ) -> None:
        self.dtype = dtype_of(dtype)
        if threads is not None and threads < 1:
            raise ValueError(f"threads={threads} is no number of threads; give 1 or more, or None for torch's own.")
        family = family_of(model)
        if family.parts is None:
            raise ValueError(
                f"{type(model).__name__} is of the family {model.config.model_type!r}, which the packed engine does "
                f"not run; load it with engine='hf'."
            )
        if model.training or model.device.type != "cpu":
            raise ValueError(
                f"the model is {'in training mode' if model.training else f'on {model.device}'}, but the packed engine "
                f"is compiled from one in evaluation mode on the CPU; call model.eval().cpu() first."
            )
        encoder = encoder_of(model)
        self.tokenizer = tokenizer
        self.threads = threads
        self.pruner: TokenPruner | None = encoder.pruner
        self.config = model.config
        self.most_tokens = most_tokens(model)
        self.head = behind_encoder(model)
        # a first token that may be pruned might not be there any more
        stays = self.pruner is None or self.pruner.protect_first
        self.cls_last = cls_last and self.head.first_only and stays
        self.linear = choose(self.dtype, linears)
        self.native = _native(attention)
        self._embed = row_embedder(model)
        last = len(encoder.blocks) - 1
        with torch.inference_mode():
            self.layers = [
                _Layer(family.parts(layer), self.linear, self.dtype, self.cls_last and index == last)
                for index, layer in enumerate(encoder.blocks)
            ]

    def __call__(self, inputs: Inputs, *, prune: bool = True) -> Result:
        """Logits, labels and kept tokens of texts, pairs of texts, token ids, or a padded batch.

        A padded batch has `input_ids` and may have `attention_mask`, `token_type_ids` and `protected` (tokens that
        stay whatever their score), padded on the right. `prune=False` runs the dense model, packed.

        Raises:
            ValueError: a text without tokens or with more than the model has positions for, or padding elsewhere than
                on the right; texts given to an engine without a tokenizer.
        """
        with torch.inference_mode(), computing_with(self.threads):
            return self._run(self._rows(inputs), self.pruner if prune else None)

    # -- what comes in ---------------------------------------------------------------------------------

    def _rows(self, inputs: Inputs) -> Rows:
        if isinstance(inputs, Mapping):
            return self._checked(_of_padded(inputs))
        texts: Any = [inputs] if isinstance(inputs, str | tuple) or _is_ids(inputs) else list(inputs)
        if not texts:
            raise ValueError("the engine was given no text; give one or more.")
        types: list[int] | None = None
        if all(map(_is_ids, texts)):
            ids = [list(text) for text in texts]
        else:
            ids, types = self._tokens(texts)
        return self._checked(
            Rows(
                torch.tensor([token for row in ids for token in row], dtype=torch.long),
                Packing.of([len(row) for row in ids], torch.device("cpu")),
                None if types is None else torch.tensor(types),
            )
        )

    def _tokens(self, texts: Sequence[str | tuple[str, str]]) -> tuple[list[list[int]], list[int] | None]:
        """Token ids of each text, and token types of all end to end; a text that is too long is cut."""
        if self.tokenizer is None:
            raise ValueError("this engine has no tokenizer, so it reads token ids alone; pass one when you make it.")
        pairs = [text if isinstance(text, tuple) else (text,) for text in texts]
        given = self.tokenizer(*zip(*pairs, strict=True), truncation=True, max_length=self.most_tokens)
        types = given.get("token_type_ids")
        return given["input_ids"], None if types is None else [kind for row in types for kind in row]

    def _checked(self, rows: Rows) -> Rows:
        for index, length in enumerate(rows.packing.lengths):
            if not 1 <= length <= self.most_tokens:
                raise ValueError(
                    f"text {index} has {length} tokens; this model takes 1 to {self.most_tokens}, "
                    f"so cut it or leave it out."
                )
        return rows

    # -- through the layers ----------------------------------------------------------------------------

    def _run(self, rows: Rows, pruner: TokenPruner | None) -> Result:
        walk = _Walk(self, rows, pruner)
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            if index == last and self.cls_last:
                return self._result(walk.first_only(index, layer), walk)
            walk.step(index, layer, pruner)
        return self._result(walk.restored(), walk)

    def _result(self, hidden: Float[Tensor, "batch tokens hidden"], walk: _Walk) -> Result:
        logits = self.head.logits(hidden.float())
        if by_token(logits):
            logits = logits.masked_fill(~walk.whole.real[..., None], NOWHERE)
        labels = None
        if not by_token(logits) and logits.shape[-1] > 1:
            labels = [self.config.id2label[best] for best in logits.argmax(-1).tolist()]
        return Result(logits, labels, tuple(walk.steps))


class _Walk:
    """A batch on its way: rows [rows, hidden] with a few dummies behind them, bookkeeping in the padded view."""

    def __init__(self, engine: PackedEngine, rows: Rows, pruner: TokenPruner | None) -> None:
        self.whole = self.packing = rows.packing
        self.steps: list[_Step] = []
        real = self.packing.real
        self.position = torch.arange(self.packing.width).expand_as(real) * real
        self.places = self.position[real]
        self.start = engine._embed(rows.ids, rows.types, self.places).to(FLOWING[engine.dtype])
        self.keep = real.float()
        self.length = self.keep.sum(-1)
        stays = torch.zeros_like(self.keep) if rows.protected is None else self.packing.padded(rows.protected.float())
        if pruner is not None and pruner.protect_first:
            stays[:, 0] = 1
        if pruner is not None and pruner.protect_last:
            stays = torch.where(torch.arange(self.packing.width) == self.length[:, None] - 1, 1.0, stays)
        self.protected = stays
        self.scores: Tensor | None = None
        self.hidden = F.pad(self.start, (0, 0, 0, self._room()))
        self.native = engine.native
        self.plan = Plan(self.packing, len(self.hidden), self.native)
        # who leaves has to be remembered where somebody may ask for them behind the last layer
        self.first_is_enough = engine.head.first_only
        self.output: Tensor | None = None
        if not self.first_is_enough or (pruner is not None and not pruner.protect_first):
            self.output = torch.zeros_like(self.start)
            self.origin = torch.arange(len(self.start))

    @property
    def total(self) -> int:
        return sum(self.packing.lengths)

    def _room(self) -> int:
        return rounded(self.total, len(self.packing.lengths)) - self.total

    def step(self, index: int, layer: _Layer, pruner: TokenPruner | None) -> None:
        """One layer."""
        decides = pruner is not None and index in pruner.layers and self.total > 0
        lengths = self.packing.lengths
        if self.total == 0:
            self._note(index, lengths, False)
            return
        needs = pruner.scorer.needs if pruner is not None and decides else frozenset()
        mixed, signals = attend(layer.qkv(self.hidden), layer.heads, self.plan, needs)
        hidden, macs = self.hidden, None
        if pruner is not None and decides:
            state = self._state(index, needs)
            scores, keep = pruner.decide(index, signals, state, soft=False)
            self.scores = scores if "previous" in needs else None
            macs = pruner.scorer.macs(state.count)
            self._note(index, lengths, True, keep, macs)
            mixed, hidden = self._leave(keep, mixed, hidden)
        else:
            self._note(index, lengths, False)
        self.hidden = layer.finish(mixed, hidden) if self.total else hidden

    def first_only(self, index: int, layer: _Layer) -> Float[Tensor, "batch 1 hidden"]:
        """The last layer for the first token of each sentence, which reads all of them."""
        keep = torch.zeros_like(self.keep)
        keep[:, 0] = 1
        self._note(index, self.packing.lengths, False, keep)
        batch = len(self.packing.lengths)
        first = F.pad(self.packing.offsets[:-1], (0, rounded(batch, batch) - batch))
        hidden = self.hidden.index_select(0, first)
        query = layer.query(hidden)[:batch]
        mixed = attend_from_first(query, layer.key_value(self.hidden), layer.heads, self.packing)
        return layer.finish(F.pad(mixed, (0, 0, 0, len(first) - batch)), hidden)[:batch, None]

    def restored(self) -> Float[Tensor, "batch tokens hidden"]:
        """What the head reads: all tokens in the incoming shape, or the first of each sentence."""
        if self.output is None:
            return self.hidden.index_select(0, self.packing.offsets[:-1])[:, None]
        self.output[self.origin] = self.hidden[: self.total]
        if self.first_is_enough:
            return self.output.index_select(0, self.whole.offsets[:-1])[:, None]
        return self.whole.padded(self.output)

    def _state(self, index: int, needs: frozenset[Any]) -> TokenState:
        hidden = embedded = None
        if "hidden" in needs:
            hidden = self.packing.padded(self.hidden[: self.total]).float()
        if "embedded" in needs:
            rows = (self.whole.offsets[:-1, None] + self.position).clamp(max=len(self.start) - 1)
            embedded = self.start[rows].float()
        return TokenState(self.keep, self.position, self.protected, self.length, hidden, self.scores, embedded, index)

    def _leave(self, keep: Float[Tensor, "batch tokens"], mixed: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the decision; returns what is left of attention's output and of the layer's input."""
        staying = keep > 0
        counts = staying.sum(-1).tolist()
        if sum(counts) == self.total:
            return mixed, hidden
        stay = self.packing.packed(staying)
        chosen = stay.nonzero().squeeze(-1)
        if self.output is not None:
            gone = (~stay).nonzero().squeeze(-1)
            self.output[self.origin[gone]] = hidden[gone]
            self.origin = self.origin[chosen]
        self.packing = packing = Packing.of(counts, keep.device)
        self.position = packing.padded(self.position[staying])
        self.protected = packing.padded(self.protected[staying])
        self.scores = None if self.scores is None else packing.padded(self.scores[staying])
        self.keep = packing.real.float()
        # dummy rows are copies of the first: no number in them is out of the ordinary
        chosen = F.pad(chosen, (0, self._room()))
        self.plan = Plan(packing, len(chosen), self.native)
        return mixed.index_select(0, chosen), hidden.index_select(0, chosen)

    def _note(
        self,
        index: int,
        lengths: tuple[int, ...],
        decided: bool,
        keep: Tensor | None = None,
        macs: Tensor | None = None,
    ) -> None:
        now = self.keep if keep is None else keep
        self.steps.append(_Step(index, decided, lengths, now, self.position, self.protected, macs))


def _native(attention: str) -> NativeAttention | None:
    if attention not in ("auto", "native", "torch"):
        raise ValueError(f"attention={attention!r} is unknown; choose one of auto, native, torch.")
    found = None if attention == "torch" else native_attention()
    if found is None and attention == "native":
        raise ValueError(
            "attention='native' could not be built here, or computes something wrong: it takes a C++ compiler "
            "(c++, or the environment's CXX); choose attention='auto', which goes without."
        )
    return found


def _is_ids(text: Any) -> bool:
    return not isinstance(text, str | tuple) and len(text) > 0 and isinstance(text[0], int)


def _of_padded(batch: Mapping[str, Tensor]) -> Rows:
    """A padded batch without its padding."""
    ids = batch["input_ids"]
    mask = batch.get("attention_mask", torch.ones_like(ids)) > 0
    lengths = mask.sum(-1)
    if not torch.equal(mask, torch.arange(ids.shape[1]) < lengths[:, None]):
        raise ValueError(
            "the batch is padded elsewhere than on the right; "
            "set tokenizer.padding_side='right', or pass lists of token ids."
        )

    def packed(name: str) -> Tensor | None:
        return batch[name][mask] if name in batch else None

    return Rows(ids[mask], Packing.of(lengths.tolist(), ids.device), packed("token_type_ids"), packed("protected"))
