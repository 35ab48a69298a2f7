"""The packed engine: a trained model compiled for fast inference, on a CPU or a GPU, with the method's own decisions.

The tokens of a batch are concatenated into rows, [rows, hidden], so padding is never computed. After the attention of
each decision layer the model's own TokenPruner decides which tokens to keep; the rest are removed before the output
projection. Every decision, and every result, depends only on its own sentence.

On a GPU the host queues each layer before the device has finished the previous one. It can, because a policy with
`counts` predicts the number of kept tokens from the lengths alone; for other policies the host reads the counts from
the device, once per decision layer.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.config.errors import ConfigError
from prunekit.models.answers import answers_of
from prunekit.models.given import longest_text_of
from prunekit.models.heads import MASKED_LOGIT, by_token, head_of
from prunekit.models.pretrained import load_packable
from prunekit.models.tokenizers import longest_text
from prunekit.runtime.embedding import encode
from prunekit.runtime.explaining import Explanation, Kept, explain
from prunekit.runtime.extras import need
from prunekit.runtime.forward import CompiledLayer, ForwardPass, Result, protected_tokens
from prunekit.runtime.inputs import Inputs, Rows, is_ids, row_counts, tokenizer_of, unpad
from prunekit.runtime.kernels.attention import FusedAttention
from prunekit.runtime.kernels.linears import ACTIVATION_DTYPE, Dtype, choose, dtype_of, has_instructions
from prunekit.runtime.kernels.memory import keep_freed
from prunekit.runtime.kernels.native import native_attention
from prunekit.runtime.kernels.threads import threads as use_threads
from prunekit.runtime.ranking import longest_query, rank
from prunekit.tokens.encoder import encoder_of
from prunekit.tokens.families.embeddings import row_embedder
from prunekit.tokens.families.registry import family_of
from prunekit.tokens.packing import Packing
from prunekit.tokens.pruner import TokenPruner


def load_packed(
    folder: str | Path,
    *,
    dtype: str = "fp32",
    threads: int | None = None,
    device: str = "cpu",
    linears: str = "auto",
    attention: str = "auto",
    cls_last: bool = True,
    max_length: int | None = None,
) -> PackedEngine:
    """Return the engine of a checkpoint folder, pruned or dense, with its tokenizer if it has one.

    `max_length` None cuts texts where they were cut in training; other arguments as in `PackedEngine`.
    """
    dtype_of(dtype)
    device_of(device)
    model = load_packable(folder)
    return PackedEngine(
        model,
        tokenizer_of(folder, model.config),
        dtype=dtype,
        threads=threads,
        device=device,
        linears=linears,
        attention=attention,
        cls_last=cls_last,
        max_length=longest_text_of(Path(folder)) if max_length is None else max_length,
    )


@contextmanager
def inference_on(device: torch.device) -> Iterator[None]:
    """Enter inference mode, and make a GPU the current one, which is where Triton launches its kernels."""
    with torch.inference_mode(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield


def device_of(name: str | torch.device) -> torch.device:
    """Return the device of this name.

    Raises:
        ValueError: this machine has no such device, or the engine does not support its type.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={str(name)!r} is not supported by the packed engine; choose cpu or cuda.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={str(name)!r}, but torch {torch.__version__} sees no CUDA device here; "
            f"choose device='cpu', or use a machine with a GPU and a torch built for it."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={str(name)!r}, but this machine has {torch.cuda.device_count()} CUDA devices, numbered from 0; "
            f"choose one of them."
        )
    return device


def is_first_enough(model: PreTrainedModel) -> bool:
    """Whether the last layer can be computed for the first token only: the head reads it alone, and it is protected."""
    pruner = encoder_of(model).pruner
    return head_of(model).first_only and (pruner is None or pruner.protect_first)


