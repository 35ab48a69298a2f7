"""lm-evaluation-harness on the folder of a run, which is an ordinary Hugging Face model. Optional: extra `harness`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunekit.config.errors import ConfigError


def evaluate_with_harness(
    folder: str | Path,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    few_shot: int | None = None,
    batch_size: int = 1,
    device: str = "cpu",
    settings: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, float]]:
    """Return what lm-evaluation-harness measures on a saved model: per task its metrics, named as in the harness.

    `limit` is rows per task, None = all; `few_shot` examples in the prompt, None = the task's own; `settings` are
    further arguments of `lm_eval.simple_evaluate`.

    Raises:
        ConfigError: the harness is not installed, or the folder holds no weights.
    """
    folder = Path(folder)
    weights = [folder / "model.safetensors", folder / "model.safetensors.index.json"]
    if not (folder / "config.json").is_file() or not any(file.is_file() for file in weights):
        raise ConfigError(
            f"{folder} holds no model with weights.\n"
            "Allowed: the folder model/ of a run with method.save_weights=true, or any folder of save_pretrained.\n"
            "Give that folder, or run again with method.save_weights=true."
        )
    try:
        from lm_eval import simple_evaluate  # an optional extra
    except ImportError as error:
        raise ConfigError(
            "lm-evaluation-harness is not installed.\n"
            "Allowed: prunekit's own perplexity, choice and ROUGE without it.\npip install 'prunekit[harness]'"
        ) from error
    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32"},
        tasks=list(tasks),
        num_fewshot=few_shot,
        batch_size=batch_size,
        device=device,
        limit=limit,
        **(settings or {}),
    )
    return {
        task: {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        for task, metrics in found["results"].items()
    }
