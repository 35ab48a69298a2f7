"""`prunekit predict`: a file in, the same rows with labels, probabilities and kept tokens out."""

import csv
import json
import shutil

import pytest
import torch
from support.exported import PRUNERS, stored_run
from support.folders import edit_json
from transformers import AutoTokenizer

import prunekit
from prunekit.cli.bench import main as bench
from prunekit.cli.export import main as export
from prunekit.cli.predict import main
from prunekit.cli.serve import main as serve
from prunekit.config.errors import ConfigError
from prunekit.data.kinds.tokens import TOKENS

TEXTS = ["zum bem the day", "a very long text " * 30, "the", 'oh, commas; and "quotes"\nand lines', "bem"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return stored_run(tmp_path_factory.mktemp("run"), "topk", PRUNERS["topk"]())


@pytest.fixture
def table(tmp_path):
    with (tmp_path / "new.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["id", "text"], *([number, text] for number, text in enumerate(TEXTS))])
    return tmp_path / "new.csv"


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_row_is_written_again_with_what_the_model_says(run, table, tmp_path, capsys):
    out = tmp_path / "out.csv"
    assert main([f"run={run}", f"data={table}", f"out={out}", "batch_size=2"]) == 0
    assert f"{out}: 5 of 5 rows predicted" in capsys.readouterr().out
    found = rows_of(out)
    assert [(row["id"], row["text"]) for row in found] == [(str(n), text) for n, text in enumerate(TEXTS)]
    # one by one, by transformers' own call
    model, tokenizer = prunekit.load(run), AutoTokenizer.from_pretrained(run / "model")
    for row, text in zip(found, TEXTS, strict=True):
        inputs = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            shares = model(**inputs).logits.softmax(-1)[0]
        names = [model.config.id2label[number] for number in range(2)]
        assert row["predicted"] == names[int(shares.argmax())]
        assert [float(row[f"p_{name}"]) for name in names] == pytest.approx(shares.tolist(), abs=2e-5)
        kept = [int(row[f"kept_layer_{layer:02d}"]) for layer in range(4)]
        length = inputs["input_ids"].shape[1]
        assert kept == [length, *(max(1, int(share * length + 0.5)) for share in (0.6, 0.4, 0.2))]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["new.csv", "out.csv"]


def test_several_labels_are_lists_with_the_thresholds_of_the_model(run, table, tmp_path):
    shutil.copytree(run, tmp_path / "many")
    settings = {"problem_type": "multi_label_classification", "label_thresholds": [0.000001, 0.999999]}
    edit_json(tmp_path / "many/model/config.json", **settings)
    for name in ("a.csv", "b.jsonl"):
        main([f"run={tmp_path / 'many'}", f"data={table}", f"out={tmp_path / name}"])
    lines = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    model, tokenizer = prunekit.load(run), AutoTokenizer.from_pretrained(run / "model")
    for line, row in zip(lines, rows_of(tmp_path / "a.csv"), strict=True):
        inputs = tokenizer(line["text"], truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            shares = model(**inputs).logits.sigmoid()[0].tolist()
        assert (line["predicted"], row["predicted"]) == (["0"], '["0"]')
        assert list(line["probabilities"].values()) == pytest.approx(shares, abs=2e-5)
        assert [float(row["p_0"]), float(row["p_1"])] == pytest.approx(shares, abs=2e-5)


def test_json_lines_have_the_same_numbers(run, table, tmp_path):
    lines = [json.dumps({"id": number, "body": text}) for number, text in enumerate(TEXTS)]
    (tmp_path / "new.jsonl").write_text("\n".join(lines))
    main([f"run={run}", f"data={table}", f"out={tmp_path / 'a.csv'}"])
    main([f"run={run}/model", f"data={tmp_path / 'new.jsonl'}", f"out={tmp_path / 'b.jsonl'}", "text=body"])
    found = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert [row["id"] for row in found] == [0, 1, 2, 3, 4]
    for row, other in zip(found, rows_of(tmp_path / "a.csv"), strict=True):
        assert set(row) == {"id", "body", "predicted", "probabilities", "kept"}
        assert row["predicted"] == other["predicted"]
        shares = {name: float(other[f"p_{name}"]) for name in row["probabilities"]}
        assert row["probabilities"] == pytest.approx(shares, abs=2e-5)
        assert row["kept"] == [int(other[f"kept_layer_{layer:02d}"]) for layer in range(4)]


def test_rows_without_text_are_refused_all_at_once_or_written_without_a_prediction(run, tmp_path):
    data, out = tmp_path / "new.csv", tmp_path / "out.csv"
    data.write_text("text\n" + "\n".join(['" "', "bem", '""', "bem"]) + "\n")
    with pytest.raises(ConfigError, match=r"2 of 4 rows have no text: row 1, 3\.\n.*\nType empty=skip"):
        main([f"run={run}", f"data={data}", f"out={out}"])
    assert not out.exists()
    main([f"run={run}", f"data={data}", f"out={out}", "empty=skip"])
    assert [bool(row["predicted"]) for row in rows_of(out)] == [False, True, False, True]


def test_what_is_no_text_in_a_run_is_none_here_and_all_such_rows_are_counted(run, tmp_path):
    data, out = tmp_path / "new.jsonl", tmp_path / "out.jsonl"
    data.write_text("\n".join(['{"text": NaN}', '{"text": "\\u200b"}', '{"text": "bem"}', '{"text": null}']))
    with pytest.raises(ConfigError, match=r"3 of 4 rows have no text: row 1, 2, 4\."):
        main([f"run={run}", f"data={data}", f"out={out}"])
    main([f"run={run}", f"data={data}", f"out={out}", "empty=skip"])
    assert [json.loads(line)["predicted"] is None for line in out.read_text().splitlines()] == [True, True, False, True]
    data.write_text("\n".join(['{"text": 1}', '{"text": "bem"}', '{"text": "\\ud83d"}']))
    with pytest.raises(ConfigError, match=r"row 1: column 'text' holds 1, which is not text \(2 such rows, also row 3"):
        main([f"run={run}", f"data={data}", f"out={out}"])
    with pytest.raises(ConfigError, match=f"data={tmp_path} is a folder"):
        main([f"run={run}", f"data={tmp_path}", f"out={out}"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["text=body"], r"has no column 'body'.\nAllowed: id, text.\nName the column of the texts: text=..."),
        (["text_pair=id"], r"text_pair=id, but run=.* reads one text per row"),
        (["out=out.txt"], r"out=out.txt has the suffix .txt.\nAllowed: .csv, .jsonl.\nType out=out.csv"),
        (["out=no/such/out.csv"], r"the folder no/such does not exist"),
        (["data=none.csv"], r"data=none.csv does not exist"),
        (["out=new.csv"], r"out=new.csv is the file that is read"),
        (["out=null"], r"predict needs out="),
        (["run=nowhere"], r"run=nowhere is no run"),
        (["batch_size=0"], r"batch_size=0 is out of range"),
    ],
)
def test_what_cannot_be_predicted_is_refused_before_a_model_is_loaded(arguments, told, run, table, monkeypatch):
    monkeypatch.chdir(table.parent)
    monkeypatch.setattr("prunekit.models.pretrained.load_hf", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(ConfigError, match=told):
        main([f"run={run}", "data=new.csv", "out=out.csv", *arguments])


def test_half_a_character_is_refused_as_in_a_task(run, tmp_path):
    (tmp_path / "new.jsonl").write_text('{"text": "bem"}\n{"text": "a \\ud83d"}\n')
    with pytest.raises(ConfigError, match=r"row 2: column 'text' holds half a character"):
        main([f"run={run}", f"data={tmp_path / 'new.jsonl'}", f"out={tmp_path / 'out.csv'}"])


def test_a_column_that_would_be_written_twice_is_refused(run, tmp_path):
    (tmp_path / "new.csv").write_text("text,predicted\nbem,x\n")
    with pytest.raises(ConfigError, match=r"has a column 'predicted' already"):
        main([f"run={run}", f"data={tmp_path / 'new.csv'}", f"out={tmp_path / 'out.csv'}"])


def test_a_crash_leaves_no_file(run, table, tmp_path, monkeypatch):
    monkeypatch.setattr("prunekit.pipelines.predict.predict", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([f"run={run}", f"data={table}", f"out={tmp_path / 'out.csv'}"])
    assert [path.name for path in tmp_path.iterdir()] == ["new.csv"]


def test_the_engines_have_probabilities_too(run):
    engine = prunekit.load(run, engine="packed")
    result = engine(["zum bem", "the day"])
    assert result.probabilities.sum(-1).tolist() == pytest.approx([1.0, 1.0])
    assert torch.equal(result.probabilities.argmax(-1), result.logits.argmax(-1))


def test_a_field_of_records_is_read_by_its_path(run, tmp_path):
    data, out = tmp_path / "new.jsonl", tmp_path / "out.jsonl"
    data.write_text('{"meta": {"body": "bem"}}\n{"meta": {"body": "zum bem"}}\n')
    main([f"run={run}", f"data={data}", f"out={out}", "text=meta.body"])
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["meta"]["body"], row["kept"][0]) for row in found] == [("bem", 5), ("zum bem", 8)]
    with pytest.raises(ConfigError, match=r"row 1: 'meta' has no field 'text'; .* body (.|\n)*shell: text=meta.body"):
        main([f"run={run}", f"data={data}", f"out={out}", "text=meta.text"])


# -- words with a label each -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tagging(tmp_path_factory):
    overrides = ["task=csv", "task.kind=tokens", "task.text=tokens", "task.max_length=8"]
    return stored_run(tmp_path_factory.mktemp("tagging"), "topk", PRUNERS["topk"](), overrides, TOKENS, NAMES)


NAMES = ["O", "B-PER", "I-PER"]
SENTENCES = [["zum", "bem"], ["the", "bade", "bafi", "bago", "dede", "defi", "dego", "fiba"], ["bade"]]


def test_each_word_gets_a_label_and_a_word_that_is_cut_none(tagging, tmp_path):
    data, out = tmp_path / "new.jsonl", tmp_path / "out.jsonl"
    data.write_text("\n".join(json.dumps({"id": n, "tokens": words}) for n, words in enumerate(SENTENCES)))
    assert main([f"run={tagging}", f"data={data}", f"out={out}", "batch_size=2"]) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    model, tokenizer = prunekit.load(tagging), AutoTokenizer.from_pretrained(tagging / "model")
    for row, words in zip(found, SENTENCES, strict=True):
        cut = {"truncation": True, "max_length": 8, "return_tensors": "pt"}
        encoded = tokenizer([words], is_split_into_words=True, **cut)
        with torch.no_grad():
            best = model(**encoded).logits[0].argmax(-1).tolist()
        ids = encoded.word_ids(0)
        wanted = [NAMES[best[ids.index(word)]] if word in ids else None for word in range(len(words))]
        assert (row["tokens"], row["predicted"]) == (words, wanted)
        assert row["kept"][0] == len(ids)
    assert [label is None for label in found[1]["predicted"]] == [False] * 4 + [True] * 4  # the is three tokens


@pytest.mark.parametrize(
    ("row", "arguments", "told"),
    [
        (
            {"tokens": "zum bem"},
            [],
            r"row 1: column 'tokens' holds 'zum bem', a text that is not divided (.|\n)*\nName the column: text=",
        ),
        ({"tokens": ["zum", ""]}, [], r"row 1: column 'tokens' holds an empty word, '', as word 2 of 2"),
        ({"tokens": []}, [], "1 of 1 rows have no text: row 1"),
        (
            {"tokens": ["zum"]},
            ["out=out.csv"],
            r"out=out.csv, but .* labels the words of texts, .*\n.*\nType out=out.jsonl",
        ),
        ({"tokens": ["zum"]}, ["text_pair=b"], "text_pair=b, but run=.* reads one text per row"),
    ],
)
def test_rows_that_are_no_words_are_refused(tagging, tmp_path, monkeypatch, row, arguments, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new.jsonl").write_text(json.dumps(row))
    with pytest.raises(ConfigError, match=told):
        main([f"run={tagging}", "data=new.jsonl", "out=out.jsonl", *arguments])


@pytest.mark.parametrize("command", [bench, export, serve])
def test_what_reads_whole_texts_or_writes_graphs_refuses_such_a_run(tagging, command):
    with pytest.raises(ConfigError, match=r"run=.* labels the words of texts[;,] .*\nAllowed: a run of classification"):
        command([f"run={tagging}"])
