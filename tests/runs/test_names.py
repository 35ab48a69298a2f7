"""Names that are cut stay apart."""

import pytest

from prunekit.runs.names import byte_size, fit_name


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
