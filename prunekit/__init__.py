"""prunekit trains, compares and deploys pruned Transformers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit.data.given import task_of as task_of
    from prunekit.models.pretrained import load_pruner as load_pruner
    from prunekit.models.pretrained import save as save
    from prunekit.models.pretrained import save_pruner as save_pruner
    from prunekit.pipelines.api.calls import evaluate as evaluate
    from prunekit.pipelines.api.calls import fit as fit
    from prunekit.pipelines.api.calls import prune as prune
    from prunekit.runtime.loading import load as load

__version__ = "0.1.0"

# public name -> the module that defines it, imported when the name is first used: `import prunekit` needs no torch
_PUBLIC = {
    "evaluate": "prunekit.pipelines.api.calls",
    "fit": "prunekit.pipelines.api.calls",
    "load": "prunekit.runtime.loading",
    "load_pruner": "prunekit.models.pretrained",
    "prune": "prunekit.pipelines.api.calls",
    "save": "prunekit.models.pretrained",
    "save_pruner": "prunekit.models.pretrained",
    "task_of": "prunekit.data.given",
}

__all__ = [
    "__version__",
    "evaluate",
    "fit",
    "load",
    "load_pruner",
    "prune",
    "save",
    "save_pruner",
    "task_of",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'prunekit' has no attribute {name!r}; it offers {', '.join(__all__)}")
