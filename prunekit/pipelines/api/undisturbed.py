"""Give back what a run changes of the process that it runs in: another program goes on as before."""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from prunekit.config.search_path import registered_anew


@contextmanager
def undisturbed(arguments: Sequence[str]) -> Iterator[None]:
    """Run the block as the command `train.py` with these arguments, and give back afterwards what it has changed.

    That is logging, warnings, random numbers, torch's threads and settings, progress bars of libraries, environment
    variables, arguments and what is registered with Hydra.
    """
    generators = list(_generators())
    # what a library sets up when it is imported is no disturbance, except for the random numbers that it draws
    import transformers

    import prunekit.training.fit  # noqa: F401  (and with it Lightning)

    with ExitStack() as stack:
        for give_back in generators:  # last of all: what is given back before may draw numbers
            stack.callback(give_back)
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(registered_anew())
        for give_back in (_environment(), *_loggers(), *_torch()):
            stack.callback(give_back)
        if transformers.utils.logging.is_progress_bar_enabled():
            stack.callback(transformers.utils.logging.enable_progress_bar)
        sys.argv = ["train.py", *arguments]
        yield


def _environment() -> Callable[[], None]:
    variables, typed = dict(os.environ), sys.argv

    def give_back() -> None:
        os.environ.clear()
        os.environ.update(variables)
        sys.argv = typed

    return give_back


def _loggers() -> Iterator[Callable[[], None]]:
    manager = logging.root.manager
    for logger in (logging.root, *manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            yield _logger(logger)
    disabled = manager.disable
    yield lambda: logging.disable(disabled)


def _logger(logger: logging.Logger) -> Callable[[], None]:
    level, handlers, filters = logger.level, list(logger.handlers), list(logger.filters)
    flags = {name: getattr(logger, name) for name in ("propagate", "disabled")}

    def give_back() -> None:
        logger.setLevel(level)  # also forgets which levels were found to be enabled
        logger.handlers[:], logger.filters[:] = handlers, filters
        vars(logger).update(flags)

    return give_back


def _generators() -> Iterator[Callable[[], None]]:
    # heavy, and `import prunekit` is quick
    import numpy as np
    import torch

    states: list[tuple[Callable[[Any], None], Any]] = [
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),
        (torch.set_rng_state, torch.get_rng_state()),
    ]
    if torch.cuda.is_initialized():
        states.append((torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    for give_back, state in states:
        yield partial(give_back, state)


def _torch() -> Iterator[Callable[[], None]]:
    import torch  # heavy, as above

    settings: list[tuple[Callable[[Any], Any], Any]] = [
        (torch.set_num_threads, torch.get_num_threads()),
        (torch.set_grad_enabled, torch.is_grad_enabled()),
        (torch.set_default_dtype, torch.get_default_dtype()),
        (torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()),
        (torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled()),
    ]
    for give_back, value in settings:
        yield partial(give_back, value)
