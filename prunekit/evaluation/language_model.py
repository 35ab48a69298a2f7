"""Judge a language model: perplexity of text, choice by likelihood, generation by ROUGE."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor
from torchmetrics.functional.classification import multiclass_stat_scores
from torchmetrics.functional.text import rouge_score
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunekit.data.text.samples import token_ids
from prunekit.weights.streaming import all_logits

Progress = Callable[[range], Iterable[int]]


def windows(length: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """Return start, end and first predicted token of each window; every token but the first is predicted once."""
    found, done, start = [], 1, 0
    while done < length:
        end = min(start + window, length)
        found.append((start, end, max(done, start + 1)))
        done = end
        start += stride
        if start + 1 > done:  # stride = window: the first token of a window has no context left to predict it
            start = done - 1
    return found


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    ids: Int[Tensor, "tokens"],
    window: int,
    stride: int | None = None,
    reduction: Literal["token", "window"] = "token",
    progress: Progress = iter,
) -> float:
    """Return exp of the mean negative log-likelihood in nats, by sliding windows; `stride` None = a quarter window.

    token: each token counts alike. window: the mean of the windows' means, as some papers report.
    """
    sums, counts = [], []
    places = windows(len(ids), window, max(1, stride or window // 4))
    inputs = [{"input_ids": ids[None, start:end]} for start, end, _ in places]
    for (start, end, first), found in zip(places, all_logits(model, inputs, progress), strict=True):
        logits = found[0].float()
        losses = F.cross_entropy(logits[first - start - 1 : -1], ids[first:end].to(logits.device), reduction="sum")
        sums.append(float(losses))
        counts.append(end - first)
    return combined(sums, counts, reduction)


def combined(sums: Sequence[float], counts: Sequence[int], reduction: Literal["token", "window"] = "token") -> float:
    """Return the perplexity of windows with these summed losses and token counts; inf where it is beyond floats."""
    if reduction == "token":
        mean = sum(sums) / sum(counts)
    else:
        mean = sum(total / count for total, count in zip(sums, counts, strict=True)) / len(sums)
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf


@torch.no_grad()
def choose(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, choices: Sequence[str], longest: int
) -> int:
    """Return the number of the continuation with the highest log-likelihood per character; cut prompts at the start."""
    after = [list(tokenizer(" " + choice, add_special_tokens=False)["input_ids"]) for choice in choices]
    room = longest - max(map(len, after))
    if room < 1:
        raise ValueError(
            f"the longest choice has {max(map(len, after))} tokens, and the model takes {longest}.\n"
            "Allowed: choices that leave room for a prompt.\nShorten task.choice.choices."
        )
    start = token_ids(tokenizer, prompt)[-room:]
    start = start or [tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id]
    before = torch.tensor(start, device=model.device)
    # the prompt is read once; each choice continues from a copy of its cache
    read = model(before[None], use_cache=True)
    scores = []
    for choice, ids in zip(choices, after, strict=True):
        logits = read.logits[0, -1:]
        if len(ids) > 1:
            rest = torch.tensor([ids[:-1]], device=model.device)
            more = model(rest, past_key_values=copy.deepcopy(read.past_key_values), use_cache=True).logits[0]
            logits = torch.cat([logits, more])
        picked = logits.float().log_softmax(-1).gather(1, torch.tensor(ids, device=model.device)[:, None])
        scores.append(float(picked.sum()) / len(" " + choice))
    return scores.index(max(scores))


def choice_scores(found: Sequence[int], right: Sequence[int], classes: int) -> dict[str, float]:
    """Return accuracy and macro F1; a class that neither occurs nor is chosen does not count."""
    counts = multiclass_stat_scores(torch.tensor(found), torch.tensor(right), classes, average="none").tolist()
    # from whole numbers, because torchmetrics' own F1 is rounded to float32
    f1 = [2 * hit / (2 * hit + extra + missed) for hit, extra, _, missed, _ in counts if hit or extra or missed]
    return {"accuracy": sum(hit for hit, *_ in counts) / len(right), "macro_f1": sum(f1) / len(f1)}


@torch.no_grad()
def rouge(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    new_tokens: int,
    longest: int,
) -> dict[str, float]:
    """Return ROUGE-1, -2 and -L (F) of greedy continuations of the prompts against the references."""
    if new_tokens >= longest:
        raise ValueError(
            f"task.generation.new_tokens={new_tokens} leaves no room for a prompt: the model takes {longest} tokens.\n"
            f"Allowed: up to {longest - 1}.\nSet it lower."
        )
    made = []
    for prompt, _ in pairs:
        ids = torch.tensor([token_ids(tokenizer, prompt)])[:, -(longest - new_tokens) :]
        out = model.generate(
            ids.to(model.device),
            attention_mask=torch.ones_like(ids).to(model.device),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
        made.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    keys = ("rouge1", "rouge2", "rougeL")
    scores = rouge_score(made, [reference for _, reference in pairs], rouge_keys=keys)
    return {key: float(scores[f"{key}_fmeasure"]) for key in keys}
