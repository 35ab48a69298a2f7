"""What is silenced within a block speaks again after it."""

import logging
import subprocess
import sys
import warnings

import pytest
from transformers.utils import logging as transformers_logging

from prunekit.console import silence


def test_loggers_show_errors_alone_within_the_block_and_then_what_they_showed():
    log = logging.getLogger("some.library")
    log.setLevel(logging.INFO)
    root = logging.getLogger().level
    with silence("some.library", ""):
        assert (log.level, logging.getLogger().level) == (logging.ERROR, logging.ERROR)
    assert (log.level, logging.getLogger().level) == (logging.INFO, root)
    with pytest.raises(RuntimeError, match="inside"), silence("some.library"):
        raise RuntimeError("inside")
    assert log.level == logging.INFO


def test_warnings_are_hidden_on_request_only():
    with silence(hide_warnings=True):
        warnings.warn("hidden", stacklevel=1)
    with pytest.warns(UserWarning, match="shown"), silence("some.library"):
        warnings.warn("shown", stacklevel=1)


@pytest.mark.parametrize("shown", [True, False])
def test_progress_bars_of_transformers_come_back_where_they_were(shown):
    before, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    try:
        (transformers_logging.enable_progress_bar if shown else transformers_logging.disable_progress_bar)()
        with silence("transformers"):
            assert not transformers_logging.is_progress_bar_enabled()
            assert transformers_logging.get_verbosity() == logging.ERROR
        assert transformers_logging.is_progress_bar_enabled() == shown
        assert transformers_logging.get_verbosity() == level
    finally:
        (transformers_logging.enable_progress_bar if before else transformers_logging.disable_progress_bar)()


def test_who_prints_needs_no_transformers():
    code = "import sys, prunekit.console, prunekit.runs.sweep; print({'transformers', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
