"""Explain what a model kept of a text: `model.explain(texts)` of a loaded model and of every engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from prunekit.config.errors import shown
from prunekit.models.answers import Answers, OneVector, answers_of
from prunekit.models.forward import decodes, evaluating, on_device
from prunekit.models.given import longest_text_of
from prunekit.models.heads import by_token
from prunekit.runtime import picture
from prunekit.runtime.inputs import tokenizer_of
from prunekit.runtime.picture import Story
from prunekit.tokens.state import Trace

Kept = list[list[list[int]]]  # for each layer and text, the positions of the tokens that entered its feed-forward half
Run = Callable[[Mapping[str, Tensor]], tuple[Tensor, Kept]]  # a padded batch -> logits and kept tokens


@dataclass(frozen=True)
class Explanation:
    """Which tokens of each text were kept, layer by layer: printed as text, shown as a picture in a notebook.

    `stories` holds a text each: its tokens, and for each token the number of layers that it passed.
    """

    stories: tuple[Story, ...]

    def __str__(self) -> str:
        """Return the pictures as plain text of at most 80 columns."""
        return "\n\n".join(map(picture.plain, self.stories))

    __repr__ = __str__

    def svg(self) -> str:
        """Return the pictures as one SVG file, which needs nothing else."""
        return picture.svg(self.stories)

    def _repr_html_(self) -> str:
        return f'<div style="overflow-x: auto">{self.svg()}</div>'


def explain_model(model: PreTrainedModel, folder: Path, texts: Any) -> Explanation:
    """Explain what the model that was loaded from a folder keeps of texts, or pairs of texts.

    Raises:
        TypeError, ValueError: as for `explain`.
    """

    def run(batch: Mapping[str, Tensor]) -> tuple[Tensor, Kept]:
        trace = Trace()
        with evaluating(model):
            logits = model(**on_device(dict(batch), model.device), trace=trace)[0]
        places = [zip(step.position, step.keep, strict=True) for step in trace.layers]
        return logits, [[place[keep > 0].tolist() for place, keep in layer] for layer in places]

    if decodes(model):
        raise ValueError(_REFUSED.format(name=type(model).__name__))
    return explain(run, tokenizer_of(folder, model.config), model.config, longest_text_of(folder), texts)


def explain(run: Run, tokenizer: Any, config: Any, max_length: int | None, texts: Any, remark: str = "") -> Explanation:
    """Run texts, each alone in its batch, and explain what was kept of them; `remark` is shown below each.

    Raises:
        TypeError: what was given is neither a text, a pair of texts nor a list of those.
        ValueError: there is no text or no tokenizer, or the model's answers belong to tokens.
    """
    if tokenizer is None or config is None:
        raise ValueError("this model has no tokenizer, so texts cannot be read; load it from a folder that has one.")
    stories = []
    for text in _checked(texts):
        pair = text if isinstance(text, tuple) else (text,)
        batch = tokenizer(*pair, truncation=True, max_length=max_length, return_tensors="pt")
        logits, kept = run(batch)
        if by_token(logits):
            raise ValueError(_REFUSED.format(name=config.architectures[0] if config.architectures else "this model"))
        ids = batch["input_ids"][0].tolist()
        depth = tuple(sum(position in layer[0] for layer in kept) for position in range(len(ids)))
        pieces = tuple(_legible(tokenizer, token) for token in ids)
        stories.append(Story(pieces, depth, len(kept), _answer(answers_of(config), logits), remark))
    return Explanation(tuple(stories))


_REFUSED = (
    "{name} answers for each token, or writes a text; its data say which tokens must be kept, and texts alone do not.\n"
    "Allowed: explain(texts) of a model that gives a text a class, labels or a value.\n"
    "Give it to a run, whose examples.npz has the kept tokens: prunekit report runs out=report.html"
)


def _checked(texts: Any) -> Sequence[str | tuple[str, str]]:
    given = [texts] if isinstance(texts, str | tuple) else texts
    for text in given if isinstance(given, list) else [given]:
        parts = text if isinstance(text, tuple) else (text,)
        if len(parts) > 2 or not all(isinstance(part, str) for part in parts):
            raise TypeError(
                f"explain was given {shown(text)}.\nAllowed: a text, a pair of texts, or a list of those.\n"
                'Type model.explain(["The match ended in a draw."])'
            )
    if not given:
        raise ValueError("explain was given no text; give one or more.")
    return list(given)


def _legible(tokenizer: Any, token: int) -> str:
    """Return a token as it reads: without the marks that byte-pair vocabularies put in place of blanks."""
    text = str(tokenizer.decode([token])).strip() or str(tokenizer.convert_ids_to_tokens(token))
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _answer(answers: Answers, logits: Tensor) -> str:
    """Return what the model says of a text, in words."""
    if isinstance(answers, OneVector):
        return f"a vector of {logits.shape[-1]} numbers"
    labels, shares = answers.labels(logits.float()), answers.probabilities(logits.float())
    if labels is None or shares is None:
        return f"{float(logits.flatten()[0]):.3g}"
    found = [labels[0]] if isinstance(labels[0], str) else labels[0]
    percent = {name: 100 * float(share) for name, share in zip(answers.names, shares[0], strict=True)}
    return ", ".join(f"{name} {percent[name]:.0f} %" for name in found) or "no label"
