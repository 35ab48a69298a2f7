"""Texts that are divided into words with a label each: how they are read, refused and tokenised."""

import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prunekit.config.errors import ConfigError
from prunekit.data.encoding import Encoder, load_tokenizer
from prunekit.data.errors import DataError
from prunekit.data.reading import read_task
from prunekit.data.rows import Rows
from prunekit.data.sources import find_task
from prunekit.data.spec import TaskSpec
from prunekit.data.words import WordTokeniser, encode_words, first_tokens

ROWS = [
    {"tokens": ["EU", "rejects", "German", "call"], "ner_tags": ["B-ORG", "O", "B-MISC", "O"]},
    {"tokens": ["Peter", "Blackburn"], "ner_tags": ["B-PER", "I-PER"]},
]
NAMES = ("B-MISC", "B-ORG", "B-PER", "I-PER", "O")


def spec(**keys):
    return TaskSpec.from_config({"name": "ner", "kind": "tokens", "text": "tokens", "label": "ner_tags", **keys})


def read(folder, rows, name="train.jsonl", **keys):
    """The rows of a file, which is the validation file as well, so that none are taken out of it."""
    path = folder / name
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    own = spec(**{"file": str(path), "validation_file": str(path), **keys})
    return read_task(own, find_task(own, {}))


def refusal(folder, rows, **keys):
    with pytest.raises(DataError) as error:
        read(folder, rows, **keys)
    return str(error.value).replace(str(folder), "").splitlines()


# -- rows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.parquet"])
def test_a_row_is_a_list_of_words_and_one_of_labels(tmp_path, name):
    task = read(tmp_path, ROWS, name)
    assert task.label_names == NAMES
    assert list(task.splits["train"].texts) == ["EU\nrejects\nGerman\ncall", "Peter\nBlackburn"]  # a word per line
    assert task.splits["train"].labels == [(1, 4, 0, 4), (2, 3)]


def test_rows_on_disk_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("prunekit.data.store.SMALL", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    task = read(tmp_path, ROWS)
    assert list(task.splits["train"].texts) == ["EU\nrejects\nGerman\ncall", "Peter\nBlackburn"]


def test_fields_of_records_hold_words_too(tmp_path):
    task = read(tmp_path, [{"a": row} for row in ROWS], text="a.tokens", label="a.ner_tags")
    assert task.splits["train"].labels == [(1, 4, 0, 4), (2, 3)]


def test_class_names_are_those_of_the_dataset_or_of_the_task(tmp_path):
    names = ["O", "B-PER", "I-PER"]
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(datasets.ClassLabel(names=names))}
    )
    rows = {"tokens": [["Peter", "Blackburn", "left"]], "ner_tags": [[1, 2, 0]]}
    path = tmp_path / "t.parquet"
    datasets.Dataset.from_dict(rows, features).to_parquet(path)
    files = {"file": str(path), "validation_file": str(path)}
    own, turned = spec(**files), spec(**files, labels=["B-PER", "I-PER", "O"])
    found, other = (read_task(task, find_task(task, {})) for task in (own, turned))
    assert (found.label_names, found.splits["train"].labels) == (("O", "B-PER", "I-PER"), [(1, 2, 0)])
    assert (other.label_names, other.splits["train"].labels) == (("B-PER", "I-PER", "O"), [(0, 1, 2)])


def test_whole_numbers_are_class_numbers(tmp_path):
    rows = [{"tokens": ["a", "b", "c"], "ner_tags": [0, 2, 1]}] * 2
    assert read(tmp_path, rows).label_names == ("0", "1", "2")
    assert read(tmp_path, rows, labels=["O", "B-X", "I-X"]).splits["train"].labels == [(0, 2, 1)] * 2


def test_the_same_words_divided_otherwise_are_another_text(tmp_path):
    rows = [{"tokens": words, "ner_tags": ["O"] * len(words)} for words in (["a", "b"], ["a b"], ["b"])]
    rows[2]["ner_tags"] = ["B-X"]
    assert "contradicting" not in read(tmp_path, rows).noticed
    rows.append({"tokens": ["b"], "ner_tags": ["O"]})
    assert read(tmp_path, rows).noticed["contradicting"] == 4  # two in each of the splits


# -- refusals ----------------------------------------------------------------------------------------


def changed(**columns):
    return [*ROWS, {**ROWS[1], **columns}]


