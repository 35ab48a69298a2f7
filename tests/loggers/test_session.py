import csv
import gc
import os
import signal
import subprocess
import sys
import types
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from support.paths import visible
from support.run_result import CONTENT, changed

from prunekit.config.composition import compose
from prunekit.config.errors import shown
from prunekit.files import append_jsonl, read_jsonl
from prunekit.loggers import base, session, tensorboard
from prunekit.loggers import trackio as trackio_logger
from prunekit.loggers import wandb as wandb_logger
from prunekit.loggers.names import project_name, run_group
from prunekit.loggers.offline import read_runs
from prunekit.loggers.session import final_numbers, log_result, log_tokens, tracking
from prunekit.loggers.tensorboard import TensorBoardSink
from prunekit.loggers.trackio import TrackioSink
from prunekit.loggers.wandb import WandbSink, has_wandb_key, wandb_mode
from prunekit.results import examples
from prunekit.runs.folder import RunFolder
from prunekit.runs.names import byte_size
from prunekit.training.metrics_log import JsonlLogger


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.fixture
def said(monkeypatch):
    lines = []
    for module in (base, session, tensorboard, trackio_logger, wandb_logger):
        monkeypatch.setattr(module, "say", lines.append)
    return lines


def config(runs_dir, *, seed=1, wandb=False, mode=None, csv=True, tensorboard=False, trackio=False):
    return {
        "method": {"name": "top"},
        "task": {"name": "cola"},
        "backbone": {"name": "minilm"},
        "budget": "3x",
        "seed": seed,
        "runs_dir": str(runs_dir),
        "logger": chosen_loggers(csv, tensorboard, trackio, wandb, mode),
    }


@cache
def chosen_loggers(csv, tensorboard, trackio, wandb, mode):
    """The block `logger` of a command line."""
    given = {"logger.csv": csv, "tensorboard.enabled": tensorboard, "trackio.enabled": trackio}
    given |= {"wandb.enabled": wandb, "wandb.mode": mode}
    return compose([f"{key}={shown(value)}" for key, value in given.items()])[0]["logger"]


# -- metrics.jsonl -----------------------------------------------------------------------------------


def test_a_row_has_step_epoch_time_and_the_metrics(tmp_path):
    logger = JsonlLogger(tmp_path / "metrics.jsonl")
    logger.log_metrics({"loss": 0.5, "epoch": 1.0}, step=9)
    logger.log_metrics({"score": 0.9}, step=9)
    first, second = read_jsonl(tmp_path / "metrics.jsonl")
    assert first.pop("time") > 1.7e9
    assert first == {"step": 9, "epoch": 1, "loss": 0.5}
    assert list(second) == ["step", "epoch", "time", "score"]
    assert second["epoch"] is None


def test_rewinding_to_ten_steps_keeps_the_rows_of_steps_0_to_9(tmp_path):
    logger = JsonlLogger(tmp_path / "metrics.jsonl")
    for step in (4, 9, 9, 10, 14):
        logger.log_metrics({"loss": 0.5}, step=step)
    logger.rewind(10)
    assert [row["step"] for row in read_jsonl(logger.path)] == [4, 9, 9]
    logger.rewind(0)
    assert read_jsonl(logger.path) == []
    assert logger.path.is_file()


def test_rewinding_cuts_off_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, {"step": 4})
    append_jsonl(path, {"step": 9})
    with path.open("a") as stream:
        stream.write('{"step": 9, "lo')
    JsonlLogger(path).rewind(5)
    assert path.read_text() == '{"step": 4}\n'


