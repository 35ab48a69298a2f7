"""Optional packages of runtimes and of the server: imported when used, with an error that says how to install them."""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType

# package -> the extra of prunekit that installs it
EXTRA = {
    "onnx": "export",
    "onnxruntime": "export",
    "openvino": "export",
    "ctranslate2": "peers",
    "nncf": "peers",
    "triton": "triton",
    "fastapi": "serve",
    "uvicorn": "serve",
}


class MissingPackageError(ImportError):
    """A package that a runtime needs is not installed."""


def need(package: str, what: str) -> ModuleType:
    """Import and return a package; `what` names in the error message what needs it.

    Raises:
        MissingPackageError: the package is not installed; the message says how to install it.
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
    """Return the installed version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
