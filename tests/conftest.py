"""Settings of all tests: one thread, no network."""

import gc
import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
from support.families import FAMILIES


def pytest_configure(config):
    """Import what all tests need, except in the process that only hands out tests to others."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    import torch
    from support import shortcuts

    shortcuts.take()
    torch.set_num_threads(1)


def pytest_collection_finish():
    """Leave the modules out of garbage collection, which every run ends with; going through them takes 0.3 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param