@pytest.mark.parametrize(
    ("columns", "first", "last"),
    [
        (
            {"ner_tags": ["B-PER", "I-PER", "O"]},
            "/train.jsonl, row 3: 2 words in column 'tokens' and 3 labels in 'ner_tags'.",
            "Correct these rows, or name other columns with task.text=... and task.label=...",
        ),
        (
            {"tokens": "Peter Blackburn"},
            "row 3: column 'tokens' holds 'Peter Blackburn', a text that is not divided into words; name the text's",
            'Write rows as {"tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"]} into a .jsonl file.',
        ),
        ({"tokens": 7}, "row 3: column 'tokens' holds 7, which is no list of words", "Write rows as"),
        ({"tokens": ["Peter", 7]}, "row 3: column 'tokens' holds 7 as word 2 of 2, which is not text", "Write rows as"),
        ({"tokens": ["Peter", None]}, "holds None as word 2 of 2, which is not text", "Write rows as"),
        ({"tokens": ["Peter", " "]}, "column 'tokens' holds an empty word, ' ', as word 2 of 2", "Write rows as"),
        ({"tokens": ["a\nb", "c"]}, "column 'tokens' holds a line end in 'a\\nb', as word 1 of 2", "Write rows as"),
        ({"tokens": ["a", "\ud83d"]}, "holds half a character, in '\\ud83d', which is no Unicode, as word 2", "Write"),
        (
            {"ner_tags": "B-PER I-PER"},
            "row 3: label 'B-PER I-PER' is no list, and each word has a label of its own.",
            "Correct these rows, or name another column with task.label=...",
        ),
        ({"ner_tags": ["B-PER", None]}, "is a list with None for word 2, which is no label", "Correct"),
        ({"ner_tags": ["B-PER", ["O"]]}, "is a list with ['O'] for word 2, which is a list", "Correct"),
        ({"ner_tags": None}, "row 3: column 'ner_tags' holds no label", "Give it a label, or set task.unlabelled=drop"),
        ({"tokens": []}, "row 3: the text in column 'tokens' is empty", "Give it a text, or set one of these."),
    ],
)
def test_what_is_wrong_is_said_by_file_and_row(tmp_path, columns, first, last):
    lines = refusal(tmp_path, changed(**columns))
    assert first in lines[0]
    assert lines[2].startswith(last)
    assert len(lines) == 3


def test_all_rows_with_labels_missing_are_counted(tmp_path):
    rows = [{"tokens": ["a", "b"], "ner_tags": ["O", "B-X", "O"][: 1 + n % 3]} for n in range(6)]
    assert refusal(tmp_path, rows)[0] == (
        "/train.jsonl, row 1: 2 words in column 'tokens' and 1 labels in 'ner_tags' (4 such rows, also row 3: 2 words "
        "in column 'tokens' and 3 labels in 'ner_tags' and row 4)."
    )


def test_an_unknown_label_is_refused_with_what_to_type(tmp_path):
    lines = refusal(tmp_path, ROWS, labels=["O", "B-PER", "I-PER", "B-ORG"])
    assert lines[0].startswith("/train.jsonl, row 1: label 'B-MISC' is not in the set O, B-PER, I-PER, B-ORG")
    assert lines[2] == "If it is one of them: 'task.labels=[O, B-PER, I-PER, B-ORG, B-MISC]'"


def test_all_rows_with_an_unknown_label_are_counted_once(tmp_path):
    rows = [{"tokens": ["a", "b"], "ner_tags": ["B-MISC"] * 2}] * 4 + [{"tokens": ["a"], "ner_tags": ["O"]}]
    lines = refusal(tmp_path, rows, labels=["O", "B-PER"])
    assert lines[0].startswith(
        "/train.jsonl, row 1: label 'B-MISC' (4 such rows, also row 2 and row 3) is not in the set"
    )


def test_labels_that_are_not_public_are_called_so(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps({"tokens": ["a", "b"], "ner_tags": [-1, -1]}))  # one text
    rows = [{"tokens": ["a", "b"], "ner_tags": [0, 1]}] * 2
    lines = refusal(tmp_path, rows, test_file=str(tmp_path / "test.jsonl"))
    assert lines[1] == "All labels are -1, which stands for labels that are not public."


def test_labels_that_mark_no_entities_are_remarked_upon():
    kind = spec().kind
    assert kind.remark(["O", "B-PER", "I-PER"]) == ""
    assert kind.remark(["0", "1", "2"]).startswith("the labels, 0, 1, 2, are not as B-PER, I-PER and O: every word")


def test_two_spellings_of_a_label_are_refused(tmp_path):
    assert (
        "spells one class in several ways: 'B-PER' (row 2), 'b-per' (row 3)"
        in refusal(tmp_path, changed(ner_tags=["b-per", "O"]))[0]
    )


def test_one_label_is_too_few(tmp_path):
    assert (
        "column 'ner_tags' has 1 different labels of words"
        in refusal(tmp_path, [{"tokens": ["a"], "ner_tags": ["O"]}] * 2)[0]
    )


