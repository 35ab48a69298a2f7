"""The packages of docs/add_a_method.md and of its part two, built, installed, trained, and tested by the suite."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from support.paths import ROOT
from support.plugins import write_metadata

from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.config.validation import validate
from prunekit.conformance import MethodConformance

PAGE = (ROOT / "docs" / "add_a_method.md").read_text(encoding="utf-8")
# a block belongs to the path that the paragraph above it begins with
BLOCK = re.compile(r"^`([\w./]+)` (?:[^\n]+\n)+\n```(?:toml|yaml|python)\n(.*?)```", re.MULTILINE | re.DOTALL)
FILES = dict(BLOCK.findall(PAGE))
LEARNED_PAGE = (ROOT / "docs" / "add_a_learned_method.md").read_text(encoding="utf-8")
LEARNED = dict(BLOCK.findall(LEARNED_PAGE))
TINY = (
    "task=synthetic",
    "task.synthetic_rows=32",
    "backbone=tiny",
    "trainer=debug",
    "plots=false",
    "trainer.epochs=1",
    "teacher.epochs=1",
    "logger.wandb.enabled=false",
    "bench.enabled=false",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which the page's package was installed, apart from its source."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for path, text in FILES.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(text)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    install = [sys.executable, "-m", "pip", "install", *options, "--target", site, source]
    subprocess.run(install, check=True, capture_output=True)
    return site


def run(site, folder, *command):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_the_whole_package():
    method, keys = "prunekit_entropy/__init__.py", "prunekit_entropy/conf/method/entropy.yaml"
    assert set(FILES) == {"pyproject.toml", keys, method, "test_entropy.py"}
    assert len([line for line in FILES[method].splitlines() if line]) <= 25


def test_an_installed_method_is_found_and_its_keys_are_checked(site, monkeypatch):
    monkeypatch.syspath_prepend(str(site))
    validate(*compose(["method=entropy", "budget=null"]))
    with pytest.raises(ConfigError, match=r"method\.keep=1\.5 is out of range"):
        validate(*compose(["method=entropy", "budget=null", "method.keep=1.5"]))
    with pytest.raises(ConfigError, match=r"budget=3x and method\.keep=0\.5 both say how much to prune"):
        validate(*compose(["method=entropy"]))


@pytest.mark.slow
def test_the_page_s_command_trains_it_with_tokens_removed(site, tmp_path):
    (line,) = re.findall(r"^python (train\.py method=entropy.*)$", PAGE, re.M)
    given = [word for word in shlex.split(line)[1:] if not word.startswith("task=")]
    places = [f"runs_dir={tmp_path / 'runs'}", f"data.cache_dir={tmp_path / 'cache'}"]
    shown = run(site, tmp_path, sys.executable, ROOT / "train.py", *given, *TINY, *places)
    assert "entropy on synthetic" in shown
    (settings,) = (tmp_path / "runs").glob("synthetic/entropy/tiny/own/*/model/prunekit.json")
    assert '"prunekit_entropy.Focus"' in settings.read_text()


@pytest.mark.slow
def test_the_page_s_test_passes(site, tmp_path):
    (tmp_path / "test_entropy.py").write_text(FILES["test_entropy.py"])
    shown = run(site, tmp_path, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_entropy.py")
    assert re.search(r"\b12 passed", shown), shown


# -- part two: a learned method ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The package of part two, found as an installed one is."""
    folder = tmp_path_factory.mktemp("learned")
    for path, text in LEARNED.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    write_metadata(folder, "prunekit-shares", "shares", "prunekit_shares")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


def test_part_two_has_the_whole_package():
    method, keys = "prunekit_shares/__init__.py", "prunekit_shares/conf/method/shares.yaml"
    assert set(LEARNED) == {"pyproject.toml", keys, method, "test_shares.py"}
    assert 'overrides = ("method=shares",)' in LEARNED["test_shares.py"]


@pytest.mark.slow
@pytest.mark.usefixtures("learned")
def test_a_learned_method_is_trained_in_two_stages_and_meets_its_budget(tmp_path, capsys):
    from prunekit.pipelines.run import run as run_once  # torch, which a check of configurations does without

    given = [word for word in TINY if word != "trainer.epochs=1"]
    given += ["trainer.epochs=2", f"runs_dir={tmp_path / 'runs'}", f"data.cache_dir={tmp_path / 'cache'}"]
    cfg, choices = compose(
        ["method=shares", "method.hard_fraction=0.25", "budget=1.5x", "budget_tolerance=0.08", *given]
    )
    validate(cfg, choices)
    result = run_once(cfg)
    assert (result.budget.met, result.exit_code) == (True, 0)
    shown = capsys.readouterr().out
    assert "calibrate  shares shifted by" in shown
    (metrics,) = (tmp_path / "runs").glob("synthetic/shares/*/*/*/metrics.jsonl")
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert any("train/budget" in step for step in steps)


@pytest.mark.slow
@pytest.mark.usefixtures("learned")
class TestLearned(MethodConformance):
    overrides = ("method=shares",)
