"""Bands of text lengths: what an end means in tokens, which rows a split keeps, and what is refused."""

import re

import pytest
import torch
from support.tasks import data_of

from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.config.validation import validate
from prunekit.data.bands import Band, resolve, rows_between
from prunekit.data.errors import DataError

LENGTHS = torch.tensor([4, 6, 6, 8, 10, 12, 14, 20])  # median 9, q25 6, q75 12.5


def tokens(*ends, lengths=LENGTHS, max_length=20):
    return [(band.low, band.high) for band in resolve("data.eval_bands", ends, lengths, max_length)]


def test_a_band_has_its_first_length_and_not_its_last():
    assert [length for length in (3, 4, 9, 10) if length in Band(4, 10)] == [4, 9]
    assert Band(4, 10).mask(torch.tensor([3, 4, 9, 10])).tolist() == [False, True, True, False]


def test_ends_are_tokens_quantiles_or_the_longest_text():
    assert tokens(0, "median", "q75", "max") == [(0, 9), (9, 13), (13, 21)]
    assert tokens(5, 10) == [(5, 10)]
    assert tokens("q25", "max") == [(6, 21)]


def test_the_longest_text_is_in_the_last_band():
    assert rows_between("data.eval_bands", "test", LENGTHS, resolve("x", ["q75", "max"], LENGTHS, 20)) == [6, 7]


def test_neighbouring_bands_share_no_row_and_leave_none_out():
    bands = resolve("x", [0, "median", "q75", "max"], LENGTHS, 20)
    found = [rows_between("x", "test", LENGTHS, [band]) for band in bands]
    assert found == [[0, 1, 2, 3], [4, 5], [6, 7]]
    assert rows_between("x", "test", LENGTHS, bands) == list(range(8))


def test_quantiles_that_fall_on_one_length_are_refused():
    with pytest.raises(
        DataError, match=r"data\.eval_bands=\[median, q75\]: no text can be between median \(7 tokens\)"
    ):
        tokens("median", "q75", lengths=torch.tensor([7, 7, 7, 7, 9]))


def test_an_empty_band_is_refused_with_what_there_is():
    with pytest.raises(DataError, match=r"(?s)no text of test has 15 to 19 tokens.*those of test have 4 to 20"):
        rows_between("data.eval_bands", "test", LENGTHS, [Band(4, 15), Band(15, 20)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("data.train_band=[9,4]", "data.train_band=[9, 4] does not rise"),
        ("data.train_band=[4,4]", "data.train_band=[4, 4] does not rise"),
        ("data.train_band=[4,0]", "does not rise"),
        ("data.train_band=[q75,median]", "[q75, median] does not rise"),
        ("data.train_band=[max,64]", "does not rise"),
        ("data.train_band=[0,8,16]", "[0, 8, 16] is not a list of two lengths"),
        ("data.eval_bands=[8]", "[8] is not a list of two lengths or more"),
        ("data.eval_bands=[0,q0]", "[0, q0] holds q0, which is no length"),
        ("data.eval_bands=[-1,8]", "[-1, 8] holds -1, which is no length"),
        ("data.eval_bands=[0,median,q75,q75]", "does not rise"),
        ("data.eval_bands=[0,300]", "data.eval_bands=[0, 300] reaches 300 tokens, but task.max_length=128 cuts there"),
        ("data.train_band=[129,max]", "data.train_band=[129, max] reaches 129 tokens, but task.max_length=128"),
    ],
)
def test_a_band_that_is_none_is_refused_before_anything_is_read(given, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate(*compose([given]))


@pytest.mark.parametrize("given", ["data.train_band=[0,129]", "data.eval_bands=[0,40,q90,max]", "data.train_band=null"])
def test_bands_that_may_be_are_taken(given):
    validate(*compose([given]))


# -- a task in bands -----------------------------------------------------------------------------------


def lengths_of(data, split):
    return data.split(split).lengths.tolist()


def test_training_and_validation_keep_the_band_and_the_test_keeps_all(backbones, tmp_path):
    whole = data_of(backbones, tmp_path)
    short = data_of(backbones, tmp_path, train_band=[0, "median"])
    median = whole.split("train").lengths.float().median()
    assert max(lengths_of(short, "train")) <= median
    assert max(lengths_of(short, "validation")) <= median
    assert lengths_of(short, "test") == lengths_of(whole, "test")
    assert not short.has_test  # those are validation rows, of other lengths
    assert short.validation_splits == ("validation",)
    assert short.fingerprint != whole.fingerprint


def test_bands_of_the_test_are_its_rows_by_length(backbones, tmp_path):
    data = data_of(backbones, tmp_path, eval_bands=["q25", "median", "max"], spec={"test_split": "test"})
    assert data.has_test
    assert sum(len(part) for _, part in data.bands) == len(data.split("test"))
    for number, (band, part) in enumerate(data.bands):
        assert all(length in band for length in part.lengths.tolist())
        assert sum(len(batch["labels"]) for batch in data.band_loader(number)) == len(part)
    assert min(lengths_of(data, "train")) < data.bands[0][0].low  # training has all lengths


def test_quantiles_do_not_hang_on_how_many_rows_are_taken(backbones, tmp_path):
    whole = data_of(backbones, tmp_path, eval_bands=[0, "median", "max"])
    few = data_of(backbones, tmp_path, eval_bands=[0, "median", "max"], train_rows=9, seed=3)
    assert [band for band, _ in few.bands] == [band for band, _ in whole.bands]


def test_a_limit_takes_rows_of_the_band(backbones, tmp_path):
    data = data_of(backbones, tmp_path, train_band=[0, "median"], train_rows=10)
    assert len(data.split("train")) == 10
