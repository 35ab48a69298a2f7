"""prunekit trains, compares and deploys pruned Transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit.pretrained import load as load
    from prunekit.pretrained import load_pruner as load_pruner
    from prunekit.pretrained import save as save
    from prunekit.pretrained import save_pruner as save_pruner

__version__ = "0.1.0"
_OF_PRETRAINED = ("load", "load_pruner", "save", "save_pruner")
__all__ = ["__version__", "load", "load_pruner", "save", "save_pruner"]


def __getattr__(name: str) -> Any:
    """Imports what loads and saves when it is asked for: `import prunekit` alone must not import torch."""
    if name in _OF_PRETRAINED:
        from prunekit import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module 'prunekit' has no attribute {name!r}; it offers {', '.join(__all__)}")