def test_rows_without_words_or_labels_are_left_out_where_the_task_says_so(tmp_path):
    rows = [*ROWS, {"tokens": [], "ner_tags": []}, {"tokens": ["a"], "ner_tags": None}]
    task = read(tmp_path, rows, empty="drop", unlabelled="drop")
    assert (len(task.splits["train"]), task.dropped) == (2, {"empty": 2, "unlabelled": 2})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"text_pair": "b"}, r"task.text_pair=b with task.kind=tokens.*\nAllowed: null.*\nSet task.text_pair=null"),
        ({"empty": "keep"}, r"task.empty=keep with task.kind=tokens.*\nAllowed: error or drop"),
        ({"labels": ["O"]}, r"task.labels=\[O\] has 1 label"),
        ({"labels": ["O", "O"]}, "task.labels names 'O' twice"),
        (
            {"metrics": ["accuracy"]},
            r"task.metrics: accuracy is no metric of task.kind=tokens.\nAllowed: entity_f1, entity_pre",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        spec(**keys)


# -- token ids ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(backbones):
    return load_tokenizer(backbones / "bert")


# one token; two, one for each syllable and its rest; one; two
TEXT = "bade\nxy\nbafi\ngo."


def encoded(tokenizer, texts=(TEXT,), labels=((1, 2, 0, 3),), most=32):
    return encode_words(Rows(list(texts), None, list(labels)), Encoder(tokenizer, most), ("O", "B-A", "I-A", "B-B"))


def test_the_first_token_of_a_word_has_its_label(tokenizer):
    split = encoded(tokenizer, [TEXT, "bade"], [(1, 2, 0, 3), (2,)])
    batch = split.batch(torch.tensor([1, 0]))
    assert tokenizer.convert_ids_to_tokens(batch["input_ids"][1]) == (
        ["[CLS]", "bade", "x", "##y", "bafi", "g", "##o", ".", "[SEP]"]
    )
    no = -100
    assert batch["labels"].tolist() == [[no, 2, no, no, no, no, no, no, no], [no, 1, 2, no, 0, 3, no, no, no]]
    assert (split.judged, split.truncated, split.targets.cut) == (2, 0, {"words": 0, "of_words": 5})
    assert batch["token_type_ids"].tolist() == [[0] * 9] * 2


def test_words_that_are_cut_are_counted(tokenizer):
    split = encoded(tokenizer, most=6)  # [CLS] bade x ##y bafi [SEP]
    assert split.batch(torch.tensor([0]))["labels"].tolist() == [[-100, 1, 2, -100, 0, -100]]
    assert (split.truncated, split.targets.cut) == (1, {"words": 1, "of_words": 4})
    assert (split.targets.labels_of(0).tolist(), split.targets.read_words(0).tolist()) == ([1, 2, 0, 3], [0, 1, 2])


def test_a_word_of_which_the_tokenizer_leaves_nothing_has_no_token(tokenizer):
    split = encoded(tokenizer, ["bade\n\u200b\nbafi"], [(1, 2, 0)])
    assert split.targets.read_words(0).tolist() == [0, 2]
    assert split.batch(torch.tensor([0]))["labels"].tolist() == [[-100, 1, 0, -100]]
    assert split.targets.cut == {"words": 1, "of_words": 3}


def test_first_tokens_of_words():
    assert first_tokens([None, 0, 0, 1, 2, 2, None]) == [-1, 0, -1, 1, 2, -1, -1]


def test_what_was_encoded_is_read_again_and_depends_on_how_words_are_divided(tokenizer, backbones, tmp_path):
    def fingerprint(text, labels, tokenizer=tokenizer):
        encoder = Encoder(tokenizer, 32, tmp_path)
        return encode_words(Rows([text], None, [labels]), encoder, ("O", "B-A")).fingerprint

    assert fingerprint("bade\nbafi", (0, 1)) == fingerprint("bade\nbafi", (0, 1))
    assert len(list(tmp_path.glob("*.arrow"))) == 1
    others = [fingerprint("bade bafi", (0,)), fingerprint("bade\nbafi", (0, 0)), fingerprint("bade\nbafi", (0, 1))]
    others.append(fingerprint("bade\nbafi", (0, 1), load_tokenizer(backbones / "distilbert")))
    assert len(set(others)) == 4


@pytest.mark.parametrize("prefix", [True, False])
def test_words_are_read_as_in_a_text_whether_or_not_a_tokenizer_puts_a_blank_first(prefix):
    pieces = [*pre_tokenizers.ByteLevel.alphabet()]
    vocabulary = {piece: number for number, piece in enumerate(["[UNK]", *sorted(pieces), "Ġb"])}
    tokens = Tokenizer(models.BPE(vocabulary, [("Ġ", "b")], unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="[UNK]", pad_token="[UNK]")
    (encoding,) = WordTokeniser.of(tokenizer, 32).encode([["b", "ab", "b"]])
    assert encoding.tokens == ["Ġb", "Ġ", "a", "b", "Ġb"]
    assert first_tokens(encoding.word_ids) == [0, 1, -1, -1, 2]
