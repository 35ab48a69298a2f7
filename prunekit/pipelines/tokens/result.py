"""Build result.json of a token-pruning run."""

from __future__ import annotations

from prunekit.data.module import TokenPruningDataModule


def _test_split(data: TokenPruningDataModule) -> str:
    return "test" if data.has_test else "validation"
