"""Digests of JSON, which name caches and runs: they must stay what they are."""

import hashlib

from prunekit.files import json_sha256


def test_a_digest_is_that_of_the_text_with_sorted_keys():
    assert json_sha256({"b": 1, "a": [None, 2.5]}) == hashlib.sha256(b'{"a": [null, 2.5], "b": 1}').hexdigest()


def test_each_option_is_part_of_the_digest():
    value = {"b": "\u00e9", "a": 1}
    assert json_sha256(value) == hashlib.sha256(b'{"a": 1, "b": "\\u00e9"}').hexdigest()
    assert json_sha256(value, sort_keys=False) == hashlib.sha256(b'{"b": "\\u00e9", "a": 1}').hexdigest()
    assert json_sha256(value, ensure_ascii=False) == hashlib.sha256('{"a": 1, "b": "\u00e9"}'.encode()).hexdigest()
    assert json_sha256({"a": {1}}, default=sorted) == hashlib.sha256(b'{"a": [1]}').hexdigest()
