"""A finished run with a random model, as export and benchmarks read it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from transformers import AutoTokenizer

from prunekit.config.composition import compose
from prunekit.data.kinds.base import TaskKind
from prunekit.data.kinds.labelled import CLASSIFICATION
from prunekit.models import loading, pretrained
from prunekit.models.sources import find_backbone
from prunekit.tokens.encoder import install
from prunekit.tokens.policies import KeepRatio, LearnedThreshold, MeanMinusStd
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.rank_gates import RankGate
from prunekit.tokens.scorers import AccumulatedReceived, AttentionReceived
from support.run_result import CONTENT

# of the tiny backbone, which has four layers
PRUNERS = {
    "topk": lambda: TokenPruner(AttentionReceived(), KeepRatio({1: 0.6, 2: 0.4, 3: 0.2}), [1, 2, 3]),
    "ltp": lambda: TokenPruner(AttentionReceived(), LearnedThreshold({1: 0.8, 2: 0.9, 3: 1.0}, 0.1), [1, 2, 3]),
    "top": lambda: TokenPruner(
        AttentionReceived(), RankGate([1, 2], 8, init_fine=1.0, init_slope=3.0, init_coarse=3.0), [1, 2]
    ),
    "dtp": lambda: TokenPruner(AccumulatedReceived(), MeanMinusStd(dict.fromkeys([1, 2, 3], 0.3)), [1, 2, 3]),
}


def stored_run(
    folder: Path,
    method: str,
    pruner: TokenPruner | None,
    task: Sequence[str] = ("task=synthetic",),
    kind: TaskKind = CLASSIFICATION,
    labels: Sequence[str] = ("0", "1"),
) -> Path:
    """A run's folder as training leaves it, with random weights."""
    cfg, _ = compose([f"method={method}", "backbone=tiny", "data.eval_rows=12", *task])
    cfg = json.loads(json.dumps(cfg)) | {"runs_dir": str(folder)}
    cfg["task"]["synthetic_rows"], cfg["data"]["cache_dir"] = 24, str(folder / "cache")
    backbone = find_backbone(cfg["backbone"])
    torch.manual_seed(0)
    model = loading.load_model(backbone, kind, labels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    run = folder / "run"
    pretrained.save(install(model, pruner), AutoTokenizer.from_pretrained(backbone), run / "model")
    (run / "config.yaml").write_text(yaml.safe_dump(cfg))
    result = CONTENT | {"hash": "1a2b3c4d", "method": method, "task": "synthetic"}
    (run / "result.json").write_text(json.dumps(result))
    return run
