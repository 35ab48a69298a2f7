"""`prunekit dashboard`: the W&B workspace as a file or on the server, or drawn from offline runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunekit.cli.settings import asks_for_help, parse_settings, print_help
from prunekit.config.errors import DONE, ConfigError, first_line
from prunekit.files import atomic_write_bytes, atomic_write_text

PANELS = "panels.json"


def main(arguments: Sequence[str]) -> int:
    """Build the workspace and save it, write its definition to `out`, or draw it there from `runs`. Return 0.

    Raises:
        ConfigError: a setting that is not allowed, no wandb-workspaces, no owner, no runs, or a server that refuses.
    """
    if asks_for_help(arguments):
        return print_help("dashboard")
    given = parse_settings("dashboard", arguments)
    if given["entity"] is None and given["out"] is None:
        raise ConfigError(
            "entity is not given: on the server a workspace has an owner.\nAllowed: entity=<your W&B user or team>.\n"
            "prunekit dashboard out=workspace.json writes the definition without any account."
        )
    if given["runs"] is not None:
        return _draw(given)
    # the loggers import Lightning, and the answers above come without it
    from prunekit.loggers.dashboard import build, definition

    workspace = build(given["entity"] or "", given["project"], given["name"], given["axes"])
    if given["out"] is None:
        return _save(workspace)
    atomic_write_text(given["out"], json.dumps(definition(workspace), indent=1, sort_keys=True) + "\n")
    print(given["out"])
    return DONE


def _save(workspace: Any) -> int:
    from prunekit.loggers.wandb import has_wandb_key  # as above

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


def _draw(given: Mapping[str, Any]) -> int:
    from prunekit.loggers import drawing, offline, panels  # as above
    from prunekit.loggers.dashboard import build, definition  # as above

    if given["out"] is None:
        raise ConfigError(
            "out is not given: pictures are files.\nAllowed: a folder.\n"
            f"prunekit dashboard runs={given['runs']} out=pictures"
        )
    source, folder = Path(given["runs"]), Path(given["out"])
    if source.is_file():
        read = [panels.Panel(**panel) for panel in json.loads(source.read_text(encoding="utf-8"))]
    else:
        runs = offline.read_runs(source)
        if not runs:
            raise ConfigError(
                f"runs={source}: no offline W&B run is in it.\nAllowed: a folder with runs that W&B recorded offline.\n"
                "Train with wandb.mode=offline, or name the folder that runs_dir= named."
            )
        read = panels.evaluate(definition(build("", given["project"], given["name"], given["axes"])), runs)
        atomic_write_text(folder / PANELS, panels.to_text(read))
        shown = [run.file("tokens/heatmap") for run in runs if "tokens/heatmap.path" in run.summary]
        for picture in shown[:1]:
            shutil.copyfile(picture, folder / "tokens.png")
    for name, group in drawing.sections(read).items():
        file = folder / f"{name.lower().replace(' ', '_')}.svg"
        atomic_write_bytes(file, drawing.svg(group))
        print(file)
    return DONE
