"""Settings of all tests: one thread, no network."""

import gc
import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from support import shortcuts

shortcuts.take()

from support.models import FAMILIES  # noqa: E402

torch.set_num_threads(1)


def pytest_collection_finish():
    """Leave the modules out of garbage collection, which every run ends with; going through them takes 0.3 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param
