"""The result of a run, and what its result.json holds."""

from __future__ import annotations

import copy
from typing import Any

from prunekit.runs.result import RunResult

CONTENT: dict[str, Any] = {
    "schema": 1,
    "status": "done",
    "exit_code": 0,
    "method": "top",
    "task": "bbc_news",
    "backbone": "minilm",
    "seed": 1,
    "hash": "0a1b2c3d",
    "command": "python train.py method=top task=bbc_news",
    "budget": {"asked": 3.0, "reached": 2.98, "met": True, "tolerance": 0.02, "split": "validation"},
    "score": {
        "metric": "accuracy",
        "split": "test",
        "rows": 445,
        "dense": 0.968,
        "pruned": 0.962,
        "dense_all": {"accuracy": 0.968, "f1": 0.9612},
        "pruned_all": {"accuracy": 0.962, "f1": 0.9634},
        "validation": 0.97,
    },
    "flops": {
        "dense_unpadded_g": 2.1234,
        "dense_padded_g": 2.745,
        "pruned_g": 0.7123,
        "flops_vs_unpadded": 2.981,
        "flops_vs_padded": 3.854,
        "padded_to": 128,
        "split": "test",
    },
    "tokens_per_layer": [126.3, 126.3, 101.2, 54.6, 22.1, 9.0],
    "mean_length": 126.3,
    "speed": [
        {
            "batch_size": 1,
            "dense_padded_ms": 11.2,
            "dense_packed_ms": 10.1,
            "pruned_packed_ms": 12.4,
            "speedup_vs_padded": 0.903,
            "speedup_vs_packed": 0.8145,
            "control": 1.01,
        },
        {
            "batch_size": 32,
            "dense_padded_ms": 412.2,
            "dense_packed_ms": 368.7,
            "pruned_packed_ms": 171.9,
            "speedup_vs_padded": 2.398,
            "speedup_vs_packed": 2.145,
            "control": 0.99,
        },
    ],
    "truncated": {"train": {"rows": 1210}, "validation": {"rows": 0}},
    "execution": {"validation": "mask", "test": "pack"},
    "seconds": {"teacher": 140.2, "fit": 201.9, "total": 390.1},
}

RESULT = RunResult.from_json(CONTENT)


def changed(**paths: Any) -> RunResult:
    """RESULT with `budget__met=False` standing for its content["budget"]["met"], and `speed__1` for ["speed"][1]."""
    content = copy.deepcopy(CONTENT)
    for path, value in paths.items():
        *parents, last = path.split("__")
        place: Any = content
        for parent in parents:
            place = place[int(parent)] if isinstance(place, list) else place[parent]
        place[last] = value
    return RunResult.from_json(content)
