"""Calibration samples are a function of files, seed and tokenizer, and never overlap with the evaluation text."""

import json

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from support.letters import letters

from prunekit.config.errors import ConfigError
from prunekit.data.errors import DataError
from prunekit.data.text import spec as corpora
from prunekit.data.text.rendering import read_rows
from prunekit.data.text.samples import calibration_samples, evaluation_ids, read_documents, read_questions, read_texts
from prunekit.data.text.spec import ChoiceSpec, Corpus, CorpusFiles, GenerationSpec, TextSource, TextSpec, find_texts
from prunekit.models.gguf import dequantise


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(tmp_path, documents, **keys):
    path = lines(tmp_path / "own.jsonl", *({"text": text} for text in documents))
    held = lines(tmp_path / "held.jsonl", {"text": "HELD OUT " * 20})
    corpus = Corpus(**({"samples": 2, "seqlen": 8} | keys))
    spec = TextSpec("t", corpus, corpus, eval_tokens=100, loss_on="completion" if corpus.completion else "all")
    files = CorpusFiles(path, held)
    return read_texts(spec, TextSource(files, files))


def test_short_documents_are_joined_into_full_samples(tmp_path):
    found = texts(tmp_path, ["AB", "CD", "EF", "GH", "IJ", "KL", "MN", "OP", "QR", "ST", "UV", "WX"])
    samples = calibration_samples(found, "domain", letters(), 1, 64)
    assert [len(sample.ids) for sample in samples] == [8, 8]
    seen = [letters().decode(sample.ids) for sample in samples]
    assert seen[0] != seen[1]


def test_a_sample_of_a_long_document_is_a_window(tmp_path):
    document = "".join(chr(65 + n % 26) for n in range(1000))
    (sample,) = calibration_samples(texts(tmp_path, [document], samples=1), "open", letters(), 1, 64)
    text = "".join(chr(32 + token) for token in sample.ids)
    assert text in document
    assert len(text) == 8


