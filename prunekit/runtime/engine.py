"""The packed engine: a trained model compiled for speed, on a CPU or a GPU, with the method's own decisions.

Tokens of the whole batch lie end to end, [rows, hidden]; no padding is ever computed. Who leaves is decided by the
model's own TokenPruner after each layer's attention; who leaves is gone before the output projection. All decisions of
a batch depend on their own sentence alone, and so do all results.

On a GPU the host lays out every layer before the device has computed the one before: shapes are known from the lengths
where a policy says how many it keeps of so many (`counts`), and are read from the device, once per deciding layer,
where it does not.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
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
from prunekit.runtime.attention import Fused, Plan, attend, attend_from_first
from prunekit.runtime.extras import need
from prunekit.runtime.linears import FLOWING, Dtype, Linear, choose, computes, dtype_of
from prunekit.runtime.memory import keep_freed
from prunekit.runtime.native import native_attention
from prunekit.runtime.threads import threads as computing_with
from prunekit.tokens.backbones import LayerParts, family_of, most_tokens, row_embedder
from prunekit.tokens.encoder import TokenPruner, encoder_of
from prunekit.tokens.host import read, send
from prunekit.tokens.packing import Packing
from prunekit.tokens.scorers import Scorer
from prunekit.tokens.state import LayerTrace, TokenState, Trace

# one sentence, a pair of sentences, its token ids; or a padded batch as Hugging Face's tokenizers make them
Text = str | tuple[str, str] | Sequence[int]
Inputs = Text | Sequence[Text] | Mapping[str, Tensor]
# up to so many rows their count is rounded up to a multiple of: a new count costs oneDNN a compilation
ROUNDING = ((32, 4), (128, 8), (512, 16))
ROUNDING_ABOVE = 32


def load(
    folder: str | Path, *, dtype: str = "fp32", threads: int | None = None, device: str = "cpu", **options: Any
) -> PackedEngine:
    """The engine of a checkpoint folder, with the folder's tokenizer if it has one; options as `PackedEngine`."""
    dtype_of(dtype)
    device_of(device)
    from prunekit import pretrained

    has_tokenizer = any(Path(folder).glob("tokenizer*")) or (Path(folder) / "vocab.txt").is_file()
    tokenizer = AutoTokenizer.from_pretrained(folder) if has_tokenizer else None
    return PackedEngine(pretrained.load(folder), tokenizer, dtype=dtype, threads=threads, device=device, **options)


