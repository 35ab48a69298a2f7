"""Arrays of numbers of rows: large ones are in files, and everything goes through them in blocks."""

import errno
import json

import numpy as np
import pytest
import torch

from prunekit.data import spill
from prunekit.data.columns import Mapped, NumberSets
from prunekit.data.reading import read_task
from prunekit.data.sources import find_task
from prunekit.data.spec import TaskSpec
from prunekit.data.splitting import content_hashes, first_repeat
from prunekit.evaluation.judging import RowColumns


@pytest.fixture
def few(monkeypatch, tmp_path):
    """Limits of a few numbers, and a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for limit, value in {"SMALL": 8, "BLOCK": 3, "BUCKET": 2}.items():
        monkeypatch.setattr(spill, limit, value)


def in_file(array):
    return isinstance(array, np.memmap) or (array.base is not None and in_file(array.base))


def test_a_large_array_is_in_a_file_that_leaves_nothing_behind(few, tmp_path):
    array = spill.empty(2, np.int64)
    assert in_file(array)
    assert not in_file(spill.empty(1, np.int64))
    assert array.tolist() == [0, 0]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_without_room_on_the_disk_it_is_in_memory(few, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spill.os, "posix_fallocate", full)
    array = spill.empty(4, np.int64)
    assert not in_file(array)
    assert array.tolist() == [0, 0, 0, 0]


def test_numbers_are_filled_in_taken_and_found_block_by_block(few):
    values = spill.filled(iter([5, 6, 7, 8]), np.int64, 9)
    assert values.tolist() == [5, 6, 7, 8]
    assert spill.taken(values, [3, 0, 0, 2, 1]).tolist() == [8, 5, 5, 7, 6]
    assert spill.places_of(np.array([True, False, False, True, True])).tolist() == [0, 3, 4]


def test_rows_are_sorted_by_small_numbers_and_equal_ones_stay_in_order(few):
    assert spill.order_of(np.array([2, 0, 2, 1, 0, 2, 0])).tolist() == [1, 4, 6, 3, 0, 2, 5]
    assert spill.order_of(np.array([], np.int64)).tolist() == []


def test_equal_hashes_are_in_one_part(few):
    low, high = 1, 2**63 + 1
    hashes = np.array([high, low, low, high, low], np.uint64)
    assert [part.tolist() for part in spill.buckets(hashes) if len(part)] == [[1, 2, 4], [0, 3]]
    both = spill.buckets_of_both(hashes, np.array([low, high], np.uint64))
    assert [(one.tolist(), other.tolist()) for one, other in both if len(one)] == [([1, 2, 4], [0]), ([0, 3], [1])]


def test_an_unknown_number_of_values_is_gathered_and_parts_are_joined(few):
    assert spill.gathered(iter(range(11)), np.int64).tolist() == list(range(11))
    assert spill.gathered(iter(()), np.int64).tolist() == []
    assert spill.joined([np.arange(4), np.arange(2)], np.int8).tolist() == [0, 1, 2, 3, 0, 1]
    assert spill.joined([], np.int8).tolist() == []


def test_large_numbers_are_sorted_digit_by_digit(few, monkeypatch):
    monkeypatch.setattr(spill, "DIGIT", 2)
    assert spill.order_of(np.array([70, 5, 69, 5, 0, 64])).tolist() == [4, 1, 3, 5, 2, 0]


KINDS = {
    "group": {"label": "class", "group": "customer", "test_fraction": 0.2},
    "multilabel": {"kind": "multilabel", "label": "tags"},
    "tokens": {"kind": "tokens", "text": "words", "label": "marks"},
    "span": {"kind": "span", "text_pair": "context", "label": "answer", "unanswerable": True, "id": "id", "stride": 1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_kind_are_the_same_in_parts_of_a_few(kind, monkeypatch, tmp_path):
    rows = [
        {
            "id": row, "text": f"t{row % 38}", "class": row % 3, "customer": f"c{row // 2}",
            "tags": ["a", "b", "c"][: row % 4], "words": ["w"] * (row % 5) + [f"x{row}"],
            "marks": ["B-X"] * (row % 5) + ["O"], "context": f"c{row % 9} is",
            "answer": [{"text": "is", "answer_start": 3}],
        }
        for row in range(40)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = TaskSpec.from_config({"name": "csv", "file": str(tmp_path / "rows.jsonl"), **KINDS[kind]})

    def read():
        splits = read_task(spec, find_task(spec)).splits
        return {name: (list(rows.texts), list(rows.labels), list(rows.groups or ())) for name, rows in splits.items()}

    whole = read()
    train = read_task(spec, find_task(spec)).splits["train"]
    held = {"group": train.groups, "span": train.ids}.get(kind, train.labels)
    assert isinstance(held, NumberSets if kind in ("multilabel", "tokens") else Mapped)
    for limit, value in {"SMALL": 8, "BLOCK": 3, "BUCKET": 2, "DIGIT": 2}.items():
        monkeypatch.setattr(spill, limit, value)
    assert read() == whole
    if kind in ("multilabel", "tokens"):
        labels = read_task(spec, find_task(spec)).splits["train"].labels
        assert in_file(labels.values)
        assert in_file(labels.ends)


def test_what_is_measured_of_rows_is_in_files_and_in_their_order(few):
    columns = RowColumns()
    columns.add(torch.tensor([4, 0, 2]), torch.tensor([[40, 41], [0, 1], [20, 21]]))
    columns.add(torch.tensor([3, 1]), torch.tensor([[30, 31], [10, 11]]))
    (found,) = columns.by_row()
    assert found.tolist() == [[0, 1], [10, 11], [20, 21], [30, 31], [40, 41]]
    assert all(in_file(held.values) for held in columns._columns)


def test_sets_of_numbers_are_tuples_in_the_order_asked_for(few):
    sets = NumberSets.of([[3], [], [1, 2], [4]], 4)
    assert list(sets) == [(3,), (), (1, 2), (4,)]
    assert (sets[-2], sets[1:3]) == ((1, 2), [(), (1, 2)])
    assert list(sets.take([2, 0, 2])) == [(1, 2), (3,), (1, 2)]


def test_the_first_repeat_is_that_of_the_lowest_row(few):
    assert first_repeat(content_hashes([("b",), ("a",), ("c",), ("a",), ("b",)])) == (1, 3)
    assert first_repeat(content_hashes([("b",), ("a",)])) is None
