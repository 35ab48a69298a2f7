"""Pairs of sentences: read with file and row, encoded with their targets, the task's prefix marked."""

import pyarrow
import pyarrow.parquet
import pytest
import torch

from prunekit.config.errors import ConfigError
from prunekit.data.encoding import load_tokenizer
from prunekit.data.errors import DataError
from prunekit.data.module import TokenPruningDataModule
from prunekit.data.reading import read_task
from prunekit.data.sources import find_task
from prunekit.data.spec import TaskSpec
from prunekit.evaluation.evaluate import protected_count
from prunekit.models.tiny import build_tiny_backbone

KEYS = {"name": "pairs", "kind": "translation", "text": "en", "label": "de"}
# words of the tiny vocabulary, which are a token each
ROWS = [("bade bafi", "bago"), ("bade", "bafi bago bago bago"), ("bafi bago bade", "bade bade")]


def spec(**keys):
    return TaskSpec.from_config({**KEYS, **keys})


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("en\tde\n" + "".join(f"{source}\t{target}\n" for source, target in ROWS))
    return path


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones") / "marian"
    build_tiny_backbone(folder, "marian")
    return folder


def data_of(path, backbone, tmp_path, prefix="", **keys):
    task = spec(file=str(path), validation_file=str(path), **keys)
    sizes = {"batch_size": 2, "eval_batch_size": 3, "seed": 1, "cache_dir": tmp_path / "cache"}
    data = TokenPruningDataModule(task, find_task(task, {}), backbone, prefix=prefix, **sizes)
    data.setup()
    return data


# -- reading -------------------------------------------------------------------------------------------


def test_sources_and_targets_are_read_from_columns(pairs):
    task = spec(file=str(pairs), validation_file=str(pairs))
    rows = read_task(task, find_task(task, {})).splits["train"]
    assert list(zip(rows.texts, rows.labels, strict=True)) == ROWS


def test_a_column_of_records_is_read_by_field_as_on_the_hub(tmp_path):
    records = [{"en": source, "de": target} for source, target in ROWS]
    for split in ("train", "validation", "test"):
        pyarrow.parquet.write_table(
            pyarrow.table({"translation": records}), tmp_path / f"{split}-00000-of-00001.parquet"
        )
    task = spec(text="translation.en", label="translation.de", validation_splits=["validation"], test_split="test",
                file=str(tmp_path))  # fmt: skip
    found = read_task(task, find_task(task, {})).splits
    assert [(rows.texts[0], rows.labels[0]) for rows in found.values()] == [ROWS[0]] * 3
    wrong = spec(text="translation.en", label="translation.fr", file=str(tmp_path))
    with pytest.raises(DataError, match=r"row 1: 'translation' has no field 'fr'; its fields are en, de \(3 such rows"):
        read_task(wrong, find_task(wrong, {}))


def test_an_empty_side_is_refused_with_its_row_or_dropped(pairs):
    pairs.write_text("en\tde\nbade\tbafi\nbago\t\n")
    task = spec(file=str(pairs), validation_file=str(pairs))
    with pytest.raises(DataError, match=r"pairs.tsv, row 2: the text in column 'de' is empty"):
        read_task(task, find_task(task, {}))
    task = spec(file=str(pairs), validation_file=str(pairs), empty="drop")
    found = read_task(task, find_task(task, {}))
    assert (len(found.splits["train"]), found.dropped) == (1, {"empty": 2})


def test_without_a_validation_file_no_source_is_on_both_sides(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("en,de\n" + "".join(f"bade {n % 20},bafi {n}\n" for n in range(40)))
    task = spec(file=str(path), validation_fraction=0.2, test_fraction=0.2)
    found = read_task(task, find_task(task, {}))
    texts = {name: set(rows.texts) for name, rows in found.splits.items()}
    assert {name: len(some) for name, some in texts.items()} == {"train": 12, "validation": 4, "test": 4}
    assert not texts["train"] & texts["validation"]
    assert found.dropped == {"duplicates": 20}


def test_a_prefix_names_the_languages_of_the_task():
    task = spec(source_language="English", target_language="German")
    assert task.prefix("translate {source} to {target}: ") == "translate English to German: "
    assert task.prefix(None) == ""
    with pytest.raises(ConfigError, match=r"names the source language, which task=pairs does not give"):
        spec(target_language="German").prefix("translate {source} to {target}: ")
    with pytest.raises(ConfigError, match=r"prefix='from \{goal\}' cannot be filled in"):
        task.prefix("from {goal}")


def test_a_checkpoint_is_chosen_without_writing_translations():
    assert (spec().score, spec().chosen_by) == ("bleu", "word_accuracy")
    assert TaskSpec.from_config({"name": "c"}).chosen_by == "accuracy"


# -- encoding ------------------------------------------------------------------------------------------


def test_targets_end_the_sentence_and_are_padded_with_what_no_loss_sees(pairs, backbone, tmp_path):
    data = data_of(pairs, backbone, tmp_path)
    words = load_tokenizer(backbone).get_vocab()
    end = words["[SEP]"]
    batch = data.split("train").batch(torch.tensor([1, 0]))
    assert batch["input_ids"].tolist() == [[words["bade"], end, 0], [words["bade"], words["bafi"], end]]
    fi, go = words["bafi"], words["bago"]
    assert batch["labels"].tolist() == [[fi, go, go, go, end], [go, end, -100, -100, -100]]
    assert data.split("train").targets.references == [target for _, target in ROWS]
    assert data.split("train").protected.tolist() == [1, 1, 1]  # the end
    assert "protected" not in batch


def test_long_targets_are_cut_and_counted_and_still_end(pairs, backbone, tmp_path):
    data = data_of(pairs, backbone, tmp_path, max_target_length=3, max_length=4)
    words = load_tokenizer(backbone).get_vocab()
    batch = data.split("train").batch(torch.tensor([1]))
    assert batch["labels"].tolist() == [[words["bafi"], words["bago"], words["[SEP]"]]]
    assert data.truncated["train"] == {"rows": 1, "of": 3, "max_length": 4}


def test_the_prefix_and_the_end_are_marked(pairs, backbone, tmp_path):
    data = data_of(pairs, backbone, tmp_path, prefix="bago bago: ")
    assert data.prefix_tokens == 3
    batch = data.split("train").batch(torch.tensor([0, 1]))
    assert batch["protected"].int().tolist() == [[1, 1, 1, 0, 0, 1], [1, 1, 1, 0, 1, 0]]
    assert protected_count(batch).tolist() == data.split("train").protected[:2].tolist() == [4, 4]


def test_the_cache_gives_back_what_was_encoded(pairs, backbone, tmp_path):
    first, again = (data_of(pairs, backbone, tmp_path) for _ in range(2))
    assert first.fingerprint == again.fingerprint
    for row in range(3):
        one, other = (data.split("train").batch(torch.tensor([row])) for data in (first, again))
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert data_of(pairs, backbone, tmp_path, max_target_length=5).fingerprint != first.fingerprint
    assert data_of(pairs, backbone, tmp_path, prefix="bago: ").fingerprint != first.fingerprint


def test_other_targets_are_other_data(pairs, backbone, tmp_path):
    first = data_of(pairs, backbone, tmp_path).fingerprint
    pairs.write_text(pairs.read_text().replace("bago bago bago", "bago bago bade"))
    assert data_of(pairs, backbone, tmp_path).fingerprint != first