def test_samples_depend_only_on_the_seed(tmp_path):
    documents = [f"DOCUMENT {n} " * 3 for n in range(30)]
    found = texts(tmp_path, documents)

    def drawn(seed):
        return [sample.ids.tolist() for sample in calibration_samples(found, "domain", letters(), seed, 64)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    drawn(1)
    assert torch.get_rng_state().equal(before)


def test_samples_are_cut_to_the_models_maximum(tmp_path):
    found = texts(tmp_path, ["ABCDEFGHIJ" * 10] * 1 + ["KLMNOPQ" * 10], seqlen=5000)
    assert [len(s.ids) for s in calibration_samples(found, "domain", letters(), 1, 16)] == [16, 16]


def test_mixed_takes_half_of_each_corpus(tmp_path):
    found = texts(tmp_path, [f"TEXT {n} OF MANY" for n in range(20)], samples=4)
    parts = [calibration_samples(found, name, letters(), 1, 64) for name in ("open", "domain")]
    mixed = calibration_samples(found, "mixed", letters(), 1, 64)
    assert [s.ids.tolist() for s in mixed] == [s.ids.tolist() for part in parts for s in part[:2]]


def test_only_the_completion_of_an_example_counts(tmp_path):
    found = texts(
        tmp_path, ["ABC", "DEF"], pack="examples", template="{{ text }}:", completion=" YES", samples=2, seqlen=64
    )
    for sample in calibration_samples(found, "domain", letters(), 1, 64):
        assert sample.counts.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_document_in_the_evaluation_text_is_not_calibrated_on(tmp_path):
    own = lines(tmp_path / "a.jsonl", {"text": "one  TEXT"}, {"text": "two"}, {"text": "two"}, {"text": ""})
    held = lines(tmp_path / "b.jsonl", {"text": "One text"})
    found = read_documents(Corpus(), CorpusFiles(own, held), "domain")
    assert (found.calibration, found.overlap, found.duplicates) == (["two"], 1, 1)


def test_without_an_evaluation_file_a_tenth_is_held_out_whatever_the_order(tmp_path):
    rows = [{"text": f"text {n}"} for n in range(50)]
    one, other = (
        read_documents(Corpus(), CorpusFiles(lines(tmp_path / name, *order), None), "domain")
        for name, order in (("a.jsonl", rows), ("b.jsonl", rows[::-1]))
    )
    assert len(one.evaluation) == 5
    assert one.evaluation == other.evaluation
    assert not set(one.evaluation) & set(one.calibration)


def test_text_files_have_a_document_per_paragraph_or_per_line(tmp_path):
    held = lines(tmp_path / "h.jsonl", {"text": "x"})
    for text, documents in (("a\nb\n\nc\n", ["a\nb", "c"]), ("a\nb\n", ["a", "b"])):
        (tmp_path / "t.txt").write_text(text)
        assert read_documents(Corpus(), CorpusFiles(tmp_path / "t.txt", held), "open").calibration == documents


def test_the_evaluation_text_has_the_number_of_tokens_asked_for(tmp_path):
    found = texts(tmp_path, ["ABC"])
    assert len(evaluation_ids(found, "open", letters())) == 64  # at most an eighth from one document, but up to 64


def test_the_order_of_questions_depends_only_on_their_text(tmp_path):
    path = lines(tmp_path / "q.jsonl", *({"q": f"question {n}", "a": ("yes", "no")[n % 2]} for n in range(9)))
    spec = ChoiceSpec("{{ q }}?", "a", ("yes", "no"), rows=4)
    found = read_questions(spec, path)
    assert len(found) == 4
    assert found[0].choices[found[0].answer] == ("yes", "no")[int(found[0].prompt[9]) % 2]


# -- what cannot be used -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("documents", "keys", "words"),
    [
        (
            ["AB"],
            {"template": "{{ body }}"},
            r"row 1: the template of task\.open cannot be filled \('body' is undefined",
        ),
        (["AB"], {"template": "{{ text "}, r"task\.open\.template='\{\{ text ' is not a Jinja template"),
        ([""], {}, r"leaves 0 documents to calibrate on and 1 to measure on"),
    ],
)
def test_bad_texts_are_refused(documents, keys, words, tmp_path):
    with pytest.raises(DataError, match=words):
        texts(tmp_path, documents, **keys)


def test_too_little_text_is_refused_with_how_much_there_is(tmp_path):
    with pytest.raises(DataError, match=r"task\.domain gives 0 samples of 8 tokens, not task\.domain\.samples=2"):
        calibration_samples(texts(tmp_path, ["AB"]), "domain", letters(), 1, 64)


def test_an_answer_that_is_not_a_choice_is_refused(tmp_path):
    path = lines(tmp_path / "q.jsonl", {"q": "a", "a": "perhaps"})
    with pytest.raises(DataError, match=r"row 1: column 'a' holds 'perhaps'"):
        read_questions(ChoiceSpec("{{ q }}", "a", ("yes", "no")), path)


@pytest.mark.parametrize(("name", "words"), [("a.txt", "is not a file"), ("a.pdf", "has the suffix .pdf")])
def test_a_path_that_cannot_be_read_is_refused(name, words, tmp_path):
    if name == "a.pdf":
        (tmp_path / name).write_text("x")
    spec = TextSpec("t", Corpus(file=str(tmp_path / name)), Corpus(file=str(tmp_path / name)))
    with pytest.raises(ConfigError, match=words):
        find_texts(spec, {})


def test_a_gguf_file_without_its_packages_is_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"gguf and accelerate not installed.\nOption 1: pip install 'prunekit\[gguf\]'"
    ):
        dequantise(tmp_path / "m.gguf", tmp_path)


