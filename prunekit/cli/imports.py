"""`prunekit import`: read a checkpoint of the ToP or LTP repository into a folder that prunekit loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunekit.cli.settings import asks_for_help, parse_settings, print_help
from prunekit.config.errors import DONE, ConfigError, shown
from prunekit.console import typed_path

REPOSITORIES = ("top", "ltp")


def main(arguments: Sequence[str]) -> int:
    """Read the checkpoint, write the folder, and print what was read. Return 0.

    Raises:
        ConfigError: not a repository and a folder, a folder that exists, or a checkpoint that cannot be used.
    """
    if asks_for_help(arguments):
        return print_help("import")
    given = parse_settings("import", arguments)
    repository, folder = _checkpoint(given["paths"])
    out = Path(given["out"] or f"{folder.resolve().name}-prunekit")
    if out.exists():
        raise ConfigError(
            f"{out} exists.\nAllowed: a folder that does not, so that nothing is overwritten.\n"
            f"Give another: out={typed_path(out)}_2"
        )
    if repository != "top" and given["prune_location"] is not None:
        raise ConfigError(
            f"prune_location={shown(given['prune_location'])} does not go with {repository}.\nAllowed: with top.\n"
            "Leave it out."
        )
    # torch takes seconds to import, and the answers above come without it
    from prunekit.pipelines.imports.importing import import_checkpoint
    from prunekit.pipelines.imports.published import Given

    about = Given(given["profile"], given["max_length"], given["labels"], given["prune_location"])
    found = import_checkpoint(repository, folder, out, about, given["tokenizer"])
    print("\n".join([*found.lines, f"written    {found.folder}"]))
    print(f'next       python -c "import prunekit; model = prunekit.load({str(found.folder)!r})"')
    return DONE


def _checkpoint(words: Sequence[str]) -> tuple[str, Path]:
    if len(words) != 2 or words[0] not in REPOSITORIES:
        raise ConfigError(
            f"prunekit import {shown(' '.join(words))} is not complete.\n"
            f"Allowed: {' or '.join(REPOSITORIES)}, and the folder of a checkpoint.\n"
            "Type prunekit import top <folder>"
        )
    folder = Path(words[1]).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"{shown(words[1])} is no folder (looked in {Path.cwd()}).\n"
            "Allowed: a folder on this machine; of a model on the hub, its download.\n"
            f"Type prunekit import {words[0]} <folder>"
        )
    return words[0], folder