def test_the_csv_beside_it_has_a_column_per_metric_and_blanks(tmp_path):
    cfg = config(tmp_path)
    folder = RunFolder.of(cfg)
    with tracking(cfg, folder) as loggers:
        loggers[0].log_metrics({"loss": 0.5}, step=0)
        loggers[0].log_metrics({"score": 0.9}, step=0)
    with (folder.path / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["step", "epoch", "time", "loss", "score"]
    assert [(row["loss"], row["score"]) for row in rows] == [("0.5", ""), ("", "0.9")]


def test_without_csv_and_other_loggers_there_is_the_record_alone(tmp_path):
    cfg = config(tmp_path, csv=False)
    with tracking(cfg, RunFolder.of(cfg)) as loggers:
        loggers[0].log_metrics({"loss": 0.5}, step=0)
    assert [type(logger) for logger in loggers] == [JsonlLogger]
    assert visible(RunFolder.of(cfg).path) == ["metrics.jsonl"]


# -- W&B, really offline -----------------------------------------------------------------------------


def wandb_files(runs_dir):
    return sorted(path.relative_to(runs_dir) for path in runs_dir.rglob("*.wandb"))


@pytest.mark.slow
def test_two_jobs_of_one_process_make_two_offline_runs(tmp_path, said):
    import wandb

    for seed in (1, 2):
        cfg = config(tmp_path, seed=seed, wandb=True)
        folder = RunFolder.of(cfg)
        with tracking(cfg, folder) as loggers:
            _, logger = loggers
            assert isinstance(logger, WandbSink)
            assert logger.version == folder.hash
            assert logger.run.group == run_group(config(tmp_path))
            assert logger.run.name == f"top-cola-minilm-3x-s{seed}"
            assert logger.run.tags == ("top", "cola", "minilm", "3x")
            assert dict(logger.run.config)["seed"] == seed
            logger.log_metrics({"loss": 0.5}, step=0)
            log_result(loggers, RESULT)
            assert logger.run.summary["final/score"] == 0.962
        assert wandb.run is None
    found = wandb_files(tmp_path)
    assert len(found) == 2
    assert found[0].parts[:5] != found[1].parts[:5]  # one in each run's folder
    assert {path.name for path in found} == {f"run-{RunFolder.of(config(tmp_path, seed=s)).hash}.wandb" for s in (1, 2)}
    assert said == []


def test_a_job_that_fails_ends_its_run_too_and_a_second_start_has_the_same_id(tmp_path):
    import wandb

    cfg = config(tmp_path, wandb=True)
    folder = RunFolder.of(cfg)
    with pytest.raises(RuntimeError, match="broken"), tracking(cfg, folder):
        raise RuntimeError("broken")
    assert wandb.run is None
    with tracking(cfg, folder) as loggers:
        assert loggers[1].version == folder.hash
    assert {path.name for path in wandb_files(tmp_path)} == {f"run-{folder.hash}.wandb"}


def test_the_group_is_everything_but_the_seed(tmp_path):
    one, two = config(tmp_path, seed=1), config(tmp_path, seed=2)
    assert run_group(one) == run_group(two)
    assert run_group(one).startswith("cola/top/minilm/3x/")
    assert run_group(one | {"budget": "2x"}) != run_group(one)
    assert RunFolder.of(one).hash != RunFolder.of(two).hash


# -- W&B, when it cannot -----------------------------------------------------------------------------


def test_without_wandb_the_run_works_and_says_so_in_one_line(tmp_path, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    cfg = config(tmp_path, wandb=True)
    with tracking(cfg, RunFolder.of(cfg)) as loggers:
        assert [type(logger) for logger in loggers] == [JsonlLogger]
    assert said == ["W&B: not installed, so not used (pip install wandb; wandb.enabled=false hides this)."]


def test_a_folder_that_happens_to_be_named_wandb_is_not_wandb(tmp_path, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    cfg = config(tmp_path, wandb=True)
    with tracking(cfg, RunFolder.of(cfg)) as loggers:
        assert len(loggers) == 1
    assert said[0].startswith("W&B: not installed")


def fake_wandb(monkeypatch, init):
    fake = types.ModuleType("wandb")
    fake.init = init
    fake.Settings = lambda **settings: settings
    monkeypatch.setitem(sys.modules, "wandb", fake)


def test_online_that_does_not_start_falls_back_to_offline(tmp_path, said, monkeypatch):
    import wandb

    real, asked = wandb.init, []

    def init(**options):
        asked.append((options["mode"], options["resume"]))
        if options["mode"] == "online":
            raise ConnectionError("no route to host\nsecond line")
        return real(**options | {"settings": wandb.Settings(silent=True, console="off")})

    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr(wandb, "init", init)
    cfg = config(tmp_path, wandb=True)
    with tracking(cfg, RunFolder.of(cfg)) as loggers:
        assert len(loggers) == 2
    assert asked == [("online", "allow"), ("offline", None)]
    assert said == ["W&B: online did not start (no route to host); the run is recorded offline."]


def test_a_wandb_that_does_not_start_at_all_never_stops_a_run(tmp_path, said, monkeypatch):
    def init(**options):
        raise RuntimeError("disk full")

    fake_wandb(monkeypatch, init)
    cfg = config(tmp_path, wandb=True)
    with tracking(cfg, RunFolder.of(cfg)) as loggers:
        assert len(loggers) == 1
    assert said == ["W&B: offline did not start (disk full); the run continues without it."]


class FailingRun:
    project, id, dir = "prunekit", "0a1b2c3d", "runs/here"
    calls = 0

    def define_metric(self, *arguments, **options):
        pass

    def log(self, row):
        self.calls += 1
        raise BrokenPipeError("the service is gone")

    def finish(self, exit_code):
        raise BrokenPipeError("the service is gone")


def test_a_wandb_that_fails_on_the_way_is_told_once_and_left_alone(tmp_path, said, monkeypatch):
    run = FailingRun()
    fake_wandb(monkeypatch, lambda **options: run)
    cfg = config(tmp_path, wandb=True)
    folder = RunFolder.of(cfg)
    with tracking(cfg, folder) as loggers:
        for step in range(3):
            for logger in loggers:
                logger.log_metrics({"loss": 0.5}, step=step)
    assert run.calls == 1
    assert len(read_jsonl(folder.metrics)) == 3
    assert said == [
        "W&B: logging failed (the service is gone); the run continues without it, metrics.jsonl has everything."
    ]


def children():
    """The processes that this one started."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    if not listed.is_file():
        pytest.skip("this system does not list the children of a process")
    return [int(child) for child in listed.read_text().split()]


@pytest.mark.slow
def test_a_wandb_whose_process_dies_is_told_once_and_the_next_job_has_a_new_one(tmp_path, said):
    import wandb

    wandb.teardown()  # so that its process is started, and killed, here
    before = set(children())
    for seed in (1, 2):
        cfg = config(tmp_path, seed=seed, wandb=True)
        with tracking(cfg, RunFolder.of(cfg)) as loggers:
            for step in range(2):
                for logger in loggers:
                    logger.log_metrics({"loss": 0.5}, step=step)
                for child in set(children()) - before if seed == 1 and step == 0 else ():
                    os.kill(child, signal.SIGKILL)
        assert len(read_jsonl(RunFolder.of(cfg).metrics)) == 2
    for process in gc.get_objects():
        if isinstance(process, subprocess.Popen):
            process.poll()  # else Python complains of the one that was killed
    assert len(said) == 1
    assert said[0].endswith("; the run continues without it, metrics.jsonl has everything.")
    assert [row["loss"] for row in read_runs(RunFolder.of(cfg).path)[0].history] == [0.5, 0.5]


def test_a_wandb_that_cannot_write_is_told_though_it_says_nothing(tmp_path, said, monkeypatch):
    run = FailingRun()
    run.dir = tmp_path / "files"
    run.log = run.finish = lambda *row, **code: None
    fake_wandb(monkeypatch, lambda **options: run)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "debug-internal.log").write_text(
        '{"level":"INFO","msg":"stream: starting"}\nno json\n'
        '{"level":"ERROR","msg":"monitor: no such device"}\n'
        '{"level":"ERROR","msg":"writer: failed to save record: write run.wandb: no space left on device"}\n'
    )
    cfg = config(tmp_path, wandb=True)
    with tracking(cfg, RunFolder.of(cfg)) as loggers:
        loggers[1].log_metrics({"loss": 0.5}, step=0)
    assert said == [
        "W&B: logging failed (no space left on device); the run continues without it, metrics.jsonl has everything."
    ]


@pytest.mark.parametrize("task", ["ticket-" * 40, "票" * 200, "a/b: 50%\n"])
def test_a_long_or_strange_task_loses_no_record_and_is_whole_in_the_config(task, tmp_path, said, trackio):
    cfg = config(tmp_path, wandb=True, tensorboard=True, trackio=True) | {"task": {"name": task}}
    cfg["logger"] = cfg["logger"] | {"wandb": cfg["logger"]["wandb"] | {"project": "team/tickets"}}
    folder = RunFolder.of(cfg)
    with tracking(cfg, folder) as loggers:
        assert [type(logger) for logger in loggers[1:]] == [WandbSink, TrackioSink, TensorBoardSink]
        assert loggers[1].run.config["task"]["name"] == task
        assert loggers[1].run.project == project_name("team/tickets")
        for logger in loggers:
            logger.log_metrics({"loss": 0.5}, step=4)
    assert said == []
    (options,) = trackio.options
    assert options["config"]["task"]["name"] == task
    assert byte_size(options["name"]) <= 128
    assert events(folder.path)[0] == {"loss": [(4, 0.5)]}
    assert len(wandb_files(tmp_path)) == 1


# -- which mode --------------------------------------------------------------------------------------


def test_without_a_key_it_is_offline_and_with_one_online(monkeypatch):
    assert wandb_mode(None) == ("offline", None)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert wandb_mode(None) == ("online", None)
    assert wandb_mode("offline") == ("offline", None)


def test_a_key_in_netrc_counts_for_its_own_server_only(monkeypatch, tmp_path):
    path = tmp_path / "netrc"
    path.write_text("machine api.wandb.ai\n  login user\n  password not-a-key\n")
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))
    assert has_wandb_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_wandb_key()
    path.write_text("machine")  # broken: as good as none
    assert not has_wandb_key()


def test_online_without_a_key_is_offline_with_a_remark_and_never_a_prompt():
    mode, remark = wandb_mode("online")
    assert mode == "offline"
    assert remark.startswith("W&B: online was asked for, but there is no key (WANDB_API_KEY or `wandb login`)")


def test_the_environment_decides_where_the_configuration_does_not(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(None) == ("disabled", None)
    assert wandb_mode("offline") == ("offline", None)


def test_disabled_by_the_environment_means_no_run(tmp_path, said, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    cfg = config(tmp_path, wandb=True)
    with tracking(cfg, RunFolder.of(cfg)) as loggers:
        assert len(loggers) == 1
    assert said == []


# -- the rest ----------------------------------------------------------------------------------------


RESULT = changed(budget__asked=None, flops__pruned_g=0.7, flops__flops_vs_unpadded=2.98, speed=CONTENT["speed"][1:])


def test_final_numbers_are_flat_and_leave_out_what_is_not_known():
    assert final_numbers(RESULT) == {
        "final/status": "done",
        "final/score": 0.962,
        "final/score_dense": 0.968,
        "final/budget_reached": 2.98,
        "final/dense_unpadded_g": 2.1234,
        "final/dense_padded_g": 2.745,
        "final/pruned_g": 0.7,
        "final/flops_vs_unpadded": 2.98,
        "final/flops_vs_padded": 3.854,
        "final/padded_to": 128,
        "final/flops_kept": pytest.approx(0.3356, abs=1e-4),
        "final/speedup_vs_padded_b32": 2.398,
        "final/speedup_vs_packed_b32": 2.145,
    }


# -- trackio ------------------------------------------------------------------------------------------


class FakeTrackio(types.ModuleType):
    """What prunekit uses of trackio; tests/extras.sh runs the real one, whose pins are not those of this project."""

    def __init__(self, broken=None):
        super().__init__("trackio")
        self.broken, self.rows, self.options, self.ended = broken, [], [], 0
        self.project, self.id = "prunekit", "0123"

    def _may(self, what):
        if self.broken == what:
            raise OSError(f"{what}: disk full")

    def init(self, **options):
        print("* Trackio project initialized")
        self._may("init")
        self.options.append(options)
        return self

    def log(self, row, step=None):
        self._may("log")
        self.rows.append((step, row))

    def finish(self):
        print("* Run finished")
        self._may("finish")
        self.ended += 1

    def Table(self, columns, data):  # noqa: N802
        self._may("Table")
        return "table", columns, data

    def Image(self, pixels):  # noqa: N802
        return "image", pixels.shape


@pytest.fixture
def trackio(monkeypatch):
    fake = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    return fake


def test_trackio_gets_every_row_and_the_final_numbers_and_prints_nothing(tmp_path, said, trackio, capsys):
    cfg = config(tmp_path, trackio=True)
    folder = RunFolder.of(cfg)
    with tracking(cfg, folder) as loggers:
        for logger in loggers:
            logger.log_metrics({"loss": 0.5}, step=9)
        log_result(loggers, RESULT)
    (options,) = trackio.options
    assert options["name"] == f"top-cola-minilm-3x-s1-{folder.hash}"
    assert (options["group"], options["resume"]) == (run_group(cfg), "allow")
    assert trackio.rows == [(9, {"loss": 0.5}), (None, final_numbers(RESULT))]
    assert trackio.ended == 1
    assert (said, capsys.readouterr().out) == ([], "")


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("init", "trackio: did not start (init: disk full); the run continues without it."),
        (
            "log",
            "trackio: logging failed (log: disk full); the run continues without it, metrics.jsonl has everything.",
        ),
        (
            "finish",
            "trackio: logging failed (finish: disk full); the run continues without it, metrics.jsonl has everything.",
        ),
    ],
)
def test_a_trackio_that_fails_never_stops_a_run(where, line, tmp_path, said, trackio):
    trackio.broken = where
    cfg = config(tmp_path, trackio=True)
    folder = RunFolder.of(cfg)
    with tracking(cfg, folder) as loggers:
        for step in range(2):
            for logger in loggers:
                logger.log_metrics({"loss": 0.5}, step=step)
    assert len(read_jsonl(folder.metrics)) == 2
    assert said == [line]


def test_without_trackio_the_run_works_and_says_so_in_one_line(tmp_path, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    cfg = config(tmp_path, trackio=True)
    with tracking(cfg, RunFolder.of(cfg)) as loggers:
        assert len(loggers) == 1
    assert said == ["trackio: not installed, so not used (pip install 'prunekit[trackio]')."]


# -- all at once, and the tokens that stayed ------------------------------------------------------------


def stored_tokens(folder):
    """Two texts of two tokens each through one layer, the first of which pruning made wrong."""
    found = examples.Examples(
        labels=np.array([1, 0]),
        predicted=np.array([0, 0]),
        dense=np.array([1, 0]),
        lengths=np.array([2, 2], np.uint16),
        counts=np.array([[1], [2]], np.uint16),
        index=np.arange(2, dtype=np.int32),
        offsets=np.array([0, 2, 4], np.int32),
        ids=np.array([1, 7, 1, 7], np.int32),
        depth=np.array([1, 0, 1, 1], np.uint8),
        scores=np.full((4, 1), 128, np.uint8),
        piece_ids=np.array([1, 7]),
        pieces=np.array(["[CLS]", "good"]),
        special=np.array([True, False]),
        classes=("bad", "fine"),
    )
    folder.path.mkdir(parents=True, exist_ok=True)
    examples.save(found, folder.path)


def events(folder):
    """Scalars and tags of images, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    scalars = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    return scalars, found.Tags()["images"]


def test_several_loggers_of_one_run_all_have_its_rows_and_its_tokens(tmp_path, said, trackio):
    cfg = config(tmp_path, wandb=True, tensorboard=True, trackio=True)
    folder = RunFolder.of(cfg)
    stored_tokens(folder)
    with tracking(cfg, folder) as loggers:
        assert [type(logger) for logger in loggers] == [JsonlLogger, WandbSink, TrackioSink, TensorBoardSink]
        for step, loss in ((4, 0.5), (9, 0.25)):
            for logger in loggers:
                logger.log_metrics({"loss": loss}, step=step)
        log_result(loggers, RESULT)
        log_tokens(loggers, folder, 1)
    assert said == []
    assert [(row["step"], row["loss"]) for row in read_jsonl(folder.metrics)] == [(4, 0.5), (9, 0.25)]
    with (folder.path / "metrics.csv").open() as stream:
        assert [(row["step"], row["loss"]) for row in csv.DictReader(stream)] == [("4", "0.5"), ("9", "0.25")]
    assert events(folder.path) == ({"loss": [(4, 0.5), (9, 0.25)]}, ["tokens/heatmap"])
    assert trackio.rows[:2] == [(4, {"loss": 0.5}), (9, {"loss": 0.25})]
    _, columns, rows = trackio.rows[-1][1]["tokens/table"]
    assert rows == [[0, "fine", "fine", "bad", 0, "[CLS]", 1, 1.0], [0, "fine", "fine", "bad", 1, "good", 0, 1.0]]
    (left,) = read_runs(folder.path)
    assert [(row["trainer/global_step"], row["loss"]) for row in left.history if "loss" in row] == [(4, 0.5), (9, 0.25)]
    assert left.summary["final/score"] == 0.962
    assert left.table("tokens/table") == {"columns": columns, "data": rows}
    assert left.file("tokens/heatmap").read_bytes().startswith(b"\x89PNG")


def test_tokens_that_cannot_be_shown_are_told_and_stop_nothing(tmp_path, said, trackio):
    cfg = config(tmp_path, trackio=True)
    folder = RunFolder.of(cfg)
    with tracking(cfg, folder) as loggers:
        log_tokens(loggers, folder, 2)  # a run that stored none
        assert said == []
        folder.path.mkdir(parents=True)
        (folder.path / "examples.npz").write_bytes(b"PK\x03\x04torn")
        log_tokens(loggers, folder, 2)
        assert said[0].startswith("tokens are not shown in trackio (")
        stored_tokens(folder)
        log_tokens(loggers, folder, 0)
        trackio.broken = "Table"
        log_tokens(loggers, folder, 2)
    assert trackio.rows == []
    assert said[1].startswith("trackio: logging failed (Table: disk full)")


class Diary(base.Sink):
    """A logger of another package, as short as one can be."""

    title = "diary"

    def __init__(self, colour):
        super().__init__()
        self.colour, self.rows = colour, []

    def send_metrics(self, metrics, step):
        self.rows.append((step, metrics))


def diary_settings(cfg, target="diary.start", **options):
    block = {"_target_": target, "enabled": True, "colour": "red", **options}
    return cfg | {"logger": cfg["logger"] | {"diary": block}}


@pytest.fixture
def diary(monkeypatch):
    module = types.ModuleType("diary")
    module.start = lambda cfg, folder, *, colour: Diary(colour)
    monkeypatch.setitem(sys.modules, "diary", module)
    return module


def test_a_logger_is_whatever_block_has_a_target(tmp_path, said, diary):
    cfg = diary_settings(config(tmp_path))
    folder = RunFolder.of(cfg)
    stored_tokens(folder)
    with tracking(cfg, folder) as loggers:
        loggers[1].log_metrics({"loss": 0.5}, step=0)
        log_result(loggers, RESULT)
        log_tokens(loggers, folder, 1)
    assert (loggers[1].colour, loggers[1].rows) == ("red", [(0, {"loss": 0.5})])
    assert said == []
    with tracking(diary_settings(cfg, enabled=False), folder) as loggers:
        assert [type(logger) for logger in loggers] == [JsonlLogger]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"target": "diary.begin"},
            "logger.diary: diary.begin did not start (module 'diary' has no attribute 'begin'); "
            "the run continues without it.",
        ),
        (
            {"target": "nowhere.start"},
            "logger.diary: nowhere.start did not start (No module named 'nowhere'); the run continues without it.",
        ),
        ({"ink": "dry"}, "logger.diary: diary.start did not start ("),
    ],
)
def test_a_logger_that_cannot_start_never_stops_a_run(settings, line, tmp_path, said, diary):
    cfg = diary_settings(config(tmp_path), **settings)
    with tracking(cfg, RunFolder.of(cfg)) as loggers:
        assert len(loggers) == 1
    assert len(said) == 1
    assert said[0].startswith(line)


def test_a_tensorboard_that_fails_on_the_way_never_stops_a_run(tmp_path, said, monkeypatch):
    def full(self, metrics, step=None):
        raise OSError("disk full")

    monkeypatch.setattr(tensorboard.TensorBoardLogger, "log_metrics", full)
    cfg = config(tmp_path, tensorboard=True)
    with tracking(cfg, RunFolder.of(cfg)) as loggers:
        for step in range(2):
            for logger in loggers:
                logger.log_metrics({"loss": 0.5}, step=step)
    assert len(read_jsonl(loggers[0].path)) == 2
    assert said == [
        "TensorBoard: logging failed (disk full); the run continues without it, metrics.jsonl has everything."
    ]


def test_without_tensorboard_the_run_works_and_says_so_in_one_line(tmp_path, said, monkeypatch):
    def missing(**options):
        raise ModuleNotFoundError("neither tensorboard nor tensorboardX")

    monkeypatch.setattr(tensorboard, "TensorBoardLogger", missing)
    cfg = config(tmp_path, tensorboard=True)
    with tracking(cfg, RunFolder.of(cfg)) as loggers:
        assert len(loggers) == 1
    assert said == ["TensorBoard: not installed, so not used (pip install 'prunekit[tensorboard]')."]
