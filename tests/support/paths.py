"""Where things are in the checkout."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"


def visible(folder):
    """The names of what is in a folder, without seals and locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
