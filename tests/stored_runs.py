"""Run folders as a finished run leaves them, without a run."""

import json

import yaml


def result(method, budget, seed, score, **changes):
    """What result.json holds, as far as a table reads it."""
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
        "budget": {"asked": asked, "reached": asked or 1.0, "met": True, "split": "validation"},
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
        },
        "tokens_per_layer": [8.0, 4.0],
        "mean_length": 9.0,
        "speed": [{"batch_size": 1, "speedup_vs_packed": 1.5, "speedup_vs_padded": 1.6, "control": 1.0}],
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
