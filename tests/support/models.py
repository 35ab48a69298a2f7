"""Tiny random models, sentences, and methods at a step of their training."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from types import SimpleNamespace

import torch

from support.paths import ROOT
from support.scripts import script


def tiny_model(family="bert", *, layers=4, hidden=32, classes=3, seed=0, head="SequenceClassification"):
    """A random model with attention peaky enough that tokens differ."""
    import transformers

    torch.manual_seed(seed)
    sizes = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * hidden,
    }
    if family == "distilbert":
        sizes = {"dim": hidden, "n_layers": layers, "n_heads": 4, "hidden_dim": 2 * hidden}
    if family == "electra":
        sizes["embedding_size"] = hidden // 2
    config = transformers.AutoConfig.for_model(
        family, vocab_size=120, max_position_embeddings=80, num_labels=classes, **sizes
    )
    model = getattr(transformers, f"AutoModelFor{head}").from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def sentences(lengths, *, width=None, pad=0, seed=0):
    """Random token ids of these lengths, padded to `width`."""
    generator = torch.Generator().manual_seed(seed)
    width = width or max(lengths)
    rows = [torch.randint(5, 120, (length,), generator=generator) for length in lengths]
    ids = torch.full((len(lengths), width), pad)
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def benchmark_script(name):
    """A script of benchmarks/ as a module."""
    return script(ROOT / "benchmarks" / f"{name}.py")


@cache
def _composed(method, task):
    from prunekit.config.composition import compose

    return compose([f"method={method}", f"task={task}", "backbone=tiny"])[0]


def method_under_test(
    name,
    *,
    lengths=(12, 7, 9, 5),
    epochs=4,
    budget=2.0,
    step=0,
    validation=(),
    model=None,
    task="synthetic",
    **options,
):
    """A method's module on a tiny random model, as it is at an optimiser step; its log is `module.logged`."""
    from prunekit.cost import Shape
    from prunekit.data.encoding import LabelTargets
    from prunekit.data.spec import TaskSpec
    from prunekit.methods.context import MethodContext, Training
    from prunekit.pipelines.tokens.preparation import method_class
    from prunekit.runs.kinds import method_options

    cfg = deepcopy(_composed(name, task))
    model = tiny_model() if model is None else model
    shape = Shape.from_config(model.config)
    counts = torch.tensor(lengths)
    context = MethodContext(
        TaskSpec.from_config(cfg["task"]),
        shape,
        Training(epochs=epochs, steps_per_epoch=10, lr=1e-3),
        dict.fromkeys(("train", "validation", "test"), counts),
        budget,
        0.02,
        validation=lambda: validation,
        targets=[LabelTargets(torch.zeros(len(lengths)).long(), ("a", "b", "c"))],
    )
    kind = method_class(cfg)
    chosen = kind.Options.from_config(method_options(cfg) | options).completed(context)
    chosen.equip(model, shape)
    found = type("AtStep", (kind,), {"global_step": step})(model, context, chosen)
    found._trainer = SimpleNamespace(optimizers=[], _results=SimpleNamespace(reset=lambda: None))
    found.logged = {}
    found.log_dict = lambda values, **kwargs: found.logged.update(values)
    found.log = lambda key, value, **kwargs: found.logged.update({key: value})
    return found
