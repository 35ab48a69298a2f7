"""Ends of a training before its last epoch."""

from __future__ import annotations

import pytest
from support.scripted_fit import Scripted, fit

from prunekit.training.checkpoints import LastCheckpoint
from prunekit.training.stopping import StopAfter, StopWithoutProgress


def test_stop_after_none_never_stops():
    assert fit(Scripted([(0.5, 1, 0.0)] * 3), [StopAfter(None)], epochs=3, enable_checkpointing=False).global_step == 3
    assert fit(Scripted([(0.5, 1, 0.0)] * 3), [StopAfter(2)], epochs=3, enable_checkpointing=False).global_step == 2


@pytest.mark.parametrize(
    ("script", "epochs"),
    [
        ([(0.5, 1, 0.0), (0.5, 1, 0.0), (0.5, 1, 0.0), (0.9, 1, 0.0)], 3),  # no better score twice
        ([(0.5, 1, 0.0), (0.4, 1, 0.0), (0.6, 1, 0.0), (0.5, 1, 0.0)], 4),  # a better one in between
        ([(0.9, 0, 0.5), (0.5, 1, 0.0), (0.4, 0, 0.5), (0.3, 0, 0.5)], 4),  # what misses the budget does not count
    ],
)
def test_training_ends_after_so_many_feasible_evaluations_without_a_better_score(script, epochs):
    done = fit(Scripted(script), [StopWithoutProgress(2)], epochs=4, enable_checkpointing=False)
    assert done.current_epoch == epochs


def test_a_resumed_run_that_has_waited_long_enough_stops_at_once(tmp_path):
    script = [(0.5, 1, 0.0), (0.4, 1, 0.0), (0.3, 1, 0.0), (0.9, 1, 0.0)]
    fit(Scripted(script), [StopWithoutProgress(2), LastCheckpoint(tmp_path)], epochs=4)
    resumed = fit(Scripted(script), [StopWithoutProgress(2)], epochs=4, resume=str(tmp_path / "last.ckpt"))
    assert resumed.global_step == 3