@contextmanager
def computing_on(device: torch.device) -> Iterator[None]:
    """Inference, with a GPU as the current one: that is where kernels are launched."""
    with torch.inference_mode(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield


def device_of(name: str | torch.device) -> torch.device:
    """Where the engine computes, by its name.

    Raises:
        ValueError: there is no such device here, or the engine does not run on one of its kind.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={str(name)!r} is none that the packed engine runs on; choose cpu or cuda.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={str(name)!r}, but torch {torch.__version__} sees no CUDA device here; "
            f"choose device='cpu', or run where there is a GPU and a torch that was built for it."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={str(name)!r}, but this machine has {torch.cuda.device_count()} CUDA devices, counted from 0; "
            f"choose one of them."
        )
    return device


def first_is_enough(model: PreTrainedModel) -> bool:
    """Whether the last layer may be computed for the first token alone: the head reads no other, and that one stays."""
    pruner = encoder_of(model).pruner
    return behind_encoder(model).first_only and (pruner is None or pruner.protect_first)


def rounded(rows: int, sentences: int) -> int:
    """The number of rows that is computed for so many: rounded up, so that new counts are rare.

    One sentence alone is rounded only where few rows cost no less than a few more.
    """
    step = next((step for most, step in ROUNDING if rows <= most), ROUNDING_ABOVE)
    if sentences == 1 and rows > ROUNDING[0][0]:
        return rows
    return -(-rows // step) * step


def row_counts(most: int) -> list[int]:
    """Every number of rows that is computed for a batch of up to so many."""
    return sorted({rounded(rows, 2) for rows in range(1, most + 1)})


@dataclass(frozen=True)
class Rows:
    """A batch without padding: rows of all sentences end to end, and how many each sentence has."""

    ids: Int[Tensor, "rows"]
    packing: Packing
    types: Int[Tensor, "rows"] | None = None
    protected: Bool[Tensor, "rows"] | None = None

    def on(self, device: torch.device) -> Rows:
        """The same on a device."""
        if device.type == "cpu":
            return self
        types, protected = (None if part is None else send(part, device) for part in (self.types, self.protected))
        return Rows(send(self.ids, device), Packing(self.packing.lengths, device), types, protected)


@dataclass(frozen=True)
class Result:
    """What the engine says about a batch.

    `logits` are float32, on the engine's device: per class, or [batch, tokens, 2] of the first and last token of an
    answer, where padding has none. `names` are those of the classes, None for regression and answers.
    On a GPU the device may still be computing them; whoever looks at labels or kept tokens waits for it.
    """

    logits: Float[Tensor, "batch outputs"] | Float[Tensor, "batch tokens 2"]
    names: Mapping[int, str] | None
    steps: tuple[_Step, ...]

    @cached_property
    def labels(self) -> list[str] | None:
        """The names of the best classes; None for regression and answers."""
        return None if self.names is None else [self.names[best] for best in self.logits.argmax(-1).tolist()]

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
    scorer: Scorer | None = None

    def entry(self) -> LayerTrace:
        keep, tokens_in = self.keep.cpu(), torch.tensor(self.tokens_in, dtype=torch.float32)
        return LayerTrace(
            self.layer,
            self.decided,
            tokens_in,
            (keep > 0).float().sum(-1),
            keep,
            self.position.cpu(),
            self.protected.cpu(),
            scorer_macs=None if self.scorer is None else self.scorer.macs(tokens_in),
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
            self.first = [self.query, self.key_value]
        else:
            self.qkv = linear(torch.cat([query[0], *keys[0]]), torch.cat([query[1], *keys[1]]), dtype)
            self.first = [self.qkv]
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

    def warm(self, rows: int) -> None:
        """Computes every product once, of so many rows."""
        hidden = torch.zeros(rows, self.norms[0][0].shape[0], dtype=self.norms[0][0].dtype)
        for first in self.first:
            first(hidden)
        self.finish(hidden, hidden)

    def _norm(self, which: int, rows: Tensor) -> Tensor:
        weight, bias, epsilon = self.norms[which]
        return F.layer_norm(rows, weight.shape, weight, bias, epsilon)


class PackedEngine:
    """A trained model, compiled for inference; calling it gives a `Result`.

        engine = prunekit.load("runs/.../model", engine="packed")
        engine(["The match ended in a draw.", "Shares fell."]).labels

    `device` is "cpu" or "cuda"; the model stays where it is, on the CPU. `dtype` "int8" quantises the matrix products
    of the layers, activations row by row; "bf16" computes everything but scores, embeddings and head in bfloat16; a GPU
    has no int8. `threads` None leaves torch's number of threads alone. `linears` names a backend
    (prunekit.runtime.linears), "auto" takes the fastest that works here; `attention` is "native" (C++, built at first
    use), "triton" (on a GPU), "torch", or "auto": native, or on a GPU triton, where it can be built and computes right.
    `cls_last` computes the last layer for the first token alone where the head reads no other: that changes no logit,
    and is no merit of pruning.

    On the CPU it has glibc keep freed memory, for the whole process (prunekit.runtime.memory).
    Some weights are shared with the model and others are copied: if the model is trained on, make a new engine.

    Raises:
        ValueError: a family or head that the engine does not know, a model in training mode or not on the CPU, an
            unknown dtype, device or backend, or one that is not here.
        MissingPackage: `attention` is "triton", which is not installed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any = None,
        *,
        dtype: str = "fp32",
        threads: int | None = None,
        device: str | torch.device = "cpu",
        linears: str = "auto",
        attention: str = "auto",
        cls_last: bool = True,
    ) -> None:
        self.dtype = dtype_of(dtype)
        self.device = device_of(device)
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
        if self.device.type == "cpu" and not computes(self.dtype):
            warnings.warn(
                f"dtype={dtype!r}: this processor has no instructions for it, which makes it slower than fp32; "
                "choose dtype='fp32' or 'int8', or another machine.",
                stacklevel=2,
            )
        if self.device.type == "cpu":
            keep_freed()
        # before the weights are laid out, which takes a while
        self.linear = choose(self.dtype, linears, self.device)
        first = family.parts(encoder_of(model).blocks[0])
        self.fused = fused_attention(attention, self.dtype, self.device, first.query.out_features // first.heads)
        # counts are the host's affair: this pruner stays there
        self.on_host: TokenPruner | None = encoder_of(model).pruner
        # to say beforehand how many tokens stay costs the host time, which only another device makes up for
        self.ahead = self.device.type != "cpu"
        if self.device.type != "cpu":
            model = copy.deepcopy(model).to(self.device)
        encoder = encoder_of(model)
        self.tokenizer = tokenizer
        self.threads = threads
        self.pruner: TokenPruner | None = encoder.pruner
        self.config = model.config
        self.most_tokens = most_tokens(model)
        self.head = behind_encoder(model)
        self.cls_last = cls_last and first_is_enough(model)
        self._embed = row_embedder(model)
        last = len(encoder.blocks) - 1
        with computing_on(self.device):
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
        with computing_on(self.device), computing_with(self.threads):
            rows = self._rows(inputs)
            known = self._counts(rows) if prune and self.ahead else {}
            return self._run(rows.on(self.device), self.pruner if prune else None, known)

    def warm(self, most: int = 1024) -> PackedEngine:
        """Has the backend compile its products now, for the rounded numbers of rows up to `most`; returns the engine.

        Worth it before serving on a CPU: else each new number of rows costs a batch about half a millisecond per kind
        of product, which is a fifth of its first pass. What stays new are larger batches, and single texts of more than
        32 tokens, whose rows are not rounded. Takes a second or two for layers of 384, a few for those of 768.
        """
        if self.device.type == "cpu":
            with computing_on(self.device), computing_with(self.threads):
                for rows in row_counts(most):
                    # layers of one kind share what is compiled
                    for layer in {id(found): found for found in (self.layers[0], self.layers[-1])}.values():
                        layer.warm(rows)
        return self

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

    def _counts(self, rows: Rows) -> dict[int, tuple[int, ...]]:
        """For each layer that decides, how many tokens of each sentence stay, where lengths alone say so; else empty.

        Nothing is asked of the device.
        """
        pruner = self.on_host
        if pruner is None or not _countable(pruner.policy):
            return {}
        protected = _stays(rows, pruner).sum(-1).long()
        lengths = torch.tensor(rows.packing.lengths)
        policy: Any = pruner.policy
        before, after = policy.counts(lengths, len(self.layers), protected=protected)
        others = [layer for layer in range(len(self.layers)) if layer not in pruner.layers]
        if not torch.equal(before[others], after[others]):
            return {}  # a policy that counts on layers at which it is never asked
        return {layer: tuple(map(int, after[layer].tolist())) for layer in pruner.layers}

    def _run(self, rows: Rows, pruner: TokenPruner | None, known: Mapping[int, tuple[int, ...]]) -> Result:
        walk = _Walk(self, rows, pruner, known)
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
        names = None if by_token(logits) or logits.shape[-1] == 1 else self.config.id2label
        return Result(logits, names, tuple(walk.steps))


class _Walk:
    """A batch on its way: rows [rows, hidden] with a few dummies behind them, bookkeeping in the padded view."""

    def __init__(
        self,
        engine: PackedEngine,
        rows: Rows,
        pruner: TokenPruner | None,
        known: Mapping[int, tuple[int, ...]],
    ) -> None:
        self.whole = self.packing = rows.packing
        self.known = known
        self.steps: list[_Step] = []
        real = self.packing.real
        self.position = torch.arange(self.packing.width, device=real.device).expand_as(real) * real
        places = self.position.flatten().index_select(0, self.packing.places)
        # dummy rows are tokens like any other
        types = None if rows.types is None else self._filled_up(rows.types)
        embedded = engine._embed(self._filled_up(rows.ids), types, self._filled_up(places))
        self.hidden = embedded.to(FLOWING[engine.dtype])
        self.start = self.hidden[: self.total]
        self.keep = real.float()
        self.length = self.keep.sum(-1)
        self.protected = _stays(rows, pruner)
        self.scores: Tensor | None = None
        self.fused = engine.fused
        self.plan = Plan(self.packing, len(self.hidden), self.fused)
        # who leaves has to be remembered where somebody may ask for them behind the last layer
        self.read_alone = engine.head.first_only
        self.output: Tensor | None = None
        if not self.read_alone or (pruner is not None and not pruner.protect_first):
            self.output = torch.zeros_like(self.start)
            self.origin = torch.arange(len(self.start), device=real.device)

    @property
    def total(self) -> int:
        return sum(self.packing.lengths)

    def _filled_up(self, numbers: Int[Tensor, "total"]) -> Int[Tensor, "rows"]:
        """One number per row that is computed: zeros behind those of the rows that there are."""
        room = rounded(self.total, len(self.packing.lengths)) - self.total
        return F.pad(numbers, (0, room)) if room else numbers

    def step(self, index: int, layer: _Layer, pruner: TokenPruner | None) -> None:
        """One layer."""
        if self.total == 0:
            self._note(index, self.packing.lengths, False)
            return
        mixed, hidden = self.between(index, layer.qkv(self.hidden), layer.heads, pruner)
        self.hidden = layer.finish(mixed, hidden) if self.total else hidden

    def between(
        self, index: int, qkv: Float[Tensor, "rows three_hidden"], heads: int, pruner: TokenPruner | None
    ) -> tuple[Float[Tensor, "left hidden"], Float[Tensor, "left hidden"]]:
        """What a layer does between its first product and the rest: attention, the decision, and removal.

        Returns attention's output and the layer's input, of those who stay.
        """
        decides = pruner is not None and index in pruner.layers
        lengths = self.packing.lengths
        needs = pruner.scorer.needs if pruner is not None and decides else frozenset()
        mixed, signals = attend(qkv, heads, self.plan, needs)
        hidden = self.hidden
        if pruner is not None and decides:
            state = self._state(index, needs)
            scores, keep = pruner.decide(index, signals, state, soft=False)
            self.scores = scores if "previous" in needs else None
            self._note(index, lengths, True, keep, pruner.scorer)
            return self._leave(index, keep, mixed, hidden)
        self._note(index, lengths, False)
        return mixed, hidden

    def first_only(self, index: int, layer: _Layer) -> Float[Tensor, "batch 1 hidden"]:
        """The last layer for the first token of each sentence, which reads all of them."""
        keep = torch.zeros_like(self.keep)
        keep[:, 0] = 1
        self._note(index, self.packing.lengths, False, keep)
        batch = len(self.packing.lengths)
        first = F.pad(self.packing.offsets[:-1], (0, rounded(batch, batch) - batch))
        hidden = self.hidden.index_select(0, first)
        query = layer.query(hidden)[:batch]
        mixed = attend_from_first(query, layer.key_value(self.hidden), layer.heads, self.packing, self.fused)
        return layer.finish(F.pad(mixed, (0, 0, 0, len(first) - batch)), hidden)[:batch, None]

    def restored(self) -> Float[Tensor, "batch tokens hidden"]:
        """What the head reads: all tokens in the incoming shape, or the first of each sentence."""
        if self.output is None:
            return self.hidden.index_select(0, self.packing.offsets[:-1])[:, None]
        self.output[self.origin] = self.hidden[: self.total]
        if self.read_alone:
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

    def _leave(
        self, index: int, keep: Float[Tensor, "batch tokens"], mixed: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Takes the decision; returns what is left of attention's output and of the layer's input."""
        staying, before = keep > 0, self.packing
        counts = self.known.get(index) or read(staying.sum(-1))
        left = sum(counts)
        if left == self.total:
            return mixed, hidden
        # places in the padded view: how many there are is known, so nobody waits for the device to count them
        places = torch.nonzero_static(staying.flatten(), size=left, fill_value=0)[:, 0]
        chosen = before.rows_at(places)
        if self.output is not None:
            others = torch.nonzero_static((before.real & ~staying).flatten(), size=self.total - left, fill_value=0)
            gone = before.rows_at(others[:, 0])
            self.output.index_copy_(0, self.origin.index_select(0, gone), hidden.index_select(0, gone))
            self.origin = self.origin.index_select(0, chosen)
        self.packing = packing = Packing.of(counts, keep.device)

        def moved(view: Tensor) -> Tensor:
            return packing.padded(view.flatten().index_select(0, places))

        self.position, self.protected = moved(self.position), moved(self.protected)
        self.scores = None if self.scores is None else moved(self.scores)
        self.keep = packing.real.float()
        # dummy rows are copies of the first: no number in them is out of the ordinary
        chosen = self._filled_up(chosen)
        self.plan = Plan(packing, len(chosen), self.fused)
        return mixed.index_select(0, chosen), hidden.index_select(0, chosen)

    def _note(
        self,
        index: int,
        lengths: tuple[int, ...],
        decided: bool,
        keep: Tensor | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        now = self.keep if keep is None else keep
        self.steps.append(_Step(index, decided, lengths, now, self.position, self.protected, scorer))


def _stays(rows: Rows, pruner: TokenPruner | None) -> Float[Tensor, "batch tokens"]:
    """1 where a token stays whatever its score: marked by the caller, or what the head reads."""
    packing = rows.packing
    real = packing.real
    stays = torch.zeros_like(real, dtype=torch.float32)
    if rows.protected is not None:
        stays = packing.padded(rows.protected.float())
    if pruner is not None and pruner.protect_first:
        stays = torch.cat([torch.ones_like(stays[:, :1]), stays[:, 1:]], dim=1)
    if pruner is not None and pruner.protect_last:
        column = torch.arange(packing.width, device=real.device)
        stays = torch.where(column == real.sum(-1)[:, None] - 1, 1.0, stays)
    return stays


def _countable(policy: Any) -> bool:
    """Whether `policy.counts` speaks of this policy's own decision, and not of one that a subclass replaced."""
    kinds = type(policy).__mro__
    counts, decides = (
        next((place for place, kind in enumerate(kinds) if name in vars(kind)), None) for name in ("counts", "forward")
    )
    return counts is not None and decides is not None and counts <= decides


def fused_attention(attention: str, dtype: Dtype, device: torch.device, size: int) -> Fused | None:
    """Attention's backend by its name, for heads of `size`; None is torch.

    Raises:
        ValueError: an unknown name, or one that is not for this device or does not work here.
        MissingPackage: "triton", which is not installed.
    """
    if attention not in ("auto", "native", "triton", "torch"):
        raise ValueError(f"attention={attention!r} is unknown; choose one of auto, native, triton, torch.")
    if attention == "torch":
        return None
    if attention == "triton" or (attention == "auto" and device.type == "cuda"):
        return _triton(dtype, device, size, required=attention == "triton")
    if device.type == "cuda":
        raise ValueError("attention='native' is for the CPU; choose auto, triton or torch on a GPU.")
    found = native_attention()
    if found is None and attention == "native":
        raise ValueError(
            "attention='native' could not be built here, or computes something wrong: it takes a C++ compiler "
            "(c++, or the environment's CXX); choose attention='auto', which goes without."
        )
    return found


def _triton(dtype: Dtype, device: torch.device, size: int, *, required: bool) -> Fused | None:
    if required:
        need("triton", "attention='triton'")
    try:
        from prunekit.runtime.triton_attention import triton_attention
    except ImportError:
        return None
    found = triton_attention(device, FLOWING[dtype], size)
    if found is None and required:
        raise ValueError(
            f"attention='triton' computes nothing right in {dtype} on {device.type} here: it takes a GPU that Triton "
            f"compiles for; choose attention='auto', which goes without."
        )
    return found


def _is_ids(text: Any) -> bool:
    return not isinstance(text, str | tuple) and len(text) > 0 and isinstance(text[0], int)


def _of_padded(batch: Mapping[str, Tensor]) -> Rows:
    """A padded batch without its padding, on the host."""
    batch = {name: tensor.cpu() for name, tensor in batch.items()}
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
