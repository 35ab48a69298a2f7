"""Draw docs/tokens.svg, a sentence's tokens leaving a real model, from docs/tokens.json.

    python docs/tokens.py                                           # draw what is committed
    python docs/tokens.py runs/bbc_news/dense/minilm/dense/s1-...   # run the fine-tuned model of a run first

The model keeps in each layer the tokens that receive most attention, as `method=topk method.train=false` does, with
the shares below.

tests/test_docs.py compares the picture with what this draws.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from prunekit.files import atomic_write_text
from prunekit.runtime.picture import Story, svg

HERE = Path(__file__).parent
STORED, PICTURE = HERE / "tokens.json", HERE / "tokens.svg"
SHARES = {1: 0.6, 2: 0.45, 3: 0.35, 4: 0.25, 5: 0.15}  # of the text's tokens, by layer
SENTENCE = "Shares fell nine percent after the chip maker warned of weak sales."


def drawn() -> str:
    """Return the picture of the stored run."""
    found = json.loads(STORED.read_text(encoding="utf-8"))
    return svg([Story(**found | {name: tuple(found[name]) for name in ("tokens", "depth")})])


def store(folder: str) -> None:
    """Run a fine-tuned model on the sentence, and store what it kept."""
    import prunekit  # drawing what is stored needs no torch
    from prunekit.tokens.encoder import install
    from prunekit.tokens.policies import KeepRatio
    from prunekit.tokens.pruner import TokenPruner
    from prunekit.tokens.scorers import AttentionReceived

    model = prunekit.load(folder)
    install(model, TokenPruner(AttentionReceived(), KeepRatio(SHARES), SHARES))
    (story,) = model.explain(SENTENCE).stories
    atomic_write_text(STORED, json.dumps(dataclasses.asdict(story), indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:]:
        store(sys.argv[1])
    atomic_write_text(PICTURE, drawn())
