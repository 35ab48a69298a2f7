"""Run folders as a finished run leaves them, without a run."""

import json

import numpy as np
import yaml

from prunekit.files import write_jsonl
from prunekit.results.examples import Examples, encode_scores, save


def result(method, budget, seed, score, **changes):
    """What result.json of a run that prunes tokens holds."""
    asked = None if budget == "dense" else float(budget[:-1])
    task = changes.pop("task", "cola")
    found = {
        "schema": 1,
        "status": "done",
        "exit_code": 0,
        "method": method,
        "task": task,
        "backbone": "minilm",
        "seed": seed,
        "hash": f"{method[:4]:0<4}{budget[:2]}{seed:02d}",
        "command": f"python train.py method={method}",
        "budget": {"asked": asked, "reached": asked or 1.0, "met": True, "tolerance": 0.02, "split": "validation"},
        "score": {
            "metric": "matthews",
            "split": "validation",
            "rows": 1043,
            "dense": 0.6,
            "pruned": score,
            "pruned_all": {"accuracy": score + 0.1},
            "validation": score - 0.01,
        },
        "flops": {
            "dense_unpadded_g": 2.0,
            "dense_padded_g": 8.0,
            "pruned_g": 2.0 / (asked or 1.0),
            "flops_vs_unpadded": asked or 1.0,
            "flops_vs_padded": 4 * (asked or 1.0),
            "padded_to": 64,
        },
        "tokens_per_layer": [8.0, 4.0],
        "mean_length": 9.0,
        "speed": [
            {
                "batch_size": 1,
                "dense_padded_ms": 16.0,
                "dense_packed_ms": 15.0,
                "pruned_packed_ms": 10.0,
                "speedup_vs_padded": 1.6,
                "speedup_vs_packed": 1.5,
                "control": 1.0,
            }
        ],
        "execution": {"validation": "mask", "test": "pack"},
    }
    return {**found, **changes}


def weight_result(method, seed, perplexity, **changes):
    """What result.json of a run that prunes weights holds; the dense model has a perplexity of 20."""
    whole = result(method, "2x", seed, 1 / perplexity)
    quality = {"open_perplexity": 30.0, "open_tokens": 100, "domain_perplexity": 20.0, "domain_tokens": 100}
    sparsity = {"matrix_min": 0.5, "matrix_mean": 0.5, "matrix_max": 0.5, "of_prunable": 0.5, "of_model": 0.4}
    found = {
        **{key: value for key, value in whole.items() if key != "execution"},
        "prunes": "weights",
        "variant": method,
        "score": whole["score"]
        | {"pruned_all": {"domain_perplexity": perplexity}, "dense_all": {"domain_perplexity": 20.0}},
        "dense": quality,
        "pruned": quality | {"domain_perplexity": perplexity},
        "sparsity": sparsity | {"removed": 500, "prunable": 1000, "parameters": 1250},
        "calibration": {},
        "two_of_four": False,
        "reused": [],
        "seconds": {"total": 60.0},
        "peak_memory_mib": 100.0,
    }
    return {**found, **changes}


def store(runs, found, config=None):
    """Writes a run's folder."""
    label = "dense" if found["method"] == "dense" else f"{found['budget']['asked']:g}x"
    folder = runs / found["task"] / found["method"] / "minilm" / label / f"s{found['seed']}-{found['hash']}"
    folder.mkdir(parents=True)
    cfg = {
        "budget": None if label == "dense" else label,
        "seed": found["seed"],
        "trainer": {"lr": 1e-4},
        **(config or {}),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
    (folder / "manifest.json").write_text(json.dumps({"data_fingerprint": "ab" * 32}))
    (folder / "result.json").write_text(json.dumps(found))
    return folder


WORDS = [
    "[CLS]",
    "[SEP]",
    *[
        "the",
        "a",
        "film",
        "was",
        "not",
        "very",
        "good",
        "bad",
        "dull",
        "bright",
        "and",
        "but",
        "story",
        "act",
        "##ing",
        "##ed",
        "a",
        "end",
    ],
]


def add_examples(folder, *, seed=1, rows=24, length=12, layers=4, kept=0.5, share_right=0.7):
    """Writes examples.npz and a metrics.jsonl with a budget's curves; texts and labels are the same for every seed."""
    texts, own = np.random.default_rng(0), np.random.default_rng(seed)
    labels = texts.integers(0, 2, rows)
    dense = np.where(texts.random(rows) < 0.8, labels, 1 - labels)
    predicted = np.where(own.random(rows) < share_right, labels, 1 - labels)
    ids = np.concatenate([[0, *texts.integers(2, len(WORDS), length - 2), 1] for _ in range(rows)])
    depth = np.where(own.random(rows * length) < kept, layers, own.integers(1, layers, rows * length))
    depth[::length] = layers  # [CLS]
    per_text = depth.reshape(rows, length)
    found = Examples(
        labels=labels,
        predicted=predicted,
        dense=dense,
        lengths=np.full(rows, length) + np.arange(rows) % 4,
        counts=np.stack([(per_text > layer).sum(1) for layer in range(layers)], 1),
        index=np.arange(rows),
        offsets=np.arange(rows + 1) * length,
        ids=ids,
        depth=depth.astype(np.uint8),
        scores=encode_scores(own.gamma(1.0, 1.0, (rows * length, layers)), np.arange(layers) <= depth[:, None]),
        piece_ids=np.arange(len(WORDS)),
        pieces=np.array(WORDS),
        special=np.array([word.startswith("[") for word in WORDS]),
        classes=("bad", "good"),
    )
    save(found, folder)
    lines = [{"step": step, "budget/target": 0.5 * step / 9, "budget/expected": 0.48 * step / 9} for step in range(10)]
    write_jsonl(folder / "metrics.jsonl", [*lines, {"step": 9, "val/flops_vs_unpadded": 1.9}])
    return found


def study_folder(runs, tasks=("cola", "sst2"), **options):
    """A small study: two methods at two budgets and the dense model, with two seeds, and one run without a result."""
    for task in tasks:
        for seed in (1, 2):
            store(runs, result("dense", "dense", seed, 0.6, task=task))
            for method, score in (("top", 0.58), ("random", 0.5)):
                for budget, less in (("2x", 0.0), ("3x", 0.04)):
                    folder = store(runs, result(method, budget, seed, score - less + 0.01 * seed, task=task))
                    add_examples(folder, seed=seed + len(method) + int(budget[0]), **options)
    (store(runs, result("ltp", "2x", 1, 0.5)) / "result.json").unlink()
    return runs
