"""./run: sets the environment up once, and only a finished set-up counts. A stand-in plays python3, venv and pip."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.paths import ROOT

PYTHON = """#!/usr/bin/env bash
case "$*" in
    "-c "*) echo "${STUB_VERSION:-3.11}"; [ "${STUB_VERSION:-3.11}" = 3.11 ] ;;
    --version) echo "Python ${STUB_VERSION:-3.11}.0" ;;
    "-m venv --clear .venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo venv >> log ;;
    "-m pip install "*" --upgrade pip") exit "${STUB_NEWER:-0}" ;;
    "-m pip install "*) sleep 0.2; echo "pip" >> log; exit "${STUB_PIP:-0}" ;;
    "train.py --help") echo help ;;
    *) echo "$PWD|$*|${PYTHONDONTWRITEBYTECODE-unset}|$VIRTUAL_ENV"; exit 3 ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "a project"
    folder.mkdir()
    for name in ("run", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    python = tmp_path / "stub python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return folder


def start(project: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [project / "run", *arguments],
        cwd=project.parent,
        env=os.environ | {"PYTHON": str(project.parent / "stub python"), "PYTHONDONTWRITEBYTECODE": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(project: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    process = start(project, *arguments, **environment)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def steps(project: Path) -> list[str]:
    return (project / "log").read_text().split()


def test_the_first_start_installs_and_the_second_does_not(project: Path):
    code, out, err = run(project, "python", "train.py", "a b")
    assert (code, out) == (3, f"{project}|train.py a b|unset|{project}/.venv\n")
    assert err == "run: setting up .venv, once; this takes about two minutes\n"
    assert run(project, "python", "train.py", "a b") == (3, out, "")
    assert steps(project) == ["venv", "pip"]


@pytest.mark.parametrize("file", ["pyproject.toml", "constraints.txt"])
def test_what_is_installed_follows_the_files(project: Path, file: str):
    run(project)
    with (project / file).open("a") as handle:
        handle.write("# changed\n")
    assert "two minutes" in run(project)[2]
    assert steps(project) == ["venv", "pip"] * 2


def test_a_half_finished_installation_is_done_again(project: Path):
    code, _, err = run(project, STUB_PIP="1")
    assert code == 1
    assert "the packages could not be installed; see pip's message above, then run the same command again." in err
    assert run(project)[:2] == (0, "help\n")
    assert steps(project) == ["venv", "pip"] * 2


def test_where_no_newer_pip_is_to_be_had_the_old_one_installs(project: Path):
    code, out, err = run(project, STUB_NEWER="1")
    assert (code, out) == (0, "help\n")
    assert err.endswith("run: no newer pip was found; the one of Python takes a minute longer\n")
    assert steps(project) == ["venv", "pip"]


@pytest.mark.skipif(shutil.which("flock") is None, reason="without flock two starts are not kept apart")
def test_two_starts_at_once_install_once(project: Path):
    both = [start(project), start(project)]
    assert [process.communicate(timeout=60)[0] for process in both] == ["help\n", "help\n"]
    assert steps(project) == ["venv", "pip"]


def test_an_old_python_is_named(project: Path):
    code, _, err = run(project, STUB_VERSION="3.9")
    assert code == 1
    assert "stub python is Python 3.9, but 3.11 or newer is needed." in err
    assert "PYTHON=/path/to/python3.12 ./run" in err
    assert not (project / ".venv").exists()


def test_a_missing_python_is_named(project: Path):
    code, _, err = run(project, PYTHON="python-nowhere")
    assert (code, err.splitlines()[0]) == (1, "run: python-nowhere is Python <not found>, but 3.11 or newer is needed.")
