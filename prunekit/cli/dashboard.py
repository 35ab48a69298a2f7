"""`prunekit dashboard`: the W&B workspace as a file or on the server."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence

from prunekit.config.errors import ConfigError
from prunekit.files import atomic_write_text
from prunekit.loggers.dashboard import build, definition

SETTINGS = {"entity": "", "project": "prunekit", "name": "Pruning comparison", "out": ""}


def main(arguments: Sequence[str]) -> int:
    """Builds the workspace and saves it, or writes its definition to `out`. Returns the exit code.

    Raises:
        ConfigError: an unknown setting, no entity, no wandb-workspaces, or a server that refuses.
    """
    given = SETTINGS | _settings(arguments)
    if not given["entity"]:
        raise ConfigError(
            "the workspace has no owner.\nAllowed: entity=<your W&B user or team>.\n"
            "With out=FILE the definition is written without any account."
        )
    workspace = build(given["entity"], given["project"], given["name"])
    if given["out"]:
        atomic_write_text(given["out"], json.dumps(definition(workspace), indent=1, sort_keys=True) + "\n")
        print(given["out"])
        return 0
    from prunekit.loggers.wandb import has_wandb_key

    if not has_wandb_key():  # asked first, because W&B would ask on the terminal and wait
        raise ConfigError(
            "there is no key for the W&B server.\nAllowed: WANDB_API_KEY, or `wandb login` once.\n"
            "Or add out=FILE to write the definition alone."
        )
    try:
        workspace.save()
    except Exception as error:  # of the network, of the server, of the account
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"the workspace could not be saved ({first[:160]}).\n"
            "Allowed: an entity and a project that the key may write.\nCorrect them, or add out=FILE."
        ) from error
    print(workspace.url)
    return 0


def _settings(arguments: Sequence[str]) -> dict[str, str]:
    found = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in SETTINGS:
            near = difflib.get_close_matches(key, SETTINGS, n=1)
            advice = f"Did you mean {near[0]}=...?" if near else "prunekit dashboard entity=my-team"
            raise ConfigError(f"{argument} is no setting of dashboard.\nAllowed: {', '.join(SETTINGS)}.\n{advice}")
        found[key] = value
    return found
