"""The error of data that cannot be used."""

from __future__ import annotations

from prunekit.config.errors import ConfigError


class DataError(ConfigError):
    """Data that cannot be used; the message names the file, the row and what to do."""
