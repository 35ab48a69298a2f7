import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from support.run_result import RESULT, changed

from prunekit import environment, files
from prunekit.config.identity import config_hash
from prunekit.files import append_jsonl, atomic_write_bytes, atomic_write_text, read_jsonl, write_jsonl
from prunekit.runs.folder import RunFolder


def config(runs_dir, **changes):
    base = {
        "method": {"name": "top"},
        "task": {"name": "cola"},
        "backbone": {"name": "minilm"},
        "budget": "3x",
        "seed": 1,
        "runs_dir": str(runs_dir),
        "force": False,
    }
    return base | changes


# -- the path ----------------------------------------------------------------------------------------


def test_the_folder_says_task_method_backbone_budget_seed_and_hash(tmp_path):
    cfg = config(tmp_path)
    folder = RunFolder.of(cfg)
    assert folder.path == tmp_path / "cola/top/minilm/3x" / f"s1-{config_hash(cfg)}"
    assert folder.hash == config_hash(cfg)
    assert not folder.path.exists()  # asking where it lies makes nothing


def test_another_seed_is_another_folder_and_another_place_is_the_same_run(tmp_path):
    here = RunFolder.of(config(tmp_path))
    assert RunFolder.of(config(tmp_path, seed=2)).hash != here.hash
    assert RunFolder.of(config(tmp_path / "elsewhere", force=True)).hash == here.hash


@pytest.mark.parametrize(
    ("budget", "method", "label"),
    [("3x", "top", "3x"), (0.4, "top", "2.5x"), (None, "top", "own"), (None, "dense", "dense")],
)
def test_the_budget_is_a_part_of_the_path(tmp_path, budget, method, label):
    path = RunFolder.of(config(tmp_path, budget=budget, method={"name": method})).path
    assert path.parent.name == label


def test_a_name_with_a_slash_or_a_blank_stays_one_folder(tmp_path):
    path = RunFolder.of(config(tmp_path, task={"name": "../my tickets/2024"})).path
    assert path.relative_to(tmp_path).parts[0] == "my-tickets-2024"


