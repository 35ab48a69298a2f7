"""A long context becomes overlapping windows; each knows where its tokens stand, and whether it holds the answer."""

import numpy as np
import pytest
import torch

from prunekit.data.encoding import Encoder, load_tokenizer
from prunekit.data.errors import DataError
from prunekit.data.module import TokenPruningDataModule
from prunekit.data.rows import Rows
from prunekit.data.sources import find_task
from prunekit.data.spans import Answer
from prunekit.data.spec import TaskSpec
from prunekit.data.windows import answer_tokens, encode_windows
from prunekit.models.tiny import build_tiny_backbone


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    def of(family):
        folder = tmp_path_factory.mktemp("models") / family
        build_tiny_backbone(folder, family)
        return load_tokenizer(folder)

    return {family: of(family) for family in ("bert", "roberta")}


@pytest.fixture
def tokenizer(tokenizers):
    return tokenizers["bert"]


FILL = ["bade", "bafi", "bago", "dede", "defi", "dego", "fiba", "fide", "figo", "goba"]  # one token each


def one(question="bade bafi", answer=("fiba",), places=None):
    context = " ".join(FILL)
    start = context.index(answer[0]) if answer else 0
    label = Answer(answer, (start,)) if answer else Answer()
    return Rows([question], [context], [label], places, ["1"])


def test_a_short_context_is_one_window(tokenizer):
    split = encode_windows(one(), Encoder(tokenizer, 32), 4)
    # [CLS] bade bafi [SEP] ten words [SEP]; fiba is the seventh of them
    assert split.lengths.tolist() == [15]
    assert split.targets.labels.tolist() == [[10, 10]]
    assert split.truncated == 0
    spans = split.batch(torch.tensor([0]))["spans"][0].tolist()
    assert spans[:7] == [[-1, -1]] * 4 + [[0, 4], [5, 9], [10, 14]]
    assert spans[14] == [-1, -1]


def test_a_long_context_is_read_in_windows_that_overlap_by_the_stride(tokenizer):
    split = encode_windows(one(), Encoder(tokenizer, 11), 2)  # 2 + 3 special leaves 6 of the context
    context = " ".join(FILL)
    seen = []
    for window in range(len(split)):
        spans = split.batch(torch.tensor([window]))["spans"][0].tolist()
        seen.append([context[begin:end] for begin, end in spans if begin >= 0])
    assert seen == [FILL[0:6], FILL[4:10]]
    assert split.targets.labels.tolist() == [[0, 0], [6, 6]]  # the first does not hold the answer: [CLS]
    assert split.targets.examples.tolist() == [0, 0]
    assert (len(split), split.judged) == (2, 1)


def test_an_answer_across_the_edge_of_a_window_is_none_there(tokenizer):
    split = encode_windows(one(answer=("defi dego fiba",)), Encoder(tokenizer, 11), 2)
    assert split.targets.labels.tolist() == [[0, 0], [4, 6]]


def test_a_question_without_an_answer_points_at_cls(tokenizer):
    assert encode_windows(one(answer=()), Encoder(tokenizer, 32), 4).targets.labels.tolist() == [[0, 0]]


def test_an_answer_inside_a_word_takes_the_tokens_that_hold_it(tokenizer):
    spans = np.array([[-1, -1], [0, 4], [5, 9], [9, 12], [-1, -1]])
    assert answer_tokens(Answer(("xx",), (6,)), spans) == (2, 2)
    assert answer_tokens(Answer(("xxxx yyyyyyy",), (0,)), spans) == (1, 3)
    assert answer_tokens(Answer((" xxxx ",), (4,)), spans) == (2, 2)  # white space around it is no part of a token
    assert answer_tokens(Answer(("far away",), (40,)), spans) == (0, 0)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_question_and_cls_are_protected_where_the_task_asks_for_it(tokenizers, family):
    encoder = Encoder(tokenizers[family], 11)
    split = encode_windows(one(), encoder, 2, protect_question=True)
    batch = split.batch(torch.tensor([0, 1]))
    assert batch["protected"].int().tolist() == [[1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]] * 2
    assert split.protected.tolist() == [4, 4]
    assert ("token_type_ids" in batch) == (family == "bert")
    assert "protected" not in encode_windows(one(), encoder, 2).batch(torch.tensor([0]))
    assert encode_windows(one(), encoder, 2).protected.tolist() == [1, 1]


def test_padding_stands_nowhere_and_is_not_protected(tokenizer):
    rows = Rows(["bade", "bade bafi"], ["bago", " ".join(FILL)], [Answer(), Answer()], None, ["1", "2"])
    batch = encode_windows(rows, Encoder(tokenizer, 32), 4, protect_question=True).batch(torch.tensor([0, 1]))
    assert batch["attention_mask"].sum(-1).tolist() == [5, 15]
    assert (batch["spans"][0, 5:] == -1).all()
    assert batch["protected"].sum(-1).tolist() == [3, 4]


def test_what_was_encoded_is_read_again_and_hangs_on_the_stride(tokenizer, tmp_path):
    first = encode_windows(one(), Encoder(tokenizer, 11, tmp_path), 2)
    assert len(list(tmp_path.glob("*.arrow"))) == 1
    again = encode_windows(one(), Encoder(tokenizer, 11, tmp_path), 2)
    rows = torch.arange(2)
    for name, tensor in first.batch(rows).items():
        assert torch.equal(again.batch(rows)[name], tensor), name
    assert again.targets.questions.texts == ["bade bafi"]
    assert encode_windows(one(), Encoder(tokenizer, 11, tmp_path), 3).fingerprint != first.fingerprint
    assert encode_windows(one(answer=()), Encoder(tokenizer, 11, tmp_path), 2).fingerprint != first.fingerprint


def test_a_question_that_leaves_no_room_is_refused_by_row(tokenizer):
    with pytest.raises(
        DataError,
        match=r"own.csv, row 7: the question has 5 tokens, which leaves 3 of task.max_length=11 for the context; .*"
        r"task.stride=3.*\nSet task.max_length to more than 11, lower task.stride",
    ):
        encode_windows(one(question=" ".join(FILL[:5]), places=["own.csv, row 7"]), Encoder(tokenizer, 11), 3)
    rows = one(question=" ".join(FILL[:5]))
    assert len(encode_windows(rows, Encoder(tokenizer, 11), 2)) == 8  # one token further each


def test_bands_of_lengths_are_refused_because_windows_are_no_texts(tokenizer, tmp_path):
    spec = TaskSpec.from_config(
        {"name": "qa", "kind": "span", "text_pair": "c", "max_length": 32, "stride": 4, "synthetic_rows": 16}
    )
    data = TokenPruningDataModule(
        spec,
        find_task(spec),
        tokenizer.name_or_path,
        batch_size=4,
        eval_batch_size=4,
        seed=1,
        train_band=[0, "median"],
        cache_dir=tmp_path,
    )
    with pytest.raises(DataError, match=r"are of text lengths, but qa reads in windows\.\nAllowed: null"):
        data.setup()
