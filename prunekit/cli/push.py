"""`prunekit push`: upload a pruned model with its card to the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunekit.cli.settings import asks_for_help, parse_settings, print_help
from prunekit.config.errors import DONE, ConfigError
from prunekit.pipelines.api.hub import push_folder
from prunekit.runs.finished import open_run


def main(arguments: Sequence[str]) -> int:
    """Upload, and print the address. Return 0.

    Raises:
        ConfigError: a setting or a run that cannot be used, or the hub does not take it.
    """
    if asks_for_help(arguments):
        return print_help("push")
    given = parse_settings("push", arguments)
    if given["repo"] is None or (given["run"] is None) == (given["model"] is None):
        raise ConfigError(
            "push needs repo=... and one of run=... and model=...\nAllowed: run=<folder of a run> repo=owner/name.\n"
            "As prunekit push run=runs/... repo=me/my_model-3x"
        )
    folder = Path(given["model"]) if given["run"] is None else open_run(given["run"]).model
    print(push_folder(folder, given["repo"], private=given["private"]))
    return DONE
