"""Folders of the user: the cache, where it may be, and how much room there is."""

from __future__ import annotations

import os

import pytest

from prunekit.config.places import cache_folder, free_space, why_unwritable


def test_the_cache_folder_follows_the_environment(tmp_path):
    assert cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "prunekit"


@pytest.mark.parametrize("home", ["/dev/null", "/proc/1/nowhere"])
def test_a_home_that_cannot_be_written_gives_way_to_the_folder_for_temporary_files(tmp_path, monkeypatch, home):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / f"prunekit-{os.getuid()}"
    assert cache_folder({"XDG_CACHE_HOME": str(tmp_path / "own")}) == tmp_path / "own" / "prunekit"


def test_a_folder_that_cannot_be_written_says_why(tmp_path):
    assert why_unwritable(tmp_path / "new" / "folder") is None
    (tmp_path / "file").write_text("")
    assert why_unwritable(tmp_path / "file" / "below") == "Not a directory"


def test_the_room_is_that_of_the_nearest_folder_that_is_there(tmp_path):
    assert free_space(tmp_path / "not" / "there").endswith("B free")
