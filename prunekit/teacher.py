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

from prunekit.evaluation import model_inputs
from prunekit.heads import NOWHERE, by_token, logits_of
from prunekit.tokens.policies import ranks
from prunekit.tokens.state import Trace


@dataclass(frozen=True)
class TeacherOutputs:
    """Logits of every training row, and the rank of each token by the attention it receives in the last layer.

    `ranks` lie end to end, `offsets[row]` is where a row begins; 0 = best, -1 = [CLS]. Where answers are found there
    are logits per token, [1, total, 2], end to end too.
    """

    logits: Float[Tensor, "rows classes"] | Float[Tensor, "1 total 2"]
    ranks: Int[Tensor, "total"]
    offsets: Int[Tensor, "boundaries"]

    def batch(
        self, index: Int[Tensor, "batch"], width: int
    ) -> tuple[Float[Tensor, "batch classes"] | Float[Tensor, "batch width 2"], Int[Tensor, "batch width"]]:
        """Logits and ranks of the rows `index`, padded to `width` columns where they are per token; ranks with -1."""
        rows = index.cpu()
        start, end = self.offsets[rows], self.offsets[rows + 1]
        column = torch.arange(width)[None, :]
        inside = column < (end - start)[:, None]
        place = (start[:, None] + column).clamp(max=len(self.ranks) - 1)
        found = torch.where(inside, self.ranks[place].long(), -1)
        logits = self.logits
        if by_token(logits):
            logits = logits[0, place].masked_fill(~inside[..., None], NOWHERE)
        else:
            logits = logits[rows]
        return logits.to(index.device), found.to(index.device)

    def save(self, path: Path) -> None:
        """Writes the outputs atomically."""
        scratch = path.with_suffix(f".tmp{os.getpid()}")
        save_file({"logits": self.logits, "ranks": self.ranks, "offsets": self.offsets}, scratch)
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
    last = model.config.num_hidden_layers - 1
    offsets = torch.nn.functional.pad(lengths.long().cumsum(0), (1, 0))
    flat = torch.full((int(offsets[-1]),), -1, dtype=torch.int16)
    logits: Tensor | None = None
    for batch in batches:
        trace = Trace.scoring([last])
        inputs = {name: tensor.to(model.device) for name, tensor in model_inputs(batch).items()}
        out = logits_of(model(**inputs, execution="dense", trace=trace), inputs).float().cpu()
        scores = trace.layers[last].received
        assert scores is not None
        real = batch["attention_mask"].float()
        ranked = torch.cat([real[:, :1] * 0, real[:, 1:]], dim=1)  # [CLS] is never ranked
        order = ranks(scores.cpu(), ranked).masked_fill(ranked == 0, -1)
        place = offsets[batch["index"]][:, None] + torch.arange(real.shape[1])
        flat[place[real > 0]] = order[real > 0].to(torch.int16)
        if logits is None:
            logits = out.new_zeros((1, len(flat), 2) if by_token(out) else (len(lengths), out.shape[-1]))
        if by_token(out):
            logits[0, place[real > 0]] = out[real > 0]
        else:
            logits[batch["index"]] = out
    if logits is None:
        raise ValueError("the teacher was given 0 batches; the training split must have at least one row.")
    return TeacherOutputs(logits, flat, offsets)
