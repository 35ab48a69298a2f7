"""Gradients of the next-token loss, one decoder block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prunekit.weights.decoder import Matrices, hold_block
from prunekit.weights.finite import is_finite
from prunekit.weights.grams import CalibrationError, check_samples
from prunekit.weights.streaming import BlockStream, Call, Sample, Streamer


def next_token_loss(logits: Float[Tensor, "1 tokens vocabulary"], sample: Sample) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the next token, in float32, over the tokens that count.

    The first token has no prediction and never counts.

    Raises:
        CalibrationError: no token counts.
    """
    target = sample.ids[1:].to(logits.device)
    losses = F.cross_entropy(logits[0, :-1].float(), target, reduction="none")
    if sample.counts is None:
        counted = torch.ones_like(losses)
    else:
        counted = sample.counts[1:].to(losses)
    if counted.sum() == 0:
        raise CalibrationError(
            f"a calibration sample of {len(sample.ids)} tokens has no token whose prediction counts.\n"
            "Allowed: 2 tokens or more, at least one in the completion.\nUse longer texts, or task.loss_on=all."
        )
    return (losses * counted).sum() / counted.sum()


OUTPUT_GRADIENT = -1  # key in a stream: the gradient of the current block's output


def stream_gradients(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    blocks: Sequence[Matrices],
    visit: Callable[[str, Float[Tensor, "outputs inputs"]], None],
    *,
    chunk: int = 16,
    progress: Callable[[range], Iterable[int]] = iter,
    around: Callable[[int], AbstractContextManager[object]] = lambda number: nullcontext(),
) -> list[float]:
    """Pass the gradient of each sample's loss to `visit(name, gradient)`, matrix by matrix; return the losses.

    Exact: each block is run again from its stored input and differentiated, from the last block to the first. The
    inputs of all blocks are stored for `chunk` samples at a time. The model's `.grad` attributes are left unchanged.
    The context `around(block)` is open while a block's gradients for a chunk are visited, with its weights in memory.

    Raises:
        CalibrationError: no samples, or gradients that are not finite.
    """
    check_samples(samples)
    streamer = Streamer(model)
    losses: list[float] = []
    starts = range(0, len(samples), chunk)
    steps = iter(progress(range(len(starts) * len(blocks))))
    for start in starts:
        part = samples[start : start + chunk]
        with BlockStream.open(streamer, [sample.inputs for sample in part]) as stream:
            for number in range(len(blocks)):
                stream.advance(number, keep=True)
            for place, sample in enumerate(part):
                top = stream.hidden.pop((place, len(blocks))).detach().requires_grad_()
                with torch.enable_grad():
                    loss = next_token_loss(streamer.logits(sample.inputs, top), sample)
                    stream.hidden[place, OUTPUT_GRADIENT] = torch.autograd.grad(loss, top)[0]
                losses.append(float(loss.detach()))
            for number in reversed(range(len(blocks))):
                next(steps, None)
                with hold_block(model, number), around(number):
                    for place in range(len(part)):
                        stream.hidden[place, OUTPUT_GRADIENT] = _backward(
                            streamer,
                            number,
                            stream.hidden.pop((place, number)),
                            stream.call(place, number),
                            stream.hidden.pop((place, OUTPUT_GRADIENT)),
                            blocks[number],
                            visit,
                        )
    next(steps, None)  # lets a progress bar finish
    return losses


def _backward(
    streamer: Streamer,
    number: int,
    hidden: Tensor,
    call: Call,
    output_gradient: Tensor,
    matrices: Matrices,
    visit: Callable[[str, Tensor], None],
) -> Tensor:
    """Visit the gradients of one block's matrices for one sample; return the gradient of the block's input."""
    hidden = hidden.detach().requires_grad_()
    with _visit_gradients(matrices, visit) as weights, torch.enable_grad():
        out = streamer.block(number, hidden, call)
        torch.autograd.backward(out, output_gradient, inputs=[hidden, *weights])
    assert hidden.grad is not None
    return hidden.grad


@contextmanager
def _visit_gradients(matrices: Matrices, visit: Callable[[str, Tensor], None]) -> Iterator[list[nn.Parameter]]:
    """Visit each weight's gradient as soon as it is complete, then free it; restore the weights' state at the end."""
    weights = [module.get_parameter("weight") for module in matrices.values()]
    before = [(weight.requires_grad, weight.grad) for weight in weights]

    def visit_and_free(name: str, module: nn.Module, weight: Tensor) -> None:
        gradient, weight.grad = weight.grad, None
        assert gradient is not None
        if not is_finite(gradient):
            raise CalibrationError(
                f"the gradient of {name} is not finite.\n"
                "Allowed: calibration text on which the loss is finite.\n"
                "Look for a broken checkpoint, or run in float32."
            )
        visit(name, gradient.T if isinstance(module, Conv1D) else gradient)

    hooks = []
    for (name, module), weight in zip(matrices.items(), weights, strict=True):
        weight.requires_grad_(True)
        weight.grad = None
        hooks.append(weight.register_post_accumulate_grad_hook(partial(visit_and_free, name, module)))
    try:
        yield weights
    finally:
        for hook in hooks:
            hook.remove()
        for weight, (requires_grad, gradient) in zip(weights, before, strict=True):
            weight.grad = gradient
            weight.requires_grad_(requires_grad)
