"""The result of a benchmark, as its JSON file holds it."""

from __future__ import annotations

SPREAD = {"median": 2.0, "q25": 1.9, "q75": 2.1}


def row(name, role, **changes):
    return {
        "name": name, "engine": name, "role": role, "dtype": "fp32", "order": "random", "padded": False,
        "batch_size": 32, "ms": 12.34, "examples_per_s": 250.0, "tokens_per_s": 6400.0, "share_of_peak": 0.91,
        "first_over_steady": 1.04, "agrees": 0.995, "score": {"accuracy": 0.95}, **changes,
    }  # fmt: skip


RESULT = {
    "schema": 1,
    "title": "top on cola",
    "metric": "accuracy",
    "split": "validation",
    "date": "2026-11-21",
    "hardware": {"cpu": "a processor", "cpus": 2},
    "versions": {"torch": "2.13.0", "openvino": None},
    "workload": {
        "texts": 64, "mean": 25.2, "p90": 50.0, "max": 60,
        "computed_per_real_token": {"random": {"32": 2.2}, "sorted": {"32": 1.05}},
    },
    "absent": {"openvino fp32": "not installed: pip install openvino"},
    "blocks": [
        {
            "threads": 1,
            "clock": "cpu",
            "engines": {"packed": {"peak_mb": 123.4}},
            "sizes": [
                {
                    "batch_size": 32,
                    "control": 1.004,
                    "trusted": True,
                    "candidates": [row("packed", "unpruned"), row("control", "control"), row("hf", "peer")],
                    "ratios": [
                        {
                            "own": "packed, pruned",
                            "vs_unpruned": {**SPREAD, "flops_ratio": 2.5, "efficiency": 0.8, "against": "packed"},
                            "vs_sorted": {"median": 0.8, "against": "ort, sorted"},
                            "vs_unpadded": None,
                            "vs_each": {"ort": {"median": 1.7}, "ort, sorted": {"median": 0.8}},
                            "vs_padded_eager": {"median": 9.0, "against": "hf eager"},
                        }
                    ],
                }
            ],
        }
    ],
}  # fmt: skip
