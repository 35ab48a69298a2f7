"""Packages that only some runtimes need: imported when they are used, with a word on how to get them."""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType

# package -> the extra of prunekit that brings it
EXTRA = {
    "onnx": "export",
    "onnxruntime": "export",
    "openvino": "export",
    "ctranslate2": "peers",
    "nncf": "peers",
    "triton": "triton",
}


class MissingPackageError(ImportError):
    """A package that this runtime needs is not installed."""


def need(package: str, what: str) -> ModuleType:
    """The package, imported.

    Raises:
        MissingPackageError: it is not installed; says what needs it and how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        extra = EXTRA[package]
        raise MissingPackageError(
            f"{what} needs the package {package}, which is not installed ({error}).\n"
            f"Allowed: {package} alone, or the extra [{extra}] of prunekit.\n"
            f"pip install 'prunekit[{extra}]'   (or pip install {package})"
        ) from error


def version(package: str) -> str | None:
    """The installed version; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
