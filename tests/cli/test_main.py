"""The command line: what it answers, what it exits with, and what it leaves behind."""

from __future__ import annotations

import io
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from support.bench_result import RESULT
from support.paths import ROOT
from support.stored_runs import result, store

from prunekit import __version__
from prunekit.cli.main import VERBS, main
from prunekit.config import search_path
from prunekit.config.keys import read_keys

# the training, replaced by something whose outcome hangs on the seed
STUB = """
import sys
from prunekit.config.errors import ConfigError

def train(cfg):
    if cfg["seed"] == 3:
        return 3
    if cfg["seed"] == 4:
        raise ConfigError("budget=99x cannot be met.\\nAllowed: 1x..5.2x.\\nAsk for less.")
    if cfg["seed"] == 9:
        raise KeyboardInterrupt
    if cfg["seed"] == 13:
        raise RuntimeError("the roof is on fire")
    print("trained", cfg["method"]["name"], cfg["seed"])
    return 0
"""
DRIVER = (
    STUB + "\nimport prunekit.pipelines.run\nprunekit.pipelines.run.train = train\n"
    "from prunekit.cli.main import main\nmain()\n"
)


def shell(*arguments: str, folder: Path, driver: str = DRIVER) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", driver, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Types a command in an empty folder, in this process; returns exit code, stdout and stderr."""
    stub: dict[str, Any] = {}
    exec(STUB, stub)
    monkeypatch.setattr("prunekit.pipelines.run.train", stub["train"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["prunekit"])
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


# -- answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags", [[], ["--help"], *([verb, "--help"] for verb in VERBS), ["--cfg", "job"], ["--version"]], ids=" ".join
)
def test_a_question_is_answered_without_torch_and_leaves_nothing_behind(flags: list[str], tmp_path: Path):
    heavy = "{'torch', 'lightning', 'transformers', 'datasets', 'pandas'} & set(sys.modules)"
    driver = f"import sys, atexit\natexit.register(lambda: print('heavy:', {heavy}))\n"
    driver += "from prunekit.cli.main import main\nmain()\n"
    answer = shell(*flags, folder=tmp_path, driver=driver)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.endswith("heavy: set()\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job"]], ids=" ".join)
