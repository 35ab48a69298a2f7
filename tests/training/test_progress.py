import io
import re
from unittest.mock import Mock

import lightning.pytorch as L
import pytest
import torch
from rich.console import Console
from torch import nn

from prunekit import console
from prunekit.console import StatusLine, clock, fitted, rate, say, track
from prunekit.training.progress import Progress, _remaining_evaluations

# lightning still uses a name that torch's pytree has renamed


@pytest.fixture
def log(monkeypatch):
    """The lines that a log file gets, without a terminal."""
    stream = io.StringIO()
    monkeypatch.setattr(console, "CONSOLE", Console(file=stream, width=80, highlight=False, force_terminal=False))
    return stream


@pytest.fixture
def terminal(monkeypatch):
    stream = io.StringIO()
    shown = Console(
        file=stream, width=80, highlight=False, force_terminal=True, color_system=None, legacy_windows=False
    )
    monkeypatch.setattr(console, "CONSOLE", shown)
    monkeypatch.setattr(console, "LIVE_SECONDS", 0.0)
    return stream


def without_controls(text):
    plain = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", text)
    lines = [line.strip() for line in re.split(r"\r|\n", plain) if line.strip()]
    return [line for number, line in enumerate(lines) if number == 0 or line != lines[number - 1]]


# -- words -------------------------------------------------------------------------------------------


def test_times_and_rates():
    assert [clock(0), clock(59.6), clock(220), clock(3661)] == ["00:00", "01:00", "03:40", "1:01:01"]
    assert [rate(61, 10), rate(10, 10), rate(4, 10), rate(0, 1)] == ["6.1 it/s", "1.0 it/s", "0.4 it/s", "- it/s"]


def test_a_narrow_line_omits_whole_parts_from_the_end():
    parts = ["step 1/9", "loss 0.5", "a very long part", "ETA 01:00"]
    assert fitted(parts, 80) == "step 1/9 | loss 0.5 | a very long part | ETA 01:00"
    assert fitted(parts, 31) == "step 1/9 | loss 0.5 | ETA 01:00"
    assert fitted(parts, 3) == "step 1/9"


def test_messages_are_neither_wrapped_nor_read_as_markup(log):
    say("[bold] " + "word " * 40)
    assert log.getvalue() == "[bold] " + "word " * 40 + "\n"


# -- track -------------------------------------------------------------------------------------------


def test_track_yields_everything_and_ends_with_one_line(log):
    assert list(track([1, 2, 3], "teacher outputs")) == [1, 2, 3]
    assert re.fullmatch(r"teacher outputs    \| 3 \| [\d.]+ it/s \| 00:00\n", log.getvalue())


def test_a_log_file_gets_a_line_every_ten_seconds_with_an_eta(log, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])

    def slow():
        for item in range(100):
            now[0] += 1.0
            yield item

    for _ in track(slow(), "speed", 100):
        pass
    lines = log.getvalue().splitlines()
    assert lines[0] == "speed              | 9/100 | 0.9 it/s | ETA 01:41"
    assert len(lines) == 11  # every ten seconds, and at the end
    assert lines[-1] == "speed              | 100 | 1.0 it/s | 01:40"


def test_nothing_is_said_of_no_items(log):
    assert list(track([], "kept tokens")) == []
    assert log.getvalue() == ""


def test_without_a_total_there_is_no_eta(log, monkeypatch):
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    list(track(iter("ab"), "reading"))
    assert "ETA" not in log.getvalue()
    assert log.getvalue().startswith("reading            | 0 | - it/s\n")


def test_on_a_terminal_there_is_one_live_line_and_the_last_one_remains(terminal):
    list(track("abc", "teacher outputs"))
    lines = without_controls(terminal.getvalue())
    assert [line.split("|")[1].strip() for line in lines] == ["0/3", "1/3", "2/3", "3"]
    assert terminal.getvalue().endswith("00:00\n")


def test_a_loop_that_ends_early_removes_its_live_line(terminal):
    for _ in track("abc", "speed"):
        break
    list(track("ab", "after"))  # another live line can start
    assert without_controls(terminal.getvalue())[-1].startswith("after")


def test_a_message_appears_above_the_live_line(terminal):
    line = StatusLine()
    line.update(["step 1"])
    say("a warning")
    line.close()
    assert "a warning" in without_controls(terminal.getvalue())


# -- a fit -------------------------------------------------------------------------------------------


