"""A data module on a synthetic task."""

from __future__ import annotations

from prunekit.data.module import TokenPruningDataModule
from prunekit.data.sources import find_task
from prunekit.data.spec import TaskSpec


def data_of(backbones, tmp_path, family="bert", *, spec=None, **keys):
    spec = TaskSpec.from_config({"name": "s", "labels": ["a", "b", "c"], "synthetic_rows": 40, **(spec or {})})
    sizes = {"batch_size": 8, "eval_batch_size": 16, "seed": 1, "cache_dir": tmp_path}
    data = TokenPruningDataModule(spec, find_task(spec, {}), backbones / family, **(sizes | keys))
    data.setup()
    return data
