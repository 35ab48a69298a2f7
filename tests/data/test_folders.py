"""A folder is looked at before what is in it is read."""

import os

import pytest

from prunekit.config.errors import ConfigError
from prunekit.data import folders
from prunekit.data.errors import DataError
from prunekit.data.folders import data_files
from prunekit.data.sources import own_files_digest
from prunekit.data.spec import TaskSpec
from prunekit.data.tables import read_table


def test_the_files_of_a_folder_are_listed_in_order(tmp_path):
    for name in ("b.csv", "a/2.txt", "a/1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [str(path.relative_to(tmp_path)) for path in data_files(tmp_path)] == ["a/1.txt", "a/2.txt", "b.csv"]


def test_too_many_files_and_too_much_that_is_no_data_are_refused_unread(tmp_path, monkeypatch):
    for number in range(3):
        (tmp_path / f"{number}.csv").write_text("x")
    monkeypatch.setattr(folders, "MOST_FILES", 2)
    with pytest.raises(DataError, match=r"holds more than 2 files, so it is no folder of data"):
        data_files(tmp_path)
    monkeypatch.setattr(folders, "MOST_FILES", 20)
    with (tmp_path / "video.mkv").open("wb") as stream:
        stream.truncate(5 << 30)  # of which nothing is on disk
    with pytest.raises(ConfigError, match=r"holds more than 1 GB in other files, as video\.mkv"):
        own_files_digest(TaskSpec("n", file=str(tmp_path)))


def test_what_is_no_file_is_not_opened(tmp_path):
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(DataError, match=r"t\.csv is no file"):
        read_table(tmp_path / "t.csv")


def test_a_part_that_cannot_be_read_is_refused_and_not_left_out(tmp_path, monkeypatch):
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("a text")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("bad"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"bad cannot be read \(Permission denied\)"):
        data_files(tmp_path)
