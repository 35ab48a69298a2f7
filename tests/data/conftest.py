"""What the tests of data share."""

import pytest

from prunekit.models.tiny import build_tiny_backbone


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    for family in ("bert", "distilbert"):
        build_tiny_backbone(folder / family, family)
    return folder
