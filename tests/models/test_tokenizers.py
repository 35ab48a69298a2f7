"""The longest text, the tokens and the token types of a tokenizer are those that its model has."""

import pytest
from support.folders import classifier_folder, edit_json

from prunekit.config.errors import ConfigError
from prunekit.data.encoding import load_tokenizer
from prunekit.models.reading import read_config
from prunekit.models.tokenizers import check_tokenizer, longest_text


@pytest.fixture
def folder(tmp_path):
    return classifier_folder(tmp_path / "m")


def read(folder):
    return read_config(folder), load_tokenizer(folder)


@pytest.mark.parametrize(
    ("family", "positions", "said", "longest"),
    [
        ("bert", 40, 10**30, 40),
        ("bert", 40, 512, 40),
        ("bert", 40, 30, 30),
        ("roberta", 40, 10**30, 39),  # its padding token is 0 here; it is 1 elsewhere, which takes two positions
        ("distilbert", 40, 10**30, 40),
        ("t5", None, 512, 512),
    ],
)
def test_the_smaller_of_tokenizer_and_model_counts(tmp_path, family, positions, said, longest):
    from prunekit.models.tiny import build_tiny_backbone

    build_tiny_backbone(tmp_path / "m", family)
    edit_json(tmp_path / "m" / "config.json", max_position_embeddings=positions)
    edit_json(tmp_path / "m" / "tokenizer_config.json", model_max_length=said)
    assert longest_text(*read(tmp_path / "m")) == longest


def test_roberta_s_padding_token_moves_positions(tmp_path):
    from prunekit.models.tiny import build_tiny_backbone

    build_tiny_backbone(tmp_path / "m", "roberta")
    edit_json(tmp_path / "m" / "config.json", max_position_embeddings=514, pad_token_id=1)
    edit_json(tmp_path / "m" / "tokenizer_config.json", model_max_length=10**30)
    assert longest_text(*read(tmp_path / "m")) == 512


def test_more_tokens_than_embeddings_are_refused_with_both_numbers(folder):
    config, tokenizer = read(folder)
    check_tokenizer(folder, config, tokenizer)
    known = config.vocab_size
    tokenizer.add_tokens(["<new>", "<newer>"])
    with pytest.raises(ConfigError, match=rf"a tokenizer with {known + 2} tokens, but embeddings of {known}\."):
        check_tokenizer(folder, config, tokenizer)


def test_more_token_types_than_embeddings_are_refused_with_both_numbers(folder):
    config, tokenizer = read(folder)
    config.type_vocab_size = 1
    check_tokenizer(folder, config, tokenizer)
    with pytest.raises(ConfigError, match=r"makes 2 token types, but embeddings of 1\."):
        check_tokenizer(folder, config, tokenizer, has_pairs=True)
    config.type_vocab_size = 0  # as DistilBERT, which has none
    with pytest.raises(ConfigError, match=r"makes 1 token types, but embeddings of 0\."):
        check_tokenizer(folder, config, tokenizer)


def test_a_tokenizer_needs_a_padding_token(folder):
    config, tokenizer = read(folder)
    tokenizer.pad_token = None
    with pytest.raises(ConfigError, match="a tokenizer without a padding token"):
        check_tokenizer(folder, config, tokenizer)
