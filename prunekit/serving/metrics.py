"""What the server counts, in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from prunekit.runtime.batching import Batcher
from prunekit.runtime.tally import BUCKETS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Sample = tuple[Mapping[str, str], float | int]


def exposition(batchers: Mapping[str, Batcher], refused: int, connections: int, up_s: float) -> str:
    """Return all metrics of a server of these models; `refused` requests never reached one of them."""
    tallies = {name: batcher.tally for name, batcher in batchers.items()}
    requests: list[Sample] = [({"model": "", "outcome": "refused"}, refused)]
    requests += [
        ({"model": name, "outcome": outcome}, count)
        for name, tally in tallies.items()
        for outcome, count in sorted(tally.outcomes.items())
    ]
    lines = [
        *_metric("requests_total", "counter", "Requests by how they ended.", requests),
        *_metric("batches_total", "counter", "Batches computed.", _by_model(tallies, "batches")),
        *_metric("texts_total", "counter", "Texts computed.", _by_model(tallies, "texts")),
        *_metric("tokens_total", "counter", "Tokens of these texts.", _by_model(tallies, "tokens")),
        *_metric("computing_seconds_total", "counter", "Time spent on batches.", _by_model(tallies, "computing_s")),
        *_metric(
            "waiting_texts",
            "gauge",
            "Texts accepted whose computation has not started.",
            [({"model": name}, batcher.waiting) for name, batcher in batchers.items()],
        ),
        *_latencies(batchers),
        *_metric("connections", "gauge", "Open connections.", [({}, connections)]),
        *_metric("up_seconds", "gauge", "Time since the start.", [({}, up_s)]),
        *_metric("resident_memory_bytes", "gauge", "Memory of this process.", [({}, size) for size in _resident()]),
    ]
    return "\n".join(lines) + "\n"


def _by_model(tallies: Mapping[str, object], field: str) -> list[Sample]:
    return [({"model": name}, getattr(tally, field)) for name, tally in tallies.items()]


def _latencies(batchers: Mapping[str, Batcher]) -> list[str]:
    """Return the histogram of the times from a request's arrival to its answer."""
    name, counted = "request_seconds", []
    for model, batcher in batchers.items():
        tally, below = batcher.tally, 0
        for end in BUCKETS:
            below += tally.answered_within[end]
            counted.append(_sample(f"{name}_bucket", {"model": model, "le": f"{end:g}"}, below))
        counted += [
            _sample(f"{name}_bucket", {"model": model, "le": "+Inf"}, tally.answered_within.total()),
            _sample(f"{name}_sum", {"model": model}, tally.answered_total_s),
            _sample(f"{name}_count", {"model": model}, tally.answered_within.total()),
        ]
    return [*_metric(name, "histogram", "Time from a request's arrival to its answer.", []), *counted]


def _metric(name: str, kind: str, about: str, samples: Iterable[Sample]) -> list[str]:
    head = [f"# HELP prunekit_{name} {about}", f"# TYPE prunekit_{name} {kind}"]
    return [*head, *(_sample(name, labels, value) for labels, value in samples)]


def _sample(name: str, labels: Mapping[str, str], value: float | int) -> str:
    inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"prunekit_{name}{{{inside}}} {value:.17g}" if labels else f"prunekit_{name} {value:.17g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _resident() -> list[int]:
    """Return the memory of this process in bytes; nothing where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return []
    return [pages * os.sysconf("SC_PAGE_SIZE")]
