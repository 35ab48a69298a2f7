"""What is looked at before anything starts: data and model of a configuration. A typo leaves no folder behind."""

import sys

import pytest
from support.folders import classifier_folder

from prunekit.cli.main import main
from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.pipelines.run import train
from prunekit.runs.identity import canonical
from prunekit.runs.inputs import cache_of_problems

WORDS = ["backbone=tiny", "method=topk", "task=csv", "task.text=body", "task.label=queue"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with good.csv and bad.csv, of which two rows have no text."""
    rows = [f"ba de {row},{'xy'[row % 2]}" for row in range(40)]
    (tmp_path / "good.csv").write_text("\n".join(["body,queue", *rows]))
    (tmp_path / "bad.csv").write_text("\n".join(["body,queue", *rows[:3], ",x", *rows[3:], "  ,y"]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def composed():
    return compose(WORDS)[0]


@pytest.mark.parametrize(
    ("block", "key", "typo", "said"),
    [
        ("task", "file", "goood.csv", "goood.csv does not exist"),
        ("task", "text", "bdoy", "good.csv has no column 'bdoy'; its columns are body, queue."),
        ("task", "label", "quue", "good.csv has no column 'quue'; its columns are body, queue."),
        (
            "task",
            "labels",
            ["x", "z"],
            "good.csv, row 2: label 'y' (20 such rows, also row 4 and row 6) is not in the set",
        ),
        ("task", "file", "bad.csv", "bad.csv, row 4: the text in column 'body' is empty (2 such rows, also row 42)."),
        ("backbone", "path", "./bert", "backbone.path=./bert is no model: it has no config.json"),
    ],
)
def test_a_typo_is_refused_before_there_is_a_folder(files, composed, block, key, typo, said):
    cfg = composed | {"task": composed["task"] | {"file": "good.csv"}}
    cfg = cfg | {block: cfg[block] | {key: typo}}
    with pytest.raises(ConfigError) as error:
        train(cfg)
    assert said in str(error.value)
    assert sorted(path.name for path in files.iterdir()) == ["bad.csv", "good.csv"]


def test_a_preview_reads_and_checks_the_files_of_every_run(files, monkeypatch, capsys):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["prunekit"])
    fault = "bad.csv, row 4: the text in column 'body' is empty (2 such rows, also row 42)."
    for words, code in ((["task.file=bad.csv"], 4), (["task.file=bad.csv", "task.empty=error,drop"], 0)):
        with pytest.raises(SystemExit) as ended:
            main([*WORDS, *words, "--dry"])
        out, err = capsys.readouterr()
        assert (ended.value.code, fault in err, fault in out) == (code, code == 4, code == 0)
    assert sorted(path.name for path in files.iterdir()) == ["bad.csv", "good.csv"]


def test_a_given_model_is_looked_at_and_not_the_backbone_whose_place_it_takes(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"ba de {row},{row % 2}\n" for row in range(40)))
    model = classifier_folder(tmp_path / "my_model", names=("0", "1"))
    words = ["task=csv", f"task.file={tmp_path / 't.csv'}", f"model={model}", f"data.cache_dir={tmp_path / 'cache'}"]
    assert cache_of_problems()(canonical(compose([*words, "method=topk"])[0])) is None
