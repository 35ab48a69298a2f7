"""What a run leaves is checked when it is read back: damage is repaired or refused by name, and so are full disks."""

import json
import os
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file
from support.damage import flip
from support.paths import visible

from prunekit.config.composition import compose
from prunekit.config.errors import CRASHED, ConfigError
from prunekit.files import read_jsonl
from prunekit.pipelines.run import run, train
from prunekit.pipelines.tokens import pipeline
from prunekit.runs.finished import open_run
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import canonical, teacher_config
from prunekit.runs.storage import StorageError
from prunekit.training.metrics_log import JsonlLogger

SMALL = (
    "task=synthetic",
    "backbone=tiny",
    "trainer=debug",
    "plots=false",
    "task.synthetic_rows=48",
    "method.bins=8",
    "method.hard_fraction=0.5",
    "logger.wandb.enabled=false",
    "bench.enabled=false",
    "teacher.epochs=1",
    "trainer.epochs=1",
    "trainer.max_steps=6",
    "budget=1.5x",
    "budget_tolerance=0.5",
)


def config(folder, *overrides):
    return compose([*SMALL, f"runs_dir={folder / 'runs'}", f"data.cache_dir={folder / 'cache'}", *overrides])[0]


def folders(cfg):
    """The folders of a run and of its teacher, None where the teacher is no run of its own."""
    cfg = canonical(cfg)
    teacher = teacher_config(cfg)
    return RunFolder.of(cfg).path, None if teacher is None else RunFolder.of(teacher).path


def weights(folder):
    return {name: load_file(folder / "model" / name) for name in ("model.safetensors", "prunekit.safetensors")}


def assert_same(first, second):
    for name, tensors in first.items():
        assert all(torch.equal(tensor, second[name][key]) for key, tensor in tensors.items()), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(config(folder))
    return folder


@pytest.fixture
def own(finished, tmp_path):
    """A copy of a finished run with its teacher and caches: its place, its folder and its teacher's."""
    shutil.copytree(finished, tmp_path / "own")
    return tmp_path / "own", *folders(config(tmp_path / "own"))


