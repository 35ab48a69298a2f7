"""`prunekit dashboard`: the W&B workspace as a file or on the server."""

from __future__ import annotations

import json
from collections.abc import Sequence

from prunekit.cli.settings import asks_for_help, parse_settings, print_help
from prunekit.config.errors import DONE, ConfigError, first_line
from prunekit.files import atomic_write_text


def main(arguments: Sequence[str]) -> int:
    """Build the workspace and save it, or write its definition to `out`. Return 0.

    Raises:
        ConfigError: a setting that is not allowed, no wandb-workspaces, no owner, or a server that refuses.
    """
    if asks_for_help(arguments):
        return print_help("dashboard")
    given = parse_settings("dashboard", arguments)
    entity, out = given["entity"], given["out"]
    if entity is None and out is None:
        raise ConfigError(
            "entity is not given: on the server a workspace has an owner.\nAllowed: entity=<your W&B user or team>.\n"
            "prunekit dashboard out=workspace.json writes the definition without any account."
        )
    # the loggers import Lightning, and the answers above come without it
    from prunekit.loggers.dashboard import build, definition
    from prunekit.loggers.wandb import has_wandb_key

    workspace = build(entity or "", given["project"], given["name"], given["axes"])
    if out is not None:
        atomic_write_text(out, json.dumps(definition(workspace), indent=1, sort_keys=True) + "\n")
        print(out)
        return DONE
    if not has_wandb_key():  # asked first, because W&B would ask on the terminal and wait
        raise ConfigError(
            "there is no key for the W&B server.\nAllowed: WANDB_API_KEY, or `wandb login` once.\n"
            "Or add out=FILE to write the definition alone."
        )
    try:
        workspace.save()
    except Exception as error:  # of the network, of the server, of the account
        raise ConfigError(
            f"the workspace could not be saved ({first_line(error)}).\n"
            "Allowed: an entity and a project that the key may write.\nCorrect them, or add out=FILE."
        ) from error
    print(workspace.url)
    return DONE
