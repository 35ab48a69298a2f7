"""A saved model names classes of prunekit and of installed plug-ins; no name is imported."""

import ast
import sys
from importlib.metadata import EntryPoint

import pytest
from support.paths import ROOT

from prunekit.config import search_path
from prunekit.config.errors import ConfigError
from prunekit.models import parts
from prunekit.models.parts import find_class
from prunekit.tokens.policies import KeepPolicy, KeepRatio
from prunekit.tokens.scorers import Scorer
from prunekit.tokens.task_attention import TaskImportance

MODULE = "from prunekit.tokens.scorers import Scorer\n\n\nclass Mine(Scorer):\n    pass\n"


def test_prunekit_s_own_parts_are_known():
    assert find_class("prunekit.tokens.policies.KeepRatio", KeepPolicy, "f") is KeepRatio
    assert find_class("prunekit.tokens.task_attention.TaskImportance", Scorer, "f") is TaskImportance


def test_every_part_is_known_in_a_process_that_trained_nothing():
    """Read from the source: this process may have imported more than the one that loads a model."""
    found = {
        path.stem
        for path in (ROOT / "prunekit" / "tokens").glob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
        and {getattr(base, "id", "") for base in node.bases} & {"KeepPolicy", "Scorer"}
    }
    assert {"policies", "scorers"} <= found
    assert found <= {module.__name__.rpartition(".")[2] for module in parts.OWN}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nowhere.Policy", "which is not installed here"),
        ("builtins.eval", "which is no KeepPolicy; refused"),
        ("os.system", "which is no KeepPolicy; refused"),
        ("prunekit.tokens.scorers.AttentionReceived", "which is no KeepPolicy; refused"),
        ("prunekit.tokens.policies.os.system", "which is no KeepPolicy; refused"),
        ("prunekit.__main__.main", "which is no KeepPolicy; refused"),
        ("evil.Policy", "which is no KeepPolicy; refused"),
        ("", "which is not installed here"),
        ("...", "which is not installed here"),
        ("a" * 500, "which is not installed here"),
    ],
)
def test_no_name_is_imported(tmp_path, monkeypatch, name, why):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=why) as raised:
        find_class(name, KeepPolicy, "prunekit.json")
    assert len(str(raised.value).splitlines()[0]) < 160
    assert not (tmp_path / "ran").exists()
    assert "evil" not in set(sys.modules) - before


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """An installed plug-in, whose method is in a module that its package does not import."""
    package = tmp_path / "gifted_plugin"
    (package / "conf" / "method").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text(MODULE)
    (package / "other.py").write_text("raise SystemExit('imported')\n")
    (package / "method.py").write_text("from gifted_plugin.parts import Mine\n\nMethod = Mine\n")
    (package / "conf" / "method" / "gifted.yaml").write_text("_target_: gifted_plugin.method.Method\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [EntryPoint("gifted", "gifted_plugin", search_path.PLUGINS)]
    monkeypatch.setattr(search_path, "entry_points", lambda group: points)
    yield package
    for name in [name for name in sys.modules if name.startswith("gifted_plugin")]:
        del sys.modules[name]


def test_a_plug_in_s_parts_are_found_with_its_methods(plugin):
    assert find_class("gifted_plugin.parts.Mine", Scorer, "f").__qualname__ == "Mine"
    with pytest.raises(ConfigError, match="which is no Scorer; refused"):
        find_class("gifted_plugin.other.Mine", Scorer, "f")
    assert "gifted_plugin.other" not in sys.modules


def test_a_broken_plug_in_is_named(plugin):
    (plugin / "method.py").write_text("import nowhere_at_all\n")
    with pytest.raises(ConfigError, match=r"gifted_plugin\.method\.Method cannot be imported"):
        find_class("gifted_plugin.parts.Yours", Scorer, "f")
