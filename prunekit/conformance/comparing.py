"""Compare what two executions of a method kept and computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, get_args

import pytest
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.data.encoding import Batch
from prunekit.tokens.cutting import cut
from prunekit.tokens.encoder import encoder_of
from prunekit.tokens.state import Execution, Trace

TOLERANCE = 1e-4  # of logits and hidden states in float32, between two ways to compute the same


def _sentences(lengths: Sequence[int], model: PreTrainedModel, width: int | None = None) -> dict[str, Tensor]:
    """Return random token ids of these lengths, padded to the longest or to `width`, as the model reads them."""
    generator = torch.Generator().manual_seed(0)
    longest = width or max(lengths)
    ids = torch.full((len(lengths), longest), model.config.pad_token_id or 0)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, model.config.vocab_size, (length,), generator=generator)
    real = torch.arange(longest)[None, :] < torch.tensor(list(lengths))[:, None]
    return cut({"input_ids": ids, "attention_mask": real.long()}, encoder_of(model).longest)


@dataclass(frozen=True)
class _Seen:
    """The outputs of one forward pass: logits, hidden states, the trace, and the kept tokens per layer and row."""

    logits: Float[Tensor, "batch classes"]
    hidden: Float[Tensor, "batch tokens hidden"]
    trace: Trace
    kept: list[list[list[int]]]

    def row(self, row: int) -> _Seen:
        """Return the outputs of one sentence of the batch."""
        one = slice(row, row + 1)
        return _Seen(self.logits[one], self.hidden[one], self.trace, [rows[one] for rows in self.kept])


def _see(
    model: PreTrainedModel,
    batch: Batch,
    execution: Execution,
    *,
    seed: int = 0,
    protected: Bool[Tensor, "batch tokens"] | None = None,
) -> _Seen:
    assert execution in get_args(Execution)
    trace = Trace()
    seen: list[Tensor] = []
    encoder = encoder_of(model)
    hook = encoder.register_forward_hook(lambda module, given, output: seen.append(output.last_hidden_state))
    try:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            logits = model(**batch, execution=execution, trace=trace, protected=protected).logits
    finally:
        hook.remove()
    kept = [
        [sorted(positions[keep > 0].tolist()) for positions, keep in zip(entry.position, entry.keep, strict=True)]
        for entry in trace.layers
    ]
    return _Seen(logits, seen[0], trace, kept)


def _in_place(
    values: Float[Tensor, "batch tokens"],
    position: Int[Tensor, "batch tokens"],
    here: Bool[Tensor, "batch tokens"],
    width: int,
) -> Float[Tensor, "batch width"]:
    """Move values to where their tokens were before any pruning; 0 for tokens that are not `here`."""
    row = torch.arange(len(values))[:, None].expand_as(position)
    return values.new_zeros((len(values), width)).index_put((row[here], position[here]), values[here])


def _same(
    first: _Seen,
    second: _Seen,
    one: str,
    other: str,
    cause: str,
    *,
    tolerance: float = TOLERANCE,
    first_row: int = 0,
) -> None:
    """Fail with the first layer and row at which two passes differ."""
    for layer, (rows, others) in enumerate(zip(first.kept, second.kept, strict=True)):
        for row, (kept, kept_other) in enumerate(zip(rows, others, strict=True), first_row):
            if kept != kept_other:
                _fail(
                    f"layer {layer}, row {row}: {one} keeps {_tokens(kept)}, {other} keeps {_tokens(kept_other)}", cause
                )
    width = min(first.hidden.shape[1], second.hidden.shape[1])
    pairs = {
        "logits": (first.logits, second.logits),
        "hidden states": (first.hidden[:, :width], second.hidden[:, :width]),
    }
    for what, (values, values_other) in pairs.items():
        gap = (values - values_other).abs().flatten(1).amax(-1)
        worst = int(gap.argmax())
        if not float(gap[worst]) <= tolerance:
            _fail(
                f"row {first_row + worst}: the {what} of {one} and {other} differ by {float(gap[worst]):.2g}, at most "
                f"{tolerance:g} is allowed; the same tokens are kept",
                cause,
            )


def _tokens(kept: Sequence[int]) -> str:
    shown = ", ".join(map(str, kept[:12]))
    return f"{len(kept)} tokens [{shown}{', ...' * (len(kept) > 12)}]"


def _listed(names: Sequence[str]) -> str:
    return f"{names[0]} (and {len(names) - 1} more)" if len(names) > 1 else names[0]


def _fail(what: str, cause: str) -> NoReturn:
    pytest.fail(f"{what}.\nUsual cause: {cause}", pytrace=False)
