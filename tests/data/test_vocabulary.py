"""Texts of which a vocabulary leaves nothing, or knows no word; and what is said about the rows of a task."""

import pytest

from prunekit.data.encoding import load_tokenizer
from prunekit.data.errors import DataError
from prunekit.data.rows import Rows, TaskRows
from prunekit.data.spec import TaskSpec
from prunekit.data.vocabulary import is_tokenless, left_out, remarks, unknown_share, without_tokenless
from prunekit.models.sources import find_backbone

NOTHING = ["", " ", "\u200b", "\ufeff", "\u00ad", "\0", "\x01\x02", "\u2060\u200d", "\ufffd", "\u200b \n\u200e"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(find_backbone({"name": "tiny", "family": "bert", "seed": 0}))


def task(texts, pairs=None, **splits):
    rows = {"train": Rows(texts, pairs, [0] * len(texts)), **splits}
    return TaskRows(rows, ("a", "b"), {"empty": 1})


def test_what_leaves_no_token_is_no_text(tokenizer):
    assert [text for text in NOTHING if not is_tokenless(text, tokenizer)] == []
    assert [text for text in ("a", "!", "\U0001f600", "\u200ba", "木", "ñ", "0") if is_tokenless(text, tokenizer)] == []


def test_such_rows_are_refused_dropped_or_kept_as_empty_ones(tokenizer):
    given = task(["ba", "\u200b", "de", "\0"], None)
    with pytest.raises(DataError) as refused:
        without_tokenless(TaskSpec("n"), given, tokenizer)
    assert str(refused.value).splitlines()[0] == (
        r"row 2: column 'text' holds '\u200b' (2 such rows, also row 4: column 'text' holds '\x00'), of which this "
        "vocabulary leaves no token; that is 2 of 4 texts of train."
    )
    found = without_tokenless(TaskSpec("n", empty="drop"), given, tokenizer)
    assert (found.splits["train"].texts, found.dropped) == (["ba", "de"], {"empty": 3})
    assert without_tokenless(TaskSpec("n", empty="keep"), given, tokenizer) is given
    with pytest.raises(DataError, match="that is 1 of 1 texts of test"):
        without_tokenless(TaskSpec("n", empty="drop"), task(["a"], test=Rows(["\u200b"], None, [0])), tokenizer)


def test_the_second_text_and_a_target_count_too(tokenizer):
    found = without_tokenless(
        TaskSpec("n", empty="drop", text_pair="p"), task(["ba", "de"], ["\u00ad", "x"]), tokenizer
    )
    assert found.splits["train"].texts == ["de"]
    spec = TaskSpec.from_config({"name": "n", "kind": "translation", "empty": "drop"})
    found = without_tokenless(spec, TaskRows({"train": Rows(["a", "b"], None, ["\u200b", "y"])}, None), tokenizer)
    assert found.splits["train"].texts == ["b"]


def test_unknown_tokens_are_counted_without_special_ones(tokenizer):
    unknown, (start, end) = tokenizer.unk_token_id, (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert unknown_share([[start, unknown, 9, end], [start, 9, 9, end]], tokenizer) == 0.25
    assert unknown_share([[start, end]], tokenizer) == 0.0


def test_a_vocabulary_that_knows_every_byte_knows_every_word(tokenizer):
    class Bytes:
        unk_token_id = eos_token_id = bos_token_id = 0
        pad_token_id = None
        all_special_ids = (0,)

    assert unknown_share([[0, 0, 5]], Bytes()) == 0.0


def test_what_is_left_out_is_said_by_reason():
    assert left_out({}) == "no rows left out"
    assert left_out({"duplicates": 98}) == "98 double rows left out"
    assert left_out({"empty": 2, "duplicates": 3, "unlabelled": 4}) == "2 empty, 3 double, 4 unlabelled rows left out"


def test_what_may_mislead_is_said_with_a_way_on():
    assert remarks({}, 0.05) == []
    contradicting, leak, unknown = remarks({"contradicting": 12, "test in train": 3}, 0.374)
    assert contradicting.startswith(
        "12 rows have the same text as others and another label, and all of them are used; "
    )
    assert contradicting.endswith("task.contradicting=drop leaves them out")
    assert leak.startswith("3 rows of test are also trained on")
    assert unknown.startswith("37.4 % of the tokens are unknown to this vocabulary")
    assert unknown.endswith("backbone=xlm_roberta_base")