class PackedEngine:
    """A trained model compiled for inference; calling it returns a `Result`.

        engine = prunekit.load("runs/.../model", engine="packed")
        engine(["The match ended in a draw.", "Shares fell."]).labels

    `device` is "cpu" or "cuda"; the model itself stays on the CPU. `dtype` "int8" quantises the matrix products of the
    layers, with one scale per row of activations, on the CPU only; "bf16" computes everything except scores, embeddings
    and head in bfloat16. `threads` None keeps torch's number of threads. `linears` names a backend of
    runtime/kernels/linears.py; "auto" takes the fastest one that works on this machine. `attention` is "native" (C++,
    built at first use), "triton" (GPU), "torch", or "auto": native on the CPU and triton on a GPU if they can be built
    and pass their check, else torch. `cls_last` computes the last layer for the first token only where the head reads
    no other; that does not change any logit, and its saving is not due to pruning. Texts are cut at `max_length`;
    `load` gives the length at which the model was trained, None means all that the model reads.

    On the CPU, creating an engine makes glibc keep freed memory, for the whole process
    (prunekit.runtime.kernels.memory). Some weights are shared with the model and others are copied: create a new engine
    after training the model further.

    Raises:
        ValueError: an unsupported family or head, a model in training mode or not on the CPU, or a dtype, device or
            backend that is unknown or not available here.
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
        max_length: int | None = None,
    ) -> None:
        self.dtype = dtype_of(dtype)
        self.device = device_of(device)
        if threads is not None and threads < 1:
            raise ValueError(f"threads={threads} is not a number of threads; give 1 or more, or None for torch's own.")
        family = family_of(model)
        if family.parts is None:
            raise ValueError(
                f"{type(model).__name__} is of the family {model.config.model_type!r}, which the packed engine does "
                f"not support; load it with engine='hf'."
            )
        check_removable(model)
        if model.training or model.device.type != "cpu":
            raise ValueError(
                f"the model is {'in training mode' if model.training else f'on {model.device}'}, but the packed engine "
                f"needs one in evaluation mode on the CPU; call model.eval().cpu() first."
            )
        if self.device.type == "cpu" and not has_instructions(self.dtype):
            warnings.warn(
                f"dtype={dtype!r}: this processor has no instructions for it, which makes it slower than fp32; "
                "choose dtype='fp32' or 'int8', or another machine.",
                stacklevel=2,
            )
        if self.device.type == "cpu":
            keep_freed()
        # checked before the weights are laid out, which takes a while
        self.linear = choose(self.dtype, linears, self.device)
        first = family.parts(encoder_of(model).blocks[0])
        self.fused = fused_attention(attention, self.dtype, self.device, first.query.out_features // first.heads)
        # counts are predicted on the host, so this pruner is never moved
        self.host_pruner: TokenPruner | None = encoder_of(model).pruner
        # predicting counts costs host time, which pays only if it spares waiting for another device
        self.predicts_counts = self.device.type != "cpu"
        if self.device.type != "cpu":
            model = copy.deepcopy(model).to(self.device)
        encoder = encoder_of(model)
        self.tokenizer = tokenizer
        self.threads = threads
        self.pruner: TokenPruner | None = encoder.pruner
        self.separator = encoder.separator
        self.config = model.config
        self.answers = answers_of(model.config)
        self.most_tokens = min(longest_text(model.config, tokenizer), encoder.longest or sys.maxsize)
        self.max_length = min(max_length or self.most_tokens, self.most_tokens)
        self.head = head_of(model)
        self.cls_last = cls_last and is_first_enough(model)
        self._embed = row_embedder(model)
        last = len(encoder.blocks) - 1
        with inference_on(self.device):
            self.layers = [
                CompiledLayer(family.parts(layer), self.linear, self.dtype, self.cls_last and index == last)
                for index, layer in enumerate(encoder.blocks)
            ]

    def __call__(self, inputs: Inputs, *, prune: bool = True, budget: str | None = None) -> Result:
        """Run texts, pairs of texts, token ids or a padded batch, and return logits, labels and kept tokens.

        A padded batch has `input_ids` and may have `attention_mask`, `token_type_ids` and `protected` (tokens that are
        kept whatever their score), padded on the right. `prune=False` runs the dense model, packed.
        `budget` is one of those that the model was trained for; None is the first of them.

        Raises:
            ValueError: a budget that it was not trained for; a text without tokens or with more than the model has
                positions for, or padding that is not on the right; texts given to an engine without a tokenizer.
        """
        with inference_on(self.device), use_threads(self.threads):
            rows = self._rows(inputs)
            pruner = _at(self.pruner, budget) if prune else None
            known = self._counts(rows, budget) if prune and self.predicts_counts else {}
            return self._run(rows.to(self.device), pruner, known)

    @property
    def budgets(self) -> tuple[str, ...]:
        """The budgets that the model was trained for, where these are several; the first is the default."""
        return () if self.host_pruner is None else self.host_pruner.policy.budgets

    def explain(self, texts: Any) -> Explanation:
        """Explain what is kept of texts, or pairs of texts, layer by layer; print it, or show it in a notebook."""

        def run(batch: Mapping[str, Tensor]) -> tuple[Tensor, Kept]:
            result = self(batch)
            return result.logits.cpu(), result.kept

        remark = (
            "the last layer is computed for the first token alone: the head reads no other" if self.cls_last else ""
        )
        return explain(run, self.tokenizer, self.config, self.max_length, texts, remark)

    def encode(self, texts: Any, *, batch_size: int = 32) -> np.ndarray:
        """Return the vectors of texts, float32 [texts, size], as of `prunekit.runtime.embedding.encode`."""
        return encode(lambda ids: self(ids).logits, self.tokenizer, self.config, self.max_length, texts, batch_size)

    def rank(self, query: Any, documents: Any, **how: Any) -> list[dict[str, Any]]:
        """Rank documents by a query, with the options of prunekit.runtime.ranking.rank, as top_k=10.

        Raises:
            ConfigError: as there.
        """

        def score(pairs: list[tuple[str, str]]) -> Tensor:
            return self(pairs).logits

        longest = longest_query(self.separator, self.tokenizer, self.max_length)
        return rank(score, self.tokenizer, self.config, query, documents, longest_query=longest, **how)

    def warm(self, most: int = 1024) -> PackedEngine:
        """Compile the backend's products now, for all rounded numbers of rows up to `most`, and return the engine.

        Useful before serving on a CPU: otherwise the first batch of each new number of rows pays about half a
        millisecond per kind of product, a fifth of its first pass. Not covered are larger batches, and single texts of
        more than 32 tokens, whose rows are not rounded. Takes 1 to 2 s with hidden size 384, a few seconds with 768.
        """
        if self.device.type == "cpu":
            with inference_on(self.device), use_threads(self.threads):
                for rows in row_counts(most):
                    # layers of one shape share their compiled products
                    for layer in {id(layer): layer for layer in (self.layers[0], self.layers[-1])}.values():
                        layer.warm(rows)
        return self

    # -- inputs ----------------------------------------------------------------------------------------

    def _rows(self, inputs: Inputs) -> Rows:
        if isinstance(inputs, Mapping):
            return self._check_lengths(unpad(inputs))
        texts: Any = [inputs] if isinstance(inputs, str | tuple) or is_ids(inputs) else list(inputs)
        if not texts:
            raise ValueError("the engine was given no text; give one or more.")
        types: list[int] | None = None
        if all(map(is_ids, texts)):
            ids = [list(text) for text in texts]
        else:
            ids, types = self._tokenise(texts)
        return self._check_lengths(
            Rows(
                torch.tensor([token for row in ids for token in row], dtype=torch.long),
                Packing.of([len(row) for row in ids], torch.device("cpu")),
                None if types is None else torch.tensor(types),
            )
        )

    def _tokenise(self, texts: Sequence[str | tuple[str, str]]) -> tuple[list[list[int]], list[int] | None]:
        """Return the token ids of each text and the concatenated token types of all; cut texts that are too long."""
        if self.tokenizer is None:
            raise ValueError("this engine has no tokenizer, so it reads token ids only; give it one when creating it.")
        pairs = [text if isinstance(text, tuple) else (text,) for text in texts]
        encoded = self.tokenizer(*zip(*pairs, strict=True), truncation=True, max_length=self.max_length)
        types = encoded.get("token_type_ids")
        return encoded["input_ids"], None if types is None else [kind for row in types for kind in row]

    def _check_lengths(self, rows: Rows) -> Rows:
        for index, length in enumerate(rows.packing.lengths):
            if not 1 <= length <= self.most_tokens:
                raise ValueError(
                    f"text {index} has {length} tokens; this model takes 1 to {self.most_tokens}, "
                    f"so cut it or leave it out."
                )
        return rows.protecting(self.separator)

    # -- layers ----------------------------------------------------------------------------------------

    def _counts(self, rows: Rows, budget: str | None = None) -> dict[int, tuple[int, ...]]:
        """Predict how many tokens of each sentence each decision layer keeps; {} if that depends on more than lengths.

        Does not wait for the device.
        """
        pruner = _at(self.host_pruner, budget)
        if pruner is None or not _has_own_counts(pruner.policy):
            return {}
        protected = protected_tokens(rows, pruner).sum(-1).long()
        lengths = torch.tensor(rows.packing.lengths)
        policy: Any = pruner.policy
        before, after = policy.counts(lengths, len(self.layers), protected=protected)
        others = [layer for layer in range(len(self.layers)) if layer not in pruner.layers]
        if not torch.equal(before[others], after[others]):
            return {}  # a policy that also counts on layers where it does not decide
        return {layer: tuple(map(int, after[layer].tolist())) for layer in pruner.layers}

    def begin(
        self, rows: Rows, pruner: TokenPruner | None, known: Mapping[int, tuple[int, ...]] | None = None
    ) -> ForwardPass:
        """Embed rows and return the batch before its first layer; `known` are the predicted kept counts by layer."""
        return ForwardPass(
            rows,
            pruner,
            known or {},
            embed=self._embed,
            dtype=self.dtype,
            fused=self.fused,
            reads=self.head.reads,
        )

    def _run(self, rows: Rows, pruner: TokenPruner | None, known: Mapping[int, tuple[int, ...]]) -> Result:
        forward_pass = self.begin(rows, pruner, known)
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            if index == last and self.cls_last:
                return self._result(forward_pass.finish_first_only(index, layer), forward_pass)
            forward_pass.step(index, layer, pruner)
        return self._result(forward_pass.restore(), forward_pass)

    def _result(self, hidden: Float[Tensor, "batch tokens hidden"], forward_pass: ForwardPass) -> Result:
        weights = [forward_pass.real.float()] * self.head.pools
        logits = self.head.logits(hidden.float(), *weights)
        if by_token(logits):
            logits = logits.masked_fill(~forward_pass.whole.real[..., None], MASKED_LOGIT)
        answers = None if by_token(logits) else self.answers
        return Result(logits, answers, tuple(forward_pass.steps))


def _at(pruner: TokenPruner | None, budget: str | None) -> TokenPruner | None:
    """Return the pruner for a budget.

    Raises:
        ValueError: the model serves no such budget.
    """
    if pruner is None and budget is not None:
        raise ValueError(f"budget={budget!r}, but this model prunes nothing.\nAllowed: no budget.\nLeave it out.")
    return None if pruner is None else pruner.at(budget)


def check_removable(model: PreTrainedModel) -> None:
    """Check that a model decides the same where the tokens that it drops are removed.

    Raises:
        ConfigError: it does not.
    """
    pruner = encoder_of(model).pruner
    if pruner is not None and pruner.scorer.no_removal:
        raise ConfigError(
            f"this model {pruner.scorer.no_removal}: its scorer is {type(pruner.scorer).__name__}.\n"
            "Allowed: models that decide by the tokens that are kept.\n"
            "Use prunekit.load(folder); or train without method.compat, or import with profile=house."
        )


def _has_own_counts(policy: Any) -> bool:
    """Whether `policy.counts` describes this policy's decision: no subclass replaced `forward` without `counts`."""
    classes = type(policy).__mro__
    counts, decides = (
        next((depth for depth, kind in enumerate(classes) if name in vars(kind)), None)
        for name in ("counts", "forward")
    )
    return counts is not None and decides is not None and counts <= decides


def fused_attention(attention: str, dtype: Dtype, device: torch.device, size: int) -> FusedAttention | None:
    """Return the attention backend of this name, for heads of `size`; None means torch.

    Raises:
        ValueError: a name that is unknown, not for this device, or whose backend does not work here.
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
    native = native_attention()
    if native is None and attention == "native":
        raise ValueError(
            "attention='native' could not be built here, or its results are wrong: it needs a C++ compiler "
            "(c++, or the environment variable CXX); choose attention='auto', which falls back to torch."
        )
    return native


def _triton(dtype: Dtype, device: torch.device, size: int, *, required: bool) -> FusedAttention | None:
    if required:
        need("triton", "attention='triton'")
    try:
        from prunekit.runtime.kernels.triton_attention import triton_attention  # triton is an optional package
    except ImportError:
        return None
    kernels = triton_attention(device, ACTIVATION_DTYPE[dtype], size)
    if kernels is None and required:
        raise ValueError(
            f"attention='triton' gives wrong results in {dtype} on {device.type} here: it needs a GPU that Triton "
            f"supports; choose attention='auto', which falls back to torch."
        )
    return kernels