def test_texts_that_are_generated_and_scored_are_not_calibrated_on(tmp_path):
    """Both come from one file here: scored rows are dropped from the calibration, and counted."""
    path = lines(tmp_path / "qa.jsonl", *({"q": f"what is {n}", "a": f"it is {n}"} for n in range(40)))
    held = lines(tmp_path / "held.jsonl", {"q": "else", "a": "nothing"})
    corpus = Corpus(template="{{ q }}?", completion=" {{ a }}")
    spec = TextSpec("t", corpus, corpus, generation=GenerationSpec("{{ q }}?", "{{ a }}", rows=5))
    found = read_texts(spec, TextSource(CorpusFiles(path, held), CorpusFiles(path, held), generation=path))
    scored = {f"{prompt} {reference}" for prompt, reference in found.references}
    assert len(scored) == 5
    for documents in found.documents.values():
        assert not scored & set(documents.calibration)
        assert (len(documents.calibration), len(documents.prompts), documents.overlap) == (35, 35, 5)


@pytest.mark.parametrize("template", ["{{ n / 0 }}", "{{ n + 'x' }}", "{{ missing }}"])
def test_a_template_that_fails_is_refused_with_the_row(template, tmp_path):
    path = lines(tmp_path / "own.jsonl", {"n": 1})
    with pytest.raises(DataError, match=r"row 1: the template of task\.open cannot be filled"):
        read_documents(Corpus(template=template), CorpusFiles(path, None), "open")


def test_a_column_may_be_called_self(tmp_path):
    """The name has a meaning in Python and in Jinja; other columns can be used with it."""
    path = lines(tmp_path / "own.jsonl", {"self": 1, "text": "me"}, {"self": 2, "text": "you"})
    found = read_documents(Corpus(), CorpusFiles(path, None), "open")
    assert sorted(found.calibration + found.evaluation) == ["me", "you"]


def test_a_corpus_is_read_from_the_hub(tmp_path, monkeypatch):
    """Its two files are fetched by name; a file that is not there is refused, and so is a missing name."""
    fetched = []

    def fetch(repo, file, repo_type, revision):
        fetched.append((repo, file, repo_type, revision))
        if "none" in file:
            raise EntryNotFoundError("404")
        return str(lines(tmp_path / file, {"text": "a"}))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(corpora, "cached_snapshot", lambda *given: True)
    corpus = Corpus(hub="some/texts", hub_file="train.jsonl", eval_hub_file="test.jsonl", revision="abc")
    found = find_texts(TextSpec("t", corpus, corpus), {})
    assert (found.open.calibration, found.open.evaluation) == (tmp_path / "train.jsonl", tmp_path / "test.jsonl")
    assert fetched[:2] == [("some/texts", f"{split}.jsonl", "dataset", "abc") for split in ("train", "test")]
    with pytest.raises(ConfigError, match=r"some/texts has no file none\.jsonl"):
        find_texts(TextSpec("t", Corpus(hub="some/texts", hub_file="none.jsonl"), corpus), {})
    with pytest.raises(ConfigError, match=r"task\.open\.hub=some/texts without task\.open\.hub_file"):
        TextSpec.from_config({"name": "t", "open": {"hub": "some/texts"}, "domain": {"file": "x.txt"}})


def test_copies_of_a_dataset_whose_columns_are_called_otherwise_are_read_alike(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"Question": "q", "context": {"contexts": ["c"], "labels": []}}\n')
    (row,) = read_rows(tmp_path / "a.jsonl")
    assert (row["question"], row["Question"], row["contexts"]) == ("q", "q", ["c"])


def test_documents_in_the_layout_of_squad_are_their_contexts(tmp_path):
    articles = [{"title": "t", "paragraphs": [{"context": "one", "qas": []}, {"context": "two", "qas": []}]}]
    (tmp_path / "a.json").write_text(json.dumps({"version": "1", "data": articles}))
    assert read_rows(tmp_path / "a.json") == [{"title": "t", "text": "one"}, {"title": "t", "text": "two"}]
