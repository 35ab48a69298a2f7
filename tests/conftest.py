"""Settings of all tests: one thread, no network."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from support.models import FAMILIES

torch.set_num_threads(1)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param