class Toy(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        self.log_dict({"train/kd": 0.25, "train/rank": 0.5, "train/loss": 0.75})
        if self.current_epoch == 0:
            self.log("budget/expected", 0.5)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        self.log_dict({"score": 0.96, "val/flops_vs_unpadded": 2.9, "tokens/layer_00": 126.3, "tokens/layer_01": 54.6})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(callback, epochs=2, toy=Toy):
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(toy(), range(60), range(2))


def test_a_log_file_gets_one_line_per_evaluation_of_a_short_fit(log):
    fit(Progress(3.0))
    lines = log.getvalue().splitlines()
    assert len(lines) == 2
    losses, rest = "loss 0.750 | kd 0.250 rank 0.500", "score 96.00 | budget 2.90x -> 3.00x | tokens 126 55"
    assert lines[0].startswith(f"epoch 1/2 | step 60 | {losses} | {rest} | 00:0")


def test_the_live_line_shows_step_loss_budget_and_eta_first(terminal):
    fit(Progress(3.0))
    lines = without_controls(terminal.getvalue())
    assert max(map(len, (line for line in lines if line.startswith("fit")))) <= 80
    first = next(line for line in lines if line.startswith("fit epoch 1/2 | step 30/120"))
    assert re.match(r"fit epoch 1/2 \| step 30/120 \| loss 0\.750 \| budget 2\.00x -> 3\.00x \| ETA 00:0\d", first)
    assert any(line.startswith("evaluate epoch 1/2 | batch 1/2") for line in lines)


def test_with_an_estimate_of_what_follows_the_eta_is_that_of_the_whole_run(terminal):
    fit(Progress(3.0, after=600.0))
    first = next(line for line in without_controls(terminal.getvalue()) if line.startswith("fit epoch 1/2 | step 30/"))
    assert re.search(r"\| ETA 10:0\d", first)


def test_a_wide_terminal_has_the_eta_of_the_fit_too(terminal, monkeypatch):
    monkeypatch.setattr(console.CONSOLE, "width", 120)
    fit(Progress(3.0, after=600.0))
    first = next(line for line in without_controls(terminal.getvalue()) if line.startswith("fit epoch 1/2 | step 30/"))
    assert re.search(r"\| ETA 10:0\d \| [\d.]+ it/s \| fit 00:0\d", first)


def test_loss_terms_of_an_earlier_stage_are_no_longer_shown(log):
    class Staged(Toy):
        def training_step(self, batch, batch_idx):
            terms = ("kd", "rank") if self.current_epoch == 0 else ("task", "rank")
            self.log_dict({"train/loss": 0.75} | {f"train/{name}": 0.25 for name in terms})
            return {"loss": self.weight.sum(), "terms": terms}

    fit(Progress(3.0), toy=Staged)
    soft, hard = log.getvalue().splitlines()
    assert "loss 0.750 | kd 0.250 rank 0.250 |" in soft
    assert "loss 0.750 | rank 0.250 task 0.250 |" in hard


def test_the_measured_budget_is_shown_once_training_no_longer_reports_an_expected_one(terminal):
    fit(Progress(3.0))
    lines = without_controls(terminal.getvalue())
    late = next(line for line in lines if line.startswith("fit epoch 2/2 | step 119/120"))
    assert "budget 2.90x -> 3.00x" in late


def test_a_run_without_a_budget_shows_the_reduction_reached(log):
    fit(Progress(None), epochs=1)
    assert "| budget 2.90x |" in log.getvalue()


def test_an_error_removes_the_live_line(terminal):
    class Broken(Toy):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx)

    callback = Progress(3.0)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    with pytest.raises(RuntimeError, match="broken"):
        trainer.fit(Broken(), range(9), range(1))
    list(track("ab", "after"))
    assert without_controls(terminal.getvalue())[-1].startswith("after")


@pytest.mark.parametrize(
    ("evals_per_epoch", "max_steps", "total", "to_come"),
    [(1, None, 40, 4), (5, None, 40, 18), (1, 15, 15, 1), (5, 15, 15, 5)],
)
def test_the_eta_accounts_for_an_early_end_and_every_evaluation_before_it(evals_per_epoch, max_steps, total, to_come):
    """Ten steps per epoch, four epochs, now at step 5."""
    trainer = Mock(
        spec=L.Trainer,
        num_training_batches=10,
        accumulate_grad_batches=1,
        max_epochs=4,
        current_epoch=0,
        val_check_batch=10 // evals_per_epoch,
        global_step=5,
        callback_metrics={},
    )
    shown = Progress(None, max_steps)
    assert shown._total(trainer) == total
    assert _remaining_evaluations(trainer, 5, total) == to_come