@pytest.fixture(scope="module")
def trained(finished, tmp_path_factory):
    """A run that was killed after its training, before its test."""
    place = tmp_path_factory.mktemp("trained") / "own"
    shutil.copytree(finished, place)
    shutil.rmtree(folders(config(place))[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "evaluate_models", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config(place))
    return place


def interrupt(*given):
    raise KeyboardInterrupt


# -- checkpoints -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_finished_run_keeps_its_model_and_no_checkpoint(finished):
    left, _ = folders(config(finished))
    assert not (left / "checkpoints").exists()
    assert (left / "model" / "model.safetensors").stat().st_mode & 0o777 == (left / "log").parent.stat().st_mode & 0o666


@pytest.mark.slow
def test_a_key_keeps_the_best_checkpoint_and_changes_no_hash(own):
    place, left, _ = own
    assert folders(config(place, "trainer.keep_checkpoints=true"))[0] == left
    run(config(place, "trainer.keep_checkpoints=true", "force=true"))
    assert visible(left / "checkpoints") in (["best.ckpt"], ["closest.ckpt"])


@pytest.mark.slow
def test_what_a_kill_after_the_result_left_is_removed_by_the_same_command(own):
    place, left, _ = own
    (left / "checkpoints").mkdir()
    (left / "plots").mkdir(exist_ok=True)
    checkpoints = ("checkpoints/last.ckpt", "checkpoints/previous.ckpt")
    for name in (*checkpoints, ".config.yaml.7.tmp", "model/.x.8.tmp", "plots/.y.9.tmp"):
        (left / name).touch()
    run(config(place))
    assert not (left / "checkpoints").exists()
    assert not list(left.rglob("*.tmp"))


HARMS = [("last.ckpt", 0.5), ("kept", 0.5)]
MORE_HARMS = [("last.ckpt", 0.1), ("last.ckpt", 0.99), ("kept and cut", 0.5), ("kept and gone", 0.5)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "place"), [*HARMS, *(pytest.param(*harm, marks=pytest.mark.slow) for harm in MORE_HARMS)]
)
def test_a_run_whose_checkpoints_were_damaged_ends_with_the_same_weights(finished, trained, tmp_path, name, place):
    shutil.copytree(trained, tmp_path / "own")
    cfg = config(tmp_path / "own")
    checkpoints = folders(cfg)[0] / "checkpoints"
    (kept,) = [path for path in checkpoints.iterdir() if path.name in ("best.ckpt", "closest.ckpt")]
    harmed = checkpoints / "last.ckpt" if name == "last.ckpt" else kept
    if name.endswith("gone"):
        harmed.unlink()
    elif name.endswith("cut"):
        os.truncate(harmed, harmed.stat().st_size // 2)
    else:
        flip(harmed, place)
    run(cfg)
    assert_same(weights(folders(config(finished))[0]), weights(folders(cfg)[0]))


# -- results and records -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_result_with_another_number_counts_as_none(own, capsys):
    place, left, _ = own
    text = (left / "result.json").read_text()
    score = json.loads(text)["score"]["pruned"]
    (left / "result.json").write_text(text.replace(str(score), str(score / 2)))
    assert run(config(place)).score.pruned == score
    assert "result.json is not what was written: it was damaged, or changed by hand" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.yaml", "model/model.safetensors", "model/prunekit.json", "model/config.json"])
def test_a_finished_run_with_a_damaged_file_is_not_opened(own, name):
    _, left, _ = own
    open_run(left)
    flip(left / name)
    with pytest.raises(ConfigError, match=f"(?s){name} is not what was written.*Allowed"):
        open_run(left)


@pytest.mark.slow
def test_a_model_of_another_run_is_not_opened(own):
    _, left, teacher = own
    shutil.rmtree(left / "model")
    shutil.copytree(teacher / "model", left / "model")
    with pytest.raises(ConfigError, match="is a file of another run"):
        open_run(left)


@pytest.mark.slow
def test_of_a_damaged_record_what_can_be_read_is_kept_and_that_is_said(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "own")
    cfg = config(tmp_path / "own")
    record = folders(cfg)[0] / "metrics.jsonl"
    before = read_jsonl(record)
    lines = record.read_bytes().splitlines()
    record.write_bytes(b"\n".join([b"\xff" + lines[0][1:], *lines[1:], b""]))
    run(cfg)
    assert read_jsonl(record)[: len(before) - 1] == before[1:]
    assert "metrics.jsonl is not what was written" in capsys.readouterr().out


# -- the teacher and caches --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_damaged_teacher_is_refused_by_name(own):
    place, left, teacher = own
    shutil.rmtree(left)
    flip(teacher / "model" / "model.safetensors")
    with pytest.raises(ConfigError) as refused:
        run(config(place))
    path = teacher / "model" / "model.safetensors"
    assert f"{path} is not what was written" in str(refused.value)
    assert "Delete that file and give the same command again" in str(refused.value)


@pytest.mark.slow
def test_a_teacher_whose_weights_are_gone_is_trained_again(own):
    place, left, teacher = own
    before = weights(left)
    shutil.rmtree(left)
    (teacher / "model" / "model.safetensors").unlink()
    run(config(place))
    assert_same(before, weights(left))


@pytest.mark.slow
def test_the_digest_in_the_teachers_manifest_is_compared_where_there_is_no_seal(own):
    place, left, teacher = own
    shutil.rmtree(left)
    (teacher / "model" / ".sha256").unlink()
    flip(teacher / "model" / "model.safetensors")
    with pytest.raises(ConfigError, match=r"has sha256 .{12}, its run saved"):
        run(config(place))


@pytest.mark.slow
def test_damaged_teacher_outputs_are_made_again_with_one_line(own, capsys):
    place, left, _ = own
    before = weights(left)
    (stored,) = (place / "cache" / "teachers").glob("*.safetensors")
    shutil.rmtree(left)
    flip(stored, 0.9)
    run(config(place))
    assert_same(before, weights(left))
    assert capsys.readouterr().out.count("it is made again") == 1


# -- disks -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_done_without(finished, own, capsys):
    place, left, _ = own
    before = weights(left)
    shutil.rmtree(left)
    cfg = config(place, "data.cache_dir=/dev/null/cache")
    assert train(cfg) in (0, 3)
    assert_same(before, weights(left))
    out = capsys.readouterr().out
    assert "cache      /dev/null/cache/teachers cannot be written (" in out
    assert "free" in out


@pytest.mark.slow
def test_a_folder_that_is_removed_in_the_middle_ends_the_run_with_1(own, monkeypatch):
    cfg = config(own[0], "trainer.evals_per_epoch=4")
    left = folders(cfg)[0]
    log, calls = JsonlLogger.log_metrics, []

    def removing(self, *given, **options):
        calls.append(1)
        if len(calls) == 2:
            shutil.rmtree(left)
        log(self, *given, **options)

    monkeypatch.setattr(JsonlLogger, "log_metrics", removing)
    with pytest.raises(StorageError, match=f"{left} cannot be used .* free") as ended:
        run(cfg)
    assert ended.value.exit_code == CRASHED
    assert not (left / "result.json").exists()


@pytest.mark.slow
def test_a_table_of_metrics_that_cannot_be_written_stops_nothing(own, capsys):
    place, left, _ = own
    shutil.rmtree(left / "model")
    (left / "metrics.csv").unlink()
    (left / "metrics.csv").mkdir()
    run(config(place))
    assert (left / "result.json").is_file()
    assert f"{left / 'metrics.csv'} was not written (" in capsys.readouterr().out


@pytest.fixture
def small_disk(tmp_path):
    """A file system of little room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("mounting needs root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
def test_on_a_full_disk_a_run_ends_with_one_message_and_the_same_command_resumes(finished, small_disk, capsys):
    """Its teacher is done and elsewhere; it fills the disk with its checkpoints."""
    teacher = folders(config(finished))[1] / "model"
    cfg = config(small_disk, f"teacher.path={teacher}", f"data.cache_dir={finished / 'cache'}")
    (small_disk / "ballast").write_bytes(bytes(500_000))
    with pytest.raises(StorageError, match=r"cannot be used \(No space left on device; .* MB free\)"):
        run(cfg)
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    run(cfg)
    assert_same(weights(folders(config(finished))[0]), weights(folders(cfg)[0]))
    assert not list(small_disk.rglob("*.tmp"))


@pytest.mark.slow
def test_on_a_disk_that_cannot_be_written_a_run_ends_with_one_message(own, small_disk):
    place, _, teacher = own
    cfg = config(small_disk / "x", f"teacher.path={teacher / 'model'}", f"data.cache_dir={place / 'cache'}")
    folders(cfg)[0].mkdir(parents=True)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StorageError, match="Read-only file system"):
        run(cfg)


# -- where it runs -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_ranks_that_a_launcher_left_change_nothing(own, monkeypatch):
    place, left, _ = own
    before, rows = weights(left), len(read_jsonl(left / "metrics.jsonl"))
    shutil.rmtree(left)
    left_over = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "SLURM_PROCID": "2", "SLURM_NTASKS": "4"}
    for name, value in (left_over | {"SLURM_JOB_NAME": "job", "SLURM_NODEID": "1"}).items():
        monkeypatch.setenv(name, value)
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    run(config(place))
    assert_same(before, weights(left))
    assert len(read_jsonl(left / "metrics.jsonl")) == rows > 0
    assert (left / "metrics.csv").is_file()
    assert {name: os.environ[name] for name in left_over} == left_over
    assert rank_zero_only.rank == 1
