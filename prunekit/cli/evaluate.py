"""`prunekit evaluate`: measure a saved model on a task or a file."""

from __future__ import annotations

from collections.abc import Sequence

from prunekit.cli.settings import asks_for_help, parse_settings, print_help
from prunekit.config.errors import DONE, ConfigError


def main(arguments: Sequence[str]) -> int:
    """Evaluate, and print score, FLOPs and tokens by layer. Return 0.

    Raises:
        ConfigError: a setting, a model or a file that cannot be used.
    """
    if asks_for_help(arguments):
        return print_help("evaluate")
    given = parse_settings("evaluate", arguments)
    if given["model"] is None or (given["task"] == "csv") == (given["data"] is None):
        raise ConfigError(
            "evaluate needs model=... and either data=... or task=...\n"
            "Allowed: model=<folder> data=<file>, or model=<folder> task=<name>.\n"
            "As prunekit evaluate model=./my_model-3x data=test.csv"
        )
    # these load Hydra, and --help does not
    from prunekit.pipelines.api.arguments import Typed
    from prunekit.pipelines.api.calls import evaluate

    found = evaluate(
        given["model"],
        given["task"],
        given["data"],
        text=given["text"],
        text_pair=given["text_pair"],
        label=given["label"],
        settings={key: Typed(value) for key, value in given["settings"].items()},
    )
    found.report()
    return DONE
