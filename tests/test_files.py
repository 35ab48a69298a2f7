"""Digests of JSON, which name caches and runs: they must stay what they are; and names that are cut."""

import hashlib

import pytest

from prunekit.files import byte_size, fit_name, json_sha256


def test_a_digest_is_that_of_the_text_with_sorted_keys():
    assert json_sha256({"b": 1, "a": [None, 2.5]}) == hashlib.sha256(b'{"a": [null, 2.5], "b": 1}').hexdigest()


def test_each_option_is_part_of_the_digest():
    value = {"b": "\u00e9", "a": 1}
    assert json_sha256(value) == hashlib.sha256(b'{"a": 1, "b": "\\u00e9"}').hexdigest()
    assert json_sha256(value, sort_keys=False) == hashlib.sha256(b'{"b": "\\u00e9", "a": 1}').hexdigest()
    assert json_sha256(value, ensure_ascii=False) == hashlib.sha256('{"a": 1, "b": "\u00e9"}'.encode()).hexdigest()
    assert json_sha256({"a": {1}}, default=sorted) == hashlib.sha256(b'{"a": [1]}').hexdigest()


@pytest.mark.parametrize(
    ("text", "characters", "size"),
    [
        ("x" * 16, "x" * 16, "x" * 16),
        ("x" * 17, "xxxxxxx-d04fd59f", "xxxxxxx-d04fd59f"),
        ("é" * 16, "é" * 16, "ééé-50bf38cd"),
        ("a\tb", "a-b-894891f8", "a-b-894891f8"),
        ("a:b", "a-b-6783a31e", "a-b-6783a31e"),
        ("\ud83d a", "a-2ec75b6f", "a-2ec75b6f"),
        ("", "unnamed-e3b0c442", "unnamed-e3b0c442"),
        ("\U0001f469\u200d\U0001f467", "\U0001f469\u200d\U0001f467", "\U0001f469\u200d\U0001f467"),
    ],
)
def test_a_name_that_does_not_fit_is_cut_and_told_apart_by_its_hash(text: str, characters: str, size: str):
    assert fit_name(text, 16, forbidden=":") == characters
    assert fit_name(text, 16, byte_size, forbidden=":") == size
