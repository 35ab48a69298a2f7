"""Names within the limits of W&B and trackio: cut readably, and still different where they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunekit.loggers.names import join, project_name, run_folder_name, run_group, run_name, run_tags
from prunekit.runs.folder import RunFolder
from prunekit.runs.names import byte_size

LONG = "customer-tickets-of-the-european-support-teams-by-product-and-language-" * 3


def config(task: str, backbone: str = "minilm") -> dict[str, Any]:
    names = {"method": {"name": "top"}, "task": {"name": task}, "backbone": {"name": backbone}}
    return {**names, "budget": "3x", "seed": 1, "runs_dir": "runs"}


def names(task: str, backbone: str = "minilm") -> tuple[str, str, list[str], str]:
    cfg = config(task, backbone)
    folder = RunFolder.of(cfg)
    return run_name(cfg, folder), run_group(cfg), run_tags(cfg, folder), run_folder_name(cfg, folder)


def test_ordinary_names_are_left_as_they_are():
    name, group, tags, folder = names("cola")
    digest = RunFolder.of(config("cola")).hash
    assert (name, tags) == ("top-cola-minilm-3x-s1", ["top", "cola", "minilm", "3x"])
    assert group.startswith("cola/top/minilm/3x/")
    assert folder == f"top-cola-minilm-3x-s1-{digest}"


def test_of_a_long_name_the_long_part_alone_is_cut():
    name, group, tags, folder = names(LONG)
    assert name.startswith("top-customer-tickets-of-the-european-support-teams-by-")
    assert name.endswith("-minilm-3x-s1")
    assert tags[1].startswith("customer-tickets-of-the-european-support-teams-by-")
    assert [len(name), len(group), len(tags[1]), len(folder)] == [128, 128, 64, 128]
    assert [tags[0], *tags[2:]] == ["top", "minilm", "3x"]


@pytest.mark.parametrize("strange", ["", " ", "a\nb", "x" * 300, "日本語" * 90, "a/b\\c:d", "..", "é" * 64])
def test_every_name_is_within_the_limits_and_can_be_sent(strange: str):
    name, group, tags, folder = names(strange, strange)
    assert 0 < len(name) <= 128
    assert 0 < len(group) <= 128
    assert all(0 < len(tag) <= 64 for tag in tags)
    assert byte_size(folder) <= 128
    assert not set(folder) & set("/\\:")
    for text in (name, group, *tags, folder):
        text.encode()
        assert "\n" not in text
    assert len(names("top")[2]) == len(set(names("top")[2])) == 3  # task and method of one name


def test_names_that_are_cut_stay_different():
    assert names(LONG + "a")[0] != names(LONG + "b")[0]
    assert names(LONG + "a")[2] != names(LONG + "b")[2]
    assert len({project_name(name) for name in ("a/b", "a:b", "a-b", "a" * 129, "a" * 130)}) == 5


def test_of_two_long_parts_both_are_cut():
    joined = join(["top", "x" * 200, "y" * 200], "-", 40)
    assert joined == "top-xxxxxxxx-aa20c23e-yyyyyyyy-8ca9bfd4"


def test_a_project_has_what_wandb_admits():
    assert project_name("prunekit") == "prunekit"
    assert project_name("team/tickets: 50%?").startswith("team-tickets- 50")
    assert len(project_name("p" * 200)) == 128


def test_a_folder_of_a_run_has_a_name_that_file_systems_admit(tmp_path: Path):
    folder = RunFolder.of(config("日本語" * 90) | {"runs_dir": str(tmp_path)})
    folder.path.mkdir(parents=True)
    assert folder.path.relative_to(tmp_path).parts[0].startswith("日本語日本語")
    assert RunFolder.of(config("t" * 255)).path.parts[1] == "t" * 255
