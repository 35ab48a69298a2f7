"""prunekit trains, compares and deploys pruned Transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit.pretrained import load as load
    from prunekit.pretrained import save as save

__version__ = "0.1.0"
__all__ = ["__version__", "load", "save"]


def __getattr__(name: str) -> Any:
    """Imports `load` and `save` when they are asked for: `import prunekit` alone must not import torch."""
    if name in ("load", "save"):
        from prunekit import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module 'prunekit' has no attribute {name!r}; it offers {', '.join(__all__)}")