def test_train_py_answers_in_under_a_second(flags: list[str], tmp_path: Path):
    def seconds() -> float:
        """CPU time of the process: on a busy machine the clock on the wall says who else is there."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, ROOT / "train.py", *flags], cwd=tmp_path, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 1.0


def test_help_names_every_verb_with_a_line_about_it(typed):
    code, out, err = typed()
    assert (code, err) == (0, "")
    assert out == typed("--help")[1] == typed("help")[1]
    for verb in VERBS:
        (line,) = [line for line in out.splitlines() if line.startswith(f"  {verb} ")]
        assert re.fullmatch(r"  [a-z]+ +[a-z].{20,}\.", line), line
    assert "0 done, 3 budget or goal missed, 4 bad configuration, 130 interrupted" in out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, typed):
    code, out, err = typed(verb, "--help")
    assert (code, err) == (0, "")
    assert re.match(rf"(# )?prunekit {verb}: [a-z]", out)
    assert out == typed(verb, "-h")[1] == typed(verb, "help")[1]


def test_every_setting_of_a_verb_is_checked_by_its_comment():
    """A key whose comment names no domain would be unknown."""
    for verb in set(VERBS) - {"train"}:
        file = ROOT / "prunekit" / "cli" / f"{verb}.yaml"
        assert read_keys(file).keys() == yaml.safe_load(file.read_text()).keys()


def test_help_shows_groups_examples_and_exit_codes(typed):
    code, out, _ = typed("train", "--help")
    assert code == 0
    (methods,) = [line for line in out.splitlines() if line.startswith("method: ")]
    assert {"dense,", "dpruner,", "first,", "ltp,", "top,"} <= set(methods.split())
    assert "python train.py experiment=top_cola" in out
    assert "--config-dir" in out
    assert "0 done, 3 budget or goal missed, 4 bad configuration, 130 interrupted" in out


def test_cfg_job_prints_what_would_run(typed):
    code, out, _ = typed("--cfg", "job", "method=top", "task=cola", "method.bins=7")
    assert code == 0
    assert "bins: 7" in out
    assert "hydra" not in out


def test_version(typed):
    assert typed("--version") == typed("train", "--version") == (0, f"prunekit {__version__}\n", "")


def test_python_runs_the_package_as_the_script_does(tmp_path: Path):
    def started(*words: str) -> str:
        command = [sys.executable, *words]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout

    assert started("-m", "prunekit").startswith("prunekit: train, compare and deploy")
    main_job = started("-m", "prunekit", "train", "--cfg", "job")
    assert "name: bbc_news" in main_job
    assert started(str(ROOT / "train.py"), "--cfg", "job") == main_job


# -- verbs -------------------------------------------------------------------------------------------


def test_the_verb_train_may_be_left_out(typed):
    assert typed("train", "method=dense", "seed=2") == typed("method=dense", "seed=2") == (0, "trained dense 2\n", "")


@pytest.mark.parametrize(
    ("word", "near"),
    [("tabel", "table"), ("Bench", "bench"), ("re-port", "report"), ("exports", "export"), ("predic", "predict")],
)
def test_a_word_that_is_nearly_a_verb_is_told_the_verb(word, near, typed):
    code, out, err = typed(word)
    assert (code, out) == (4, "")
    assert err.splitlines()[0] == f"{word} is not a command."
    assert err.splitlines()[2] == f"Did you mean {near}?"


@pytest.mark.parametrize("verb", VERBS)
def test_help_for_a_verb_may_be_asked_for_in_either_order(verb, typed):
    assert typed("help", verb) == typed(verb, "--help")


def test_an_unknown_verb_is_named(typed):
    code, _, err = typed("trian", "seed=2")
    assert code == 4
    assert err == f"trian is not a command.\nAllowed: {', '.join(VERBS)}.\nDid you mean train?\n"


def test_a_verb_is_a_function_that_takes_arguments_and_returns_an_exit_code(typed, monkeypatch: pytest.MonkeyPatch):
    later = ModuleType("prunekit_later")
    later.bench = lambda arguments: len(arguments)
    monkeypatch.setitem(sys.modules, "prunekit_later", later)
    monkeypatch.setitem(VERBS, "bench", "prunekit_later:bench")
    assert typed("bench", "a", "b")[0] == 2


# -- exit codes of one run ---------------------------------------------------------------------------


def test_a_missed_target_is_3(typed):
    assert typed("seed=3") == (3, "", "")


def test_an_interruption_is_130_and_says_how_to_go_on(typed):
    code, _, err = typed("seed=9")
    assert code == 130
    assert err == "interrupted; the same command resumes from the last checkpoint.\n"


def test_a_crash_is_1_and_keeps_its_traceback(typed):
    code, _, err = typed("seed=13")
    assert code == 1
    assert err.startswith("Traceback")
    assert err.endswith("RuntimeError: the roof is on fire\n")


@pytest.mark.parametrize(
    ("override", "given"),
    [
        ("seed=4", "budget=99x cannot be met."),  # found by the run itself
        ("method.bins=0", "method.bins=0 is out of range."),
        ("method.binz=3", "method.binz=3: there is no key method.binz."),
        ("method=topp", "method=topp does not exist."),
        ("task=imdb", "task=imdb does not exist."),
        ("sweeps=nothing", "sweeps=nothing does not exist."),
        ("method=[", "method=[ cannot be read."),
        ("seed=1,2", "Ambiguous value for argument 'seed=1,2'."),
        ("--seed=2", "unrecognized arguments: --seed=2."),
        ("--config-name=other", "--config-name=other does not exist."),
        ("method.bins=???", "method.bins is not given and has no default."),
    ],
)
def test_a_bad_configuration_is_4_in_three_lines_without_traceback(override: str, given: str, typed):
    code, out, err = typed(override)
    assert (code, out) == (4, "")
    assert err.splitlines()[0] == given
    assert len(err.splitlines()) <= 3


def test_a_single_run_leaves_nothing_of_hydra_s_behind(typed, tmp_path: Path):
    assert typed("seed=2")[0] == 0
    assert list(tmp_path.iterdir()) == []


# -- other places ------------------------------------------------------------------------------------


def test_configurations_of_one_s_own_are_checked_like_the_shipped_ones(tmp_path: Path):
    (tmp_path / "own" / "trainer").mkdir(parents=True)
    (tmp_path / "own" / "trainer" / "slow.yaml").write_text("defaults: [default]\nepochs: 9\n")
    assert shell("--config-dir", "own", "trainer=slow", folder=tmp_path).stdout == "trained top 1\n"
    (tmp_path / "own" / "trainer" / "slow.yaml").write_text("defaults: [default]\nepochs: -1\n")
    answer = shell("--config-dir", "own", "trainer=slow", folder=tmp_path)
    assert (answer.returncode, answer.stderr.splitlines()[0]) == (4, "trainer.epochs=-1 is out of range.")


def test_configurations_are_found_beside_the_package_or_in_it():
    assert search_path.conf_dir() == ROOT / "conf"
    assert search_path.sweeps_dir() == ROOT / "sweeps"
    assert os.path.isabs(search_path.conf_dir())


def test_an_output_that_knows_ascii_alone_gets_question_marks(tmp_path, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    store(tmp_path / "runs", result("topk", "2x", 1, 0.5))
    store(tmp_path / "runs", result("topk", "2x", 2, 0.6))
    with pytest.raises(SystemExit) as ended:
        main(["table", str(tmp_path / "runs")])
    stream.flush()
    assert ended.value.code == 0
    assert b"55.00 ? 63.53" in stream.buffer.getvalue()


def test_a_command_to_type_again_quotes_blanks(tmp_path, capsys, monkeypatch):
    from prunekit.cli import bench

    monkeypatch.setattr(bench, "open_labelling", lambda given, *_: given)
    monkeypatch.setattr("prunekit.bench.bench.bench", lambda subject, given: RESULT)
    monkeypatch.setattr("prunekit.bench.subject.load_run", lambda *given: None)
    out = tmp_path / "my timings.json"
    assert bench.main(["run=x", f"out={out}"]) == 0
    assert f"the same again: prunekit bench from='{out}'" in capsys.readouterr().out
