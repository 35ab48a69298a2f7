"""The DataModule: encodings, their cache, their fingerprint, and what Lightning sees."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from support.tasks import data_of

from prunekit.data import encoding
from prunekit.data.columns import prefixed
from prunekit.data.encoding import Encoder, encode_texts, fingerprint, load_tokenizer, tokenizer_fingerprint
from prunekit.data.errors import DataError
from prunekit.data.module import TokenPruningDataModule
from prunekit.data.rows import Rows
from prunekit.data.sources import TaskSource, find_task
from prunekit.data.spec import TaskSpec
from prunekit.data.tables import read_table


@pytest.fixture
def tokenizer(backbones):
    return load_tokenizer(backbones / "bert")


# -- encoding ----------------------------------------------------------------------------------------


def test_rows_become_ids_as_the_tokenizer_gives_them(tokenizer):
    rows = Rows(["ba de", "bade"], None, [1, 0])
    split = encode_texts(rows, Encoder(tokenizer, 16))
    assert split.row(0) == tokenizer("ba de")["input_ids"]
    assert split.row(1) == tokenizer("bade")["input_ids"]
    assert split.lengths.tolist() == [6, 3]  # b ##a d ##e, and one word, each with [CLS] and [SEP]
    assert split.targets.labels.tolist() == [1, 0]
    assert split.truncated == 0


def test_long_rows_are_cut_as_the_tokenizer_cuts_them_and_counted(tokenizer):
    rows = Rows(["bade " * 10, "bade", "bade " * 20], ["bafi " * 30, "bafi", "bafi"], [0.5, 1.0, 2.0])
    split = encode_texts(rows, Encoder(tokenizer, 12))
    assert split.truncated == 2
    assert split.lengths.tolist() == [12, 5, 12]
    cut = tokenizer(rows.texts[0], rows.pairs[0], truncation=True, max_length=12)
    assert split.row(0) == cut["input_ids"]
    assert split.batch(torch.tensor([0]))["token_type_ids"].tolist() == [cut["token_type_ids"]]
    assert split.targets.labels.dtype == torch.float32


def test_a_text_longer_than_the_model_reads_gives_no_warning(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        encode_texts(Rows(["bade " * 600, "bade"], None, [0, 1]), Encoder(tokenizer, 512))
    assert caplog.records == []


def test_many_rows_are_encoded_in_parts_alike(tokenizer, monkeypatch):
    rows = Rows([f"bade {'go ' * (row % 7)}" for row in range(50)], None, [0] * 50)
    whole = encode_texts(rows, Encoder(tokenizer, 8))
    monkeypatch.setattr(encoding, "CHUNK", 7)
    parts = encode_texts(rows, Encoder(tokenizer, 8))
    assert list(map(whole.row, range(50))) == list(map(parts.row, range(50)))
    assert whole.truncated == parts.truncated > 0


def test_a_length_that_the_model_does_not_read_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"task.max_length=600, but this backbone reads at most 512 tokens"):
        encode_texts(Rows(["a"], None, [0]), Encoder(tokenizer, 600))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match=rf"{tmp_path} has no tokenizer: none of tokenizer.json, vocab.txt"):
        load_tokenizer(tmp_path)


def test_a_broken_tokenizer_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=rf"{tmp_path} has no tokenizer that can be loaded .*copy tokenizer.json"):
        load_tokenizer(tmp_path)


# -- the cache ---------------------------------------------------------------------------------------


def test_a_second_encoding_is_read_from_the_cache(tokenizer, tmp_path, monkeypatch):
    rows = Rows(["bade", "go " * 30], ["ba", "de"], [1, 0])
    first = encode_texts(rows, Encoder(tokenizer, 16, tmp_path))
    monkeypatch.setattr(encoding.TextTokeniser, "__call__", None)
    second = encode_texts(rows, Encoder(tokenizer, 16, tmp_path))
    both = torch.arange(2)
    for name, tensor in first.batch(both).items():
        assert torch.equal(second.batch(both)[name], tensor), name
    assert (second.truncated, second.fingerprint, second.padding) == (1, first.fingerprint, first.padding)


def test_a_damaged_cache_is_made_again(tokenizer, tmp_path, capsys):
    rows = Rows(["bade", "go"], None, [1, 0])
    encode_texts(rows, Encoder(tokenizer, 16, tmp_path))
    (file,) = tmp_path.glob("*.arrow")
    whole = file.read_bytes()
    ids = np.array(tokenizer("bade")["input_ids"], np.int32)
    another = whole.replace(ids.tobytes(), (ids ^ [0, 1, 0]).astype(np.int32).tobytes())
    assert another != whole
    for damaged in (b"", whole[: len(whole) // 2], b"x" * len(whole), another):
        file.write_bytes(damaged)
        assert encode_texts(rows, Encoder(tokenizer, 16, tmp_path)).row(0) == ids.tolist()
        assert f"{file} is not what was written: it was damaged" in capsys.readouterr().err
        assert list(tmp_path.glob("*.arrow")) == [file]
        assert len(Dataset.from_file(str(file))) == 2


def test_a_damaged_cache_of_an_older_version_is_made_again(tokenizer, tmp_path):
    rows = Rows(["bade", "go"], None, [1, 0])
    encode_texts(rows, Encoder(tokenizer, 16, tmp_path))
    (file,), (seal,) = tmp_path.glob("*.arrow"), tmp_path.glob(".*.sha256")
    seal.unlink()
    file.write_bytes(file.read_bytes()[:-200])
    assert encode_texts(rows, Encoder(tokenizer, 16, tmp_path)).row(0) == tokenizer("bade")["input_ids"]
    assert seal.is_file()


def test_two_processes_tokenise_alike(tokenizer, tmp_path):
    rows = Rows([f"bade {'go ' * (row % 7)}" for row in range(50)], None, [0] * 50)
    one, two = (encode_texts(rows, Encoder(tokenizer, 8, tmp_path / str(n), n)) for n in (1, 2))
    assert list(map(one.row, range(50))) == list(map(two.row, range(50)))
    assert (one.truncated, one.fingerprint) == (two.truncated, two.fingerprint)


def test_a_prefix_is_before_every_text_on_disk_too(tokenizer, tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "bade"}\n{"text": "bafi"}\n')
    texts = read_table(tmp_path / "t.jsonl").texts("text", [1, 0])
    found = encode_texts(Rows(prefixed("go ", texts), None, [0, 1]), Encoder(tokenizer, 16))
    assert [found.row(0), found.row(1)] == tokenizer(["go bafi", "go bade"])["input_ids"]


def test_a_cache_that_cannot_be_written_is_done_without_and_said_once(tokenizer, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "tokens"
    for _ in range(2):
        assert len(encode_texts(Rows(["bade"], None, [0]), Encoder(tokenizer, 16, folder))) == 1
    assert (
        capsys.readouterr().err == f"cache      {folder} cannot be written (Not a directory); continuing without it\n"
    )


def test_a_fingerprint_changes_with_everything_that_the_encoding_hangs_on(tokenizer, backbones):
    rows = Rows(["ab", "c"], ["d", "e"], [0, 1])
    found = tokenizer_fingerprint(tokenizer)
    other = tokenizer_fingerprint(load_tokenizer(backbones / "distilbert"))
    assert other != found
    variants = [
        (rows, found, 16),
        (rows, found, 17),
        (rows, other, 16),
        (dataclasses.replace(rows, texts=["a", "bc"]), found, 16),
        (dataclasses.replace(rows, pairs=["d", "f"]), found, 16),
        (dataclasses.replace(rows, labels=[1, 0]), found, 16),
        (Rows(["ab", "c", "d", "e"], None, [0, 1]), found, 16),
    ]
    assert len({fingerprint(*variant) for variant in variants}) == len(variants)
    assert fingerprint(Rows(["ab", "c"], ["d", "e"], [0, 1]), found, 16) == fingerprint(rows, found, 16)


def test_using_a_tokenizer_does_not_change_its_fingerprint(tokenizer):
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=3)
    assert tokenizer_fingerprint(tokenizer) == before


# -- the module --------------------------------------------------------------------------------------


def test_a_task_has_its_splits_and_labels(backbones, tmp_path):
    data = data_of(backbones, tmp_path, spec={"validation_splits": ["validation", "other"], "test_split": "test"})
    assert data.num_labels == 3
    assert data.label_names == ("a", "b", "c")
    assert data.has_test
    assert data.validation_splits == ("validation", "other")
    assert len(data.split("train")) == 40
    assert len(data.val_dataloader()) == 2
    with pytest.raises(DataError, match="task s has no split 'dev'; it has train, validation, other, test"):
        data.split("dev")


def test_regression_has_one_output(backbones, tmp_path):
    data = data_of(backbones, tmp_path, spec={"kind": "regression", "labels": None})
    assert data.num_labels == 1
    assert data.label_names is None
    assert next(iter(data.train_dataloader()))["labels"].dtype == torch.float32


def test_without_test_rows_the_test_is_the_validation_split(backbones, tmp_path):
    data = data_of(backbones, tmp_path)
    assert not data.has_test
    assert data.split("test") is data.split("validation")
    assert len(data.test_dataloader()) == 2  # 20 rows in batches of 16


@pytest.mark.parametrize(("family", "segments"), [("bert", True), ("distilbert", False)])
def test_a_batch_is_what_the_model_takes_and_labels_and_row_numbers(backbones, tmp_path, family, segments):
    batch = next(iter(data_of(backbones, tmp_path, family).train_dataloader()))
    inputs = {"input_ids", "attention_mask"} | ({"token_type_ids"} if segments else set())
    assert set(batch) == inputs | {"labels", "index"}
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_a_second_setup_does_nothing(backbones, tmp_path):
    data = data_of(backbones, tmp_path)
    before = data.split("train")
    data.setup("fit")
    assert data.split("train") is before


def test_data_that_is_not_set_up_says_so(backbones, tmp_path):
    data = data_of(backbones, tmp_path)
    data._splits = {}
    with pytest.raises(RuntimeError, match=r"call setup\(\) first"):
        data.split("train")


def test_truncated_texts_are_counted_per_split(backbones, tmp_path):
    data = data_of(backbones, tmp_path, spec={"max_length": 6})
    assert data.truncated["train"] == {"rows": 40, "of": 40, "max_length": 6}
    assert data.truncated["validation"]["of"] == 20


def test_fewer_rows_are_a_part_of_all_that_hangs_on_the_seed_only_in_training(backbones, tmp_path):
    def rows(data, name):
        split = data.split(name)
        return [tuple(split.row(number)) for number in range(len(split))]

    whole = data_of(backbones, tmp_path)
    few = data_of(backbones, tmp_path, train_rows=10, eval_rows=5)
    again = data_of(backbones, tmp_path, train_rows=10, eval_rows=5)
    other = data_of(backbones, tmp_path, train_rows=10, eval_rows=5, seed=2)
    assert len(few.split("train")) == 10
    assert len(few.split("validation")) == 5
    assert set(rows(few, "train")) < set(rows(whole, "train"))
    assert rows(few, "train") == rows(again, "train") != rows(other, "train")
    assert rows(few, "validation") == rows(other, "validation")
    assert few.fingerprint == again.fingerprint
    assert len({whole.fingerprint, few.fingerprint, other.fingerprint}) == 3
    assert len(data_of(backbones, tmp_path, train_rows=1000).split("train")) == 40


def test_a_fingerprint_is_the_same_with_and_without_the_cache(backbones, tmp_path):
    cold = data_of(backbones, tmp_path / "a")
    assert data_of(backbones, tmp_path / "b").fingerprint == data_of(backbones, tmp_path / "a").fingerprint
    files = sorted((tmp_path / "a" / "tokens").glob("*.arrow"))
    assert len(files) == 2
    prints = sorted(cold.split(name).fingerprint for name in ("train", "validation"))
    assert [file.name for file in files] == [f"{found[:32]}.arrow" for found in prints]


def test_evaluation_loaders_give_every_row_once_in_one_order(backbones, tmp_path):
    data = data_of(backbones, tmp_path)
    order = [batch["index"].tolist() for batch in data.loader("train", 7)]
    assert order == [batch["index"].tolist() for batch in data.loader("train", 7)]
    assert sorted(row for rows in order for row in rows) == list(range(40))


def test_an_own_file_goes_all_the_way_to_batches(backbones, tmp_path):
    file = tmp_path / "tickets.csv"
    file.write_text("body,queue\n" + "".join(f"ticket {n},{'help' if n % 2 else 'sales'}\n" for n in range(40)))
    keys = {"name": "csv", "file": str(file), "text": "body", "label": "queue", "test_fraction": 0.2}
    spec = TaskSpec.from_config(keys)
    data = TokenPruningDataModule(
        spec, find_task(spec, {}), backbones / "bert", batch_size=4, eval_batch_size=4, seed=0, cache_dir=tmp_path
    )
    data.setup()
    assert data.source == TaskSource("file", str(file))
    assert data.label_names == ("help", "sales")
    assert [len(data.split(name)) for name in ("train", "validation", "test")] == [28, 4, 8]
    assert len(data.train_dataloader()) == 7
