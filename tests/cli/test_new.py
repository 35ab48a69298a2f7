"""`prunekit new method NAME`: files that are a package, and a method that keeps every promise."""

import py_compile
import re

import pytest
import yaml
from support.plugins import write_metadata

from prunekit.cli.new import main, method_files
from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.config.validation import validate
from prunekit.conformance import MethodConformance


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package of `my_focus`, written by the command and found as an installed one is."""
    folder = tmp_path_factory.mktemp("new") / "package"
    assert main(["method", "my_focus", f"out={folder}"]) == 0
    write_metadata(folder, "prunekit-my-focus", "my_focus", "prunekit_my_focus")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


def test_the_files_are_method_keys_test_and_a_row_and_what_makes_them_a_package(installed):
    assert set(method_files("my_focus")) == {
        "prunekit_my_focus/__init__.py",
        "prunekit_my_focus/conf/method/my_focus.yaml",
        "test_my_focus.py",
        "README.md",
        "pyproject.toml",
    }
    for path, text in method_files("my_focus").items():
        assert (installed / path).read_text() == text
        assert not re.search(r"NAME|TITLE", text), path
        if path.endswith(".py"):
            py_compile.compile(str(installed / path), doraise=True)
    keys = yaml.safe_load((installed / "prunekit_my_focus/conf/method/my_focus.yaml").read_text())
    assert keys["_target_"] == "prunekit_my_focus.MyFocus"
    assert "| `my_focus` |" in (installed / "README.md").read_text()


@pytest.mark.usefixtures("installed")
class TestWritten(MethodConformance):
    """The suite that the written test inherits; in short here, and whole in the slow suite."""

    overrides = ("method=my_focus",)


for name in [name for name in vars(MethodConformance) if name.startswith("test_")]:
    if name not in ("test_padding_changes_nothing", "test_an_unknown_key_is_refused"):
        setattr(TestWritten, name, pytest.mark.slow(vars(MethodConformance)[name]))


@pytest.mark.usefixtures("installed")
def test_its_keys_are_checked_by_their_comments():
    validate(*compose(["method=my_focus", "budget=2x"]))
    with pytest.raises(ConfigError, match=r"method\.schedule=steep"):
        validate(*compose(["method=my_focus", "method.schedule=steep"]))


def test_the_last_lines_are_what_to_type_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["method", "other"]) == 0
    shown = capsys.readouterr().out
    assert "prunekit-other/prunekit_other/__init__.py\n" in shown
    assert shown.endswith(
        "\nnext\n cd prunekit-other\n pip install -e . pytest\n python -m pytest test_other.py"
        "\n prunekit train method=other task=bbc_news\n"
    )
    with pytest.raises(ConfigError, match=r"prunekit-other exists"):
        main(["method", "other"])


@pytest.mark.parametrize(
    ("words", "told", "typed"),
    [
        ([], "is not complete", "prunekit new method my_method"),
        (["method"], "is not complete", "prunekit new method my_method"),
        (["task", "mine"], "is not complete", "prunekit new method my_method"),
        (["method", "My-Method"], "cannot be the name of a method", "prunekit new method my_method"),
        (["method", "2x"], "cannot be the name of a method", "prunekit new method x"),
        (["method", "class"], "cannot be the name of a method", "prunekit new method my_class"),
        (["method", "../up"], "cannot be the name of a method", "prunekit new method up"),
        (["method", "topk"], "there is a method topk already", "prunekit new method my_topk"),
    ],
)
def test_what_cannot_be_made_is_told_and_nothing_is_written(words, told, typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        main(words)
    first, _, last = str(refused.value).splitlines()
    assert told in first
    assert last == f"Type {typed}"
    assert list(tmp_path.iterdir()) == []
