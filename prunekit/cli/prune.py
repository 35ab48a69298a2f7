"""`prunekit prune`: prune a model of one's own, with or without labels."""

from __future__ import annotations

from collections.abc import Sequence

from prunekit.cli.settings import asks_for_help, parse_settings, print_help
from prunekit.config.errors import ConfigError


def main(arguments: Sequence[str]) -> int:
    """Run, print the result, and copy the model if asked. Return 0, or 3 where the budget was missed.

    Raises:
        ConfigError: a setting, a model or a file that cannot be used.
    """
    if asks_for_help(arguments):
        return print_help("prune")
    given = parse_settings("prune", arguments)
    for key, example in (("model", "./my_model"), ("data", "texts.csv")):
        if given[key] is None:
            raise ConfigError(
                f"prune needs {key}=...\nAllowed: model=<folder or hub id> data=<file of texts>.\n"
                f"As prunekit prune model=./my_model data=texts.csv; add {key}={example}"
            )
    # these load Hydra, and --help does not
    from prunekit.pipelines.api.arguments import Typed
    from prunekit.pipelines.api.calls import prune

    pruned = prune(
        given["model"],
        given["data"],
        given["budget"],
        given["label"],
        text=given["text"],
        text_pair=given["text_pair"],
        method=given["method"],
        folder=given["runs_dir"],
        settings={key: Typed(value) for key, value in given["settings"].items()},
    )
    if given["out"] is not None:
        print(f"saved      {pruned.save(given['out'])}")
    return pruned.result.exit_code
