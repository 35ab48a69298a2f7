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
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from prunekit.models.heads import MASKED_LOGIT, by_token, head_of
from prunekit.runtime.extras import need
from prunekit.runtime.forward import ForwardPass, Result, _Layer, _stays
from prunekit.runtime.inputs import Inputs, Rows, _is_ids, _of_padded, row_counts
from prunekit.runtime.kernels.attention import Fused
from prunekit.runtime.kernels.linears import FLOWING, Dtype, choose, computes, dtype_of
from prunekit.runtime.kernels.memory import keep_freed
from prunekit.runtime.kernels.native import native_attention
from prunekit.runtime.kernels.threads import threads as computing_with
from prunekit.tokens.encoder import encoder_of
from prunekit.tokens.families.embeddings import most_tokens, row_embedder
from prunekit.tokens.families.registry import family_of
from prunekit.tokens.packing import Packing
from prunekit.tokens.pruner import TokenPruner


def load_packed(
    folder: str | Path, *, dtype: str = "fp32", threads: int | None = None, device: str = "cpu", **options: Any
) -> PackedEngine:
    """The engine of a checkpoint folder, with the folder's tokenizer if it has one; options as `PackedEngine`."""
    dtype_of(dtype)
    device_of(device)
    from prunekit.models import pretrained

    has_tokenizer = any(Path(folder).glob("tokenizer*")) or (Path(folder) / "vocab.txt").is_file()
    tokenizer = AutoTokenizer.from_pretrained(folder) if has_tokenizer else None
    return PackedEngine(pretrained.load_hf(folder), tokenizer, dtype=dtype, threads=threads, device=device, **options)


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
    return head_of(model).first_only and (pruner is None or pruner.protect_first)


class PackedEngine:
    """A trained model, compiled for inference; calling it gives a `Result`.

        engine = prunekit.load("runs/.../model", engine="packed")
        engine(["The match ended in a draw.", "Shares fell."]).labels

    `device` is "cpu" or "cuda"; the model stays where it is, on the CPU. `dtype` "int8" quantises the matrix products
    of the layers, activations row by row; "bf16" computes everything but scores, embeddings and head in bfloat16; a GPU
    has no int8. `threads` None leaves torch's number of threads alone. `linears` names a backend
    (runtime/kernels/linears.py), "auto" takes the fastest that works here; `attention` is "native" (C++, built at first
    use), "triton" (on a GPU), "torch", or "auto": native, or on a GPU triton, where it can be built and computes right.
    `cls_last` computes the last layer for the first token alone where the head reads no other: that changes no logit,
    and is no merit of pruning.

    On the CPU it has glibc keep freed memory, for the whole process (prunekit.runtime.kernels.memory).
    Some weights are shared with the model and others are copied: if the model is trained on, make a new engine.

    Raises:
        ValueError: a family or head that the engine does not know, a model in training mode or not on the CPU, an
            unknown dtype, device or backend, or one that is not here.
        MissingPackageError: `attention` is "triton", which is not installed.
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
        self.head = head_of(model)
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

    def begin(
        self, rows: Rows, pruner: TokenPruner | None, known: Mapping[int, tuple[int, ...]] | None = None
    ) -> ForwardPass:
        """Embed rows and return the batch before its first layer; `known` are kept counts by layer, where known."""
        return ForwardPass(
            rows,
            pruner,
            known or {},
            embed=self._embed,
            dtype=self.dtype,
            fused=self.fused,
            first_only=self.head.first_only,
        )

    def _run(self, rows: Rows, pruner: TokenPruner | None, known: Mapping[int, tuple[int, ...]]) -> Result:
        walk = self.begin(rows, pruner, known)
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            if index == last and self.cls_last:
                return self._result(walk.first_only(index, layer), walk)
            walk.step(index, layer, pruner)
        return self._result(walk.restored(), walk)

    def _result(self, hidden: Float[Tensor, "batch tokens hidden"], walk: ForwardPass) -> Result:
        logits = self.head.logits(hidden.float())
        if by_token(logits):
            logits = logits.masked_fill(~walk.whole.real[..., None], MASKED_LOGIT)
        names = None if by_token(logits) or logits.shape[-1] == 1 else self.config.id2label
        return Result(logits, names, tuple(walk.steps))


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
        MissingPackageError: "triton", which is not installed.
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
        from prunekit.runtime.kernels.triton_attention import triton_attention
    except ImportError:
        return None
    found = triton_attention(device, FLOWING[dtype], size)
    if found is None and required:
        raise ValueError(
            f"attention='triton' computes nothing right in {dtype} on {device.type} here: it takes a GPU that Triton "
            f"compiles for; choose attention='auto', which goes without."
        )
    return found