# -- writing -----------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "new" / "result.json"
    atomic_write_text(path, "old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write_bytes(path, b"new and longer")
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


def test_a_kill_between_writing_and_renaming_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    script = (
        "import os, signal, sys; from prunekit import files\n"
        "files.os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.atomic_write_text(sys.argv[1], 'new')"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_rows_come_back_as_they_were_appended(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    assert read_jsonl(path) == []
    append_jsonl(path, {"step": 1, "name": "größer"})
    append_jsonl(path, {"step": 2, "loss": 0.5})
    assert read_jsonl(path) == [{"step": 1, "name": "größer"}, {"step": 2, "loss": 0.5}]


def test_a_torn_last_line_is_left_out_and_cut_off_by_the_next_append(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_jsonl(path) == [{"step": 1}]
    append_jsonl(path, {"step": 3})
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'


def test_a_file_that_is_one_torn_line_starts_afresh(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "lo')
    append_jsonl(path, {"step": 1})
    assert path.read_text() == '{"step": 1}\n'


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n[1, 2]\n{"step": 3}\n')
    with pytest.raises(
        ValueError, match=r"metrics\.jsonl, line 2 is '\[1, 2\]', but each line must be one JSON object"
    ):
        read_jsonl(path)


def test_nan_and_infinity_become_null_so_that_every_reader_understands_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, {"loss": float("nan"), "rate": float("inf"), "parts": [1.5, float("-inf")]})
    assert path.read_text() == '{"loss": null, "rate": null, "parts": [1.5, null]}\n'
    write_jsonl(path, [{"loss": float("nan")}])
    assert path.read_text() == '{"loss": null}\n'


# -- the manifest ------------------------------------------------------------------------------------


def test_prepare_writes_the_configuration_and_what_it_runs_on(tmp_path):
    import yaml

    cfg = config(tmp_path)
    folder = RunFolder.of(cfg)
    folder.prepare(cfg, "python train.py method=top")
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == cfg
    manifest = folder.manifest()
    assert manifest["command"] == "python train.py method=top"
    assert manifest["hash"] == folder.hash
    assert manifest["versions"]["torch"][0].isdigit()
    assert manifest["python"] == ".".join(map(str, sys.version_info[:3]))
    assert manifest["cpu"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", manifest["started"])
    assert manifest["resumed"] == []


def test_what_is_learned_later_is_added_and_survives_a_second_start(tmp_path):
    cfg = config(tmp_path)
    folder = RunFolder.of(cfg)
    folder.prepare(cfg, "first")
    folder.update_manifest({"data_fingerprint": "abc", "weights_sha256": "def"})
    started = folder.manifest()["started"]
    folder.prepare(cfg, "second")
    manifest = folder.manifest()
    assert (manifest["data_fingerprint"], manifest["weights_sha256"]) == ("abc", "def")
    assert (manifest["started"], len(manifest["resumed"]), manifest["command"]) == (started, 1, "second")


def test_force_forgets_the_result_and_the_checkpoints(tmp_path):
    folder = RunFolder.of(config(tmp_path))
    folder.prepare(config(tmp_path), "first")
    folder.write_result(RESULT)
    folder.checkpoints.mkdir()
    (folder.checkpoints / "last.ckpt").touch()
    append_jsonl(folder.metrics, {"step": 1})
    folder.prepare(config(tmp_path, force=True), "again")
    assert folder.result() is None
    assert not folder.checkpoints.exists()
    assert not folder.metrics.exists()
    assert folder.manifest()["resumed"] == []


def test_force_goes_on_where_a_run_without_a_result_was_interrupted(tmp_path):
    folder = RunFolder.of(config(tmp_path))
    folder.prepare(config(tmp_path, force=True), "first")
    folder.checkpoints.mkdir()
    (folder.checkpoints / "last.ckpt").touch()
    folder.prepare(config(tmp_path, force=True), "again")
    assert (folder.checkpoints / "last.ckpt").exists()
    assert len(folder.manifest()["resumed"]) == 1


def test_git_state_is_the_commit_and_whether_tracked_files_changed(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    source = tmp_path / "environment.py"
    source.write_text("a = 1\n")
    assert environment.git_state(tmp_path) is None  # a checkout that does not hold the code
    git("add", "environment.py")
    git("commit", "-qm", "first")
    (tmp_path / "untracked.txt").touch()
    assert environment.git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    source.write_text("a = 2\n")
    assert environment.git_state(tmp_path)["dirty"] is True


# -- the result --------------------------------------------------------------------------------------


def test_a_result_is_there_when_it_was_written_and_not_before(tmp_path):
    folder = RunFolder.of(config(tmp_path))
    assert folder.read_result() == (None, None)
    folder.write_result(RESULT)
    assert folder.result() == RESULT
    folder.write_result(changed(status="budget_missed", exit_code=3))
    assert folder.result().exit_code == 3


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"schema": 1, "status": "do', "is not readable as JSON (Unterminated string"),
        ("", "is not readable as JSON (Expecting value"),
        ("[1]", "holds a list instead of an object"),
        ('{"schema": 0, "status": "done"}', "has schema 0, this prunekit writes 1"),
        ('{"status": "done"}', "has schema None, this prunekit writes 1"),
        ('{"schema": 1, "status": "running"}', "has status 'running', finished runs have done or budget_missed"),
        ('{"schema": 1, "status": "done"}', "lacks 'exit_code': an older prunekit wrote it"),
    ],
)
def test_a_result_that_does_not_count_is_no_result_and_says_why(tmp_path, content, problem, capsys):
    cfg = config(tmp_path)
    folder = RunFolder.of(cfg)
    path = folder.path / "result.json"
    atomic_write_text(path, content)
    result, said = folder.read_result()
    assert result is None
    assert folder.result() is None
    assert said.startswith(f"{path} {problem}")
    assert said.endswith("the run counts as not done and is finished now.")
    folder.prepare(cfg, "again")
    assert capsys.readouterr().err == said + "\n"


def test_bytes_that_are_no_text_are_no_result(tmp_path):
    folder = RunFolder.of(config(tmp_path))
    atomic_write_bytes(folder.path / "result.json", b"\xff\xfe\x00")
    assert "is not readable as JSON ('utf-8' codec can't decode byte 0xff" in folder.read_result()[1]


def test_a_result_of_a_newer_prunekit_is_not_overwritten(tmp_path):
    folder = RunFolder.of(config(tmp_path))
    folder.write_result(changed(schema=2))
    with pytest.raises(ValueError, match=r"result\.json has schema 2, this prunekit reads up to 1; upgrade prunekit"):
        folder.result()


def test_a_result_with_a_number_that_json_does_not_know_is_refused_whole(tmp_path):
    folder = RunFolder.of(config(tmp_path))
    folder.write_result(RESULT)
    with pytest.raises(TypeError, match="not JSON serializable"):
        folder.write_result(changed(remark={1.0}))
    assert folder.result() == RESULT


# -- the lock ----------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from prunekit.runs.folder import RunFolder
with RunFolder(Path(sys.argv[1]), "00000000").lock():
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def holder(tmp_path):
    started = []

    def start(seconds):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), str(seconds)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_process_is_told_who_holds_the_run(tmp_path, holder, capsys):
    process = holder(60)
    host = os.uname().nodename
    with (
        pytest.raises(
            TimeoutError, match=rf"is still held by process {process.pid} on {host} \(since .*\) after 0\.2 s"
        ),
        RunFolder(tmp_path, "00000000").lock(timeout=0.2),
    ):
        pass
    said = capsys.readouterr().err
    assert f"{tmp_path} is being run by process {process.pid} on {host}" in said
    assert said.endswith("waiting for it.\n")


def test_a_second_process_waits_until_the_first_is_done(tmp_path, holder):
    process = holder(0.5)
    with RunFolder(tmp_path, "00000000").lock():
        assert process.wait(timeout=30) == 0
        owner = json.loads((tmp_path / ".lock.owner").read_text())
        assert owner["pid"] == os.getpid()
        assert abs(owner["since"] - time.time()) < 60
    assert not (tmp_path / ".lock.owner").exists()


def test_a_killed_process_holds_nothing(tmp_path, holder):
    process = holder(60)
    process.kill()
    process.wait()
    with RunFolder(tmp_path, "00000000").lock(timeout=0):
        pass


def test_a_holder_that_left_no_name_is_another_process(tmp_path, holder):
    holder(60)
    (tmp_path / ".lock.owner").write_text("")
    with pytest.raises(TimeoutError, match="still held by another process after 0 s"), RunFolder(tmp_path, "0").lock(0):
        pass


def test_runs_are_found_without_importing_torch():
    code = (
        "import sys, prunekit.runs.folder, prunekit.environment, prunekit.files\n"
        "prunekit.environment.environment()\n"
        "heavy = {'torch', 'lightning', 'transformers', 'datasets', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
