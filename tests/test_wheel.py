"""The wheel: configurations travel in it, and the installed command works from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the built wheel was installed, without its dependencies."""
    built, site = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("site")
    quiet = {"check": True, "capture_output": True, "cwd": ROOT}
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", built], **quiet)
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(pip, **quiet)
    return site


def installed(site: Path, folder: Path, *command: str | Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_configuration_and_sweep_is_in_the_wheel(site: Path):
    for name in ("conf", "sweeps"):
        here = {file.relative_to(ROOT / name) for file in (ROOT / name).rglob("*") if file.is_file()}
        there = {file.relative_to(site / "prunekit" / name) for file in (site / "prunekit" / name).rglob("*.*")}
        assert there == here


def test_the_page_of_reports_is_in_the_wheel(site: Path):
    for name in ("page.html", "page.css", "page.js"):
        assert list(site.rglob(f"prunekit/report/page/{name}")), name


def test_the_settings_of_other_commands_are_in_the_wheel(site: Path):
    for name in ("table", "report", "dashboard", "export", "bench", "serve"):
        assert list(site.rglob(f"prunekit/cli/{name}.yaml")), name


def test_the_source_of_native_attention_is_in_the_wheel(site: Path):
    for name in ("attention.cpp", "int8.cpp", "vectors.hpp"):
        assert (site / "prunekit" / "runtime" / "kernels" / name).is_file()


def test_the_console_script_answers_from_any_folder(site: Path, tmp_path: Path):
    script = site / "bin" / "prunekit"
    assert "name: cola" in installed(site, tmp_path, script, "train", "experiment=top_cola", "--cfg", "job")
    assert installed(site, tmp_path, script, "--version").startswith("prunekit ")
    assert list(tmp_path.iterdir()) == []


def test_the_installed_package_reads_its_own_configurations(site: Path, tmp_path: Path):
    code = (
        "from prunekit.config.composition import compose\nfrom prunekit.config.validation import validate\n"
        "from prunekit.config.search_path import conf_dir, sweeps_dir\n"
        "validate(*compose([])); print(conf_dir(), sweeps_dir())"
    )
    folder = site / "prunekit"
    assert installed(site, tmp_path, sys.executable, "-c", code) == f"{folder / 'conf'} {folder / 'sweeps'}\n"
