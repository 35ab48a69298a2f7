"""Upload the folder of a model to the hub."""

from __future__ import annotations

from pathlib import Path

from prunekit.config.errors import ConfigError, first_line, shorten
from prunekit.models.sources import is_hub_id

CARD = "README.md"
LEFT_OUT = [".*", "**/.*"]  # seals, which belong to the copy on this machine


def push_folder(folder: Path, repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a folder to a repository of the hub, which is made if it does not exist, and return its address.

    Raises:
        ConfigError: it holds no model with a card, the name is none, or the hub does not take it.
    """
    if repo.count("/") != 1 or not is_hub_id(repo):
        raise ConfigError(
            f"repo={shorten(repo)} is no name on the hub, or a folder here.\nAllowed: owner/name.\n"
            "Give it as repo=me/my_model-3x."
        )
    lacking = [name for name in ("config.json", "model.safetensors", CARD) if not (folder / name).is_file()]
    if lacking:
        raise ConfigError(
            f"{folder} has no {' and no '.join(lacking)}.\n"
            "Allowed: the model of a finished run, or a copy of it, with its card.\nGive the folder of a run."
        )
    # slow to import, and only the hub needs it
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi(token=token)
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, ignore_patterns=LEFT_OUT, commit_message="Upload with prunekit"
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ConfigError(
            f"{repo} cannot be uploaded ({shorten(first_line(error), 160)}).\n"
            "Allowed: a repository that your token may write.\nLog in with: hf auth login"
        ) from error
    return str(url)
