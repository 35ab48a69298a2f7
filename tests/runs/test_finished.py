"""A finished run finds its own data again, and says where it is not what the run read."""

import json
import shutil

import pytest
import yaml
from support.exported import PRUNERS, stored_run

from prunekit.cli import bench, export
from prunekit.config.errors import ConfigError
from prunekit.runs import finished
from prunekit.runs.finished import open_run
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import canonical

ROWS = "text,label\n" + "".join(
    f"the film was {('good', 'very bad')[n % 2]} number {n},{('red', 'green')[n % 2]}\n" for n in range(40)
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A run that was trained from the folder `there` on a file of its own, named by a relative path."""
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(there)
    (there / "tickets.csv").write_text(ROWS)
    run = stored_run(there, "topk", PRUNERS["topk"]())
    cfg = yaml.safe_load((run / "config.yaml").read_text())
    cfg["task"] |= {"file": "tickets.csv", "synthetic_rows": None, "max_length": 32}
    cfg["data"]["eval_rows"] = None
    own = canonical(cfg)
    RunFolder(run, "").prepare(own, "python train.py")
    fingerprint = open_run(run).data().fingerprint
    RunFolder(run, "").update_manifest({"data_fingerprint": fingerprint})
    return there


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(finished, "say", lines.append)
    return lines


def test_a_relative_path_is_found_from_any_folder(place, said, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "tickets.csv").write_text("text,label\nanother file,red\n")
    assert len(open_run(place / "run").data().split("train")) == 36
    assert said == []


def test_a_file_that_moved_is_refused_with_what_to_type_and_found_where_it_is_said_to_be(place, said, tmp_path):
    shutil.move(place / "tickets.csv", tmp_path / "moved.csv")
    message = f"(?s){place / 'tickets.csv'}, which the run read as task.file, does not exist.*Give data=<its new path>"
    with pytest.raises(ConfigError, match=message):
        open_run(place / "run").data()
    assert len(open_run(place / "run").data(tmp_path / "moved.csv").split("train")) == 36
    assert said == []
    (tmp_path / "folder").mkdir()
    shutil.move(tmp_path / "moved.csv", tmp_path / "folder" / "tickets.csv")
    assert len(open_run(place / "run").data(tmp_path / "folder").split("train")) == 36


def test_a_file_that_changed_is_said(place, said):
    (place / "tickets.csv").write_text(ROWS.replace("number 7", "number 77"))
    open_run(place / "run").data()
    where = place / "tickets.csv"
    assert said == [f"data       {where} is not what the run read: it has changed, and so may all numbers."]


def test_rows_that_are_read_in_another_way_are_said(place, said):
    RunFolder(place / "run", "").update_manifest({"data_fingerprint": "0" * 64})
    open_run(place / "run").data()
    where = place / "tickets.csv"
    assert said == [f"data       {where} gives other rows or tokens than the run read, and so may all numbers."]


def test_a_task_without_own_files_takes_no_data(tmp_path):
    run = stored_run(tmp_path, "topk", PRUNERS["topk"]())
    with pytest.raises(ConfigError, match=r"data=x: task=synthetic reads no file of your own"):
        open_run(run).data("x")


def test_a_copy_of_the_model_needs_no_data_and_a_graph_does(place, capsys):
    (place / "tickets.csv").unlink()
    run = place / "run"
    assert export.main([f"run={run}", "format=hf"]) == 0
    assert (run / "hf" / "model.safetensors").is_file()
    assert "not compared with the model" in capsys.readouterr().out
    assert json.loads((run / "hf" / "parity.json").read_text())["variants"] == {}
    with pytest.raises(ConfigError, match="Give data=<its new path>"):
        export.main([f"run={run}"])
    with pytest.raises(ConfigError, match="Give data=<its new path>"):
        bench.main([f"run={run}"])
    with pytest.raises(ConfigError, match=r"nowhere\.csv, which the run read"):
        bench.main([f"run={run}", "data=nowhere.csv"])
