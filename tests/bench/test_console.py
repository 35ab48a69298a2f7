"""What `prunekit bench` prints: an aligned table per batch size, and which engine to take."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from support.bench_result import bench_result, measurement, size_result

from prunekit.bench.console import print_bench, verdict


def size(batch, *times, **changes):
    """A batch size at which engines take these milliseconds; those of Hugging Face and others are peers."""
    own = {"packed fp32, pruned": "pruned", "packed fp32, unpruned": "unpruned", "control": "control"}
    return size_result(
        batch,
        candidates=tuple(
            measurement(name, own.get(name, "peer"), batch_size=batch, ms=ms, engine=name, **more)
            for name, ms, more in times
        ),
        **changes,
    )


SIZES = (
    size(
        1,
        ("packed fp32, pruned", 9.0, {}),
        ("control", 1.0, {}),
        ("hf sdpa fp32", 14.0, {}),
        ("hf sdpa bf16", 13.0, {"dtype": "bf16"}),
        ("onnxruntime fp32", 6.0, {}),
    ),
    size(
        32,
        ("packed fp32, pruned", 100.0, {"agrees": 0.9}),
        ("hf sdpa fp32, sorted", 250.0, {"order": "sorted"}),
        ("hf sdpa fp32", 340.0, {}),
        ("a runtime with an uncommonly long name of its own in int8, sorted", 120.0, {}),
    ),
)


def printed(result, width=80):
    stream = io.StringIO()
    print_bench(result, Console(file=stream, width=width, highlight=False))
    return stream.getvalue()


def test_the_verdict_names_an_engine_for_single_requests_and_one_for_batches():
    assert verdict(bench_result(*SIZES)) == [
        "single requests: onnxruntime, 2.3x Hugging Face",
        "batches of 32: packed, pruned, 3.4x Hugging Face; 90 % same labels",
    ]


def test_without_hugging_face_the_verdict_has_milliseconds_and_with_it_alone_says_so():
    (alone,) = verdict(bench_result(size(1, ("packed fp32, pruned", 9.0, {}))))
    assert alone == "single requests: packed, pruned, 9 ms"
    (theirs,) = verdict(bench_result(size(8, ("packed fp32, pruned", 9.0, {}), ("hf sdpa fp32", 8.0, {}))))
    assert theirs == "batches of 8: hf sdpa is the fastest, 8 ms"
    assert verdict(bench_result(size(8))) == []


def test_the_table_has_the_fastest_first_and_ratios_to_hugging_face():
    lines = [line.split() for line in printed(bench_result(*SIZES)).splitlines()]
    assert ["onnxruntime", "6", "250", "2.33x", "95.00", "99.5", "%"] in lines
    assert ["hf", "sdpa", "14", "250", "1.00x", "95.00", "99.5", "%"] in lines
    text = printed(bench_result(*SIZES))
    assert text.index("onnxruntime") < text.index("packed, pruned") < text.index("hf sdpa")
    assert "control" not in text


@pytest.mark.parametrize("width", [80, 100])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(width):
    absent = {f"peer {number}": "not installed: pip install something" for number in range(9)}
    text = printed(bench_result(*SIZES, absent=absent), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "peer 8" in text


def test_a_machine_that_was_not_quiet_is_told():
    loud = replace(SIZES[0], control=1.05, trusted=False)
    assert "the machine was not quiet (control 1.050): measure again" in printed(bench_result(loud))
