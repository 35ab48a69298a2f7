"""A run is named by what its files hold, not by where they are."""

import pytest

from prunekit.config.composition import compose
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import canonical, teacher_config

ROWS = "text,label\na,x\nb,y\n"


@pytest.fixture
def named(tmp_path, monkeypatch):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.csv").write_text(ROWS)
    (tmp_path / "there" / "t.csv").rename(tmp_path / "there" / "copy.csv")
    monkeypatch.chdir(tmp_path / "here")

    def of(file, *typed):
        cfg = canonical(compose(["method=topk", "task=csv", f"task.file={file}", *typed])[0])
        return RunFolder.of(cfg).path, RunFolder.of(teacher_config(cfg)).path, cfg["task"]["file"]

    return of


def test_one_file_is_one_run_and_one_teacher_however_its_path_is_spelt(named, tmp_path):
    folder, teacher, path = named("t.csv")
    assert path == str(tmp_path / "here/t.csv")
    for spelling in ("./t.csv", "../here/t.csv", tmp_path / "here/t.csv", "../there/copy.csv"):
        assert named(spelling)[:2] == (folder, teacher), spelling


def test_another_content_role_or_format_is_another_run(named, tmp_path):
    other = {
        named("t.csv")[0],
        named("t.csv", "task.validation_file=t.csv")[0],
        named("t.csv", "task.test_file=t.csv")[0],
    }
    (tmp_path / "here/t.csv").rename(tmp_path / "here/t.tsv")
    other.add(named("t.tsv")[0])
    (tmp_path / "here/t.tsv").write_text(ROWS + "c,x\n")
    other.add(named("t.tsv")[0])
    assert len(other) == 5


def test_a_folder_is_its_files_and_their_places(named, tmp_path):
    folder, _, _ = named("../here", "task.validation_splits=[]")
    assert named(tmp_path / "here", "task.validation_splits=[]")[0] == folder
    (tmp_path / "here/t.csv").rename(tmp_path / "here/train.csv")
    assert named("../here", "task.validation_splits=[]")[0] != folder


def test_generated_rows_have_no_files(named):
    assert named("t.csv", "task.synthetic_rows=32")[0] != named("t.csv")[0]
