"""The logger of docs/sweeps.md, built from the page as a package of its own: one module and one file."""

import re
import sys

import pytest
from support.paths import ROOT
from support.plugins import write_metadata

from prunekit.config.composition import compose
from prunekit.config.validation import validate
from prunekit.loggers.session import tracking
from prunekit.runs.folder import RunFolder

PAGE = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
KEYS, CODE = re.findall(r"^```(?:yaml\n# conf/logger|python\n)(.*?)```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The page's package as an installed distribution."""
    place = tmp_path / "site"
    (place / "prunekit_diary" / "conf" / "logger").mkdir(parents=True)
    (place / "prunekit_diary" / "__init__.py").write_text(CODE)
    (place / "prunekit_diary" / "conf" / "logger" / "diary.yaml").write_text(f"# conf/logger{KEYS}")
    write_metadata(place, "prunekit-diary", "diary", "prunekit_diary")
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.delitem(sys.modules, "prunekit_diary", raising=False)


def test_the_page_s_logger_writes_its_diary(package, tmp_path):
    cfg, choices = compose(
        ["logger=[default,diary]", "logger.wandb.enabled=false", "logger.diary.file=my.txt", f"runs_dir={tmp_path}"]
    )
    validate(cfg, choices)
    folder = RunFolder.of(cfg)
    folder.path.mkdir(parents=True)
    with tracking(cfg, folder) as loggers:
        for logger in loggers:
            logger.log_metrics({"loss": 0.5}, step=4)
    assert (folder.path / "my.txt").read_text() == "4 {'loss': 0.5}\n"
