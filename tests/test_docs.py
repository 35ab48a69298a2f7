"""The documentation: its reference is that of the code, and every page stands in the site's menu."""

import re
import shlex

import pytest
import yaml
from support.paths import ROOT
from support.scripts import script

from prunekit.cli.settings import parse_settings
from prunekit.config.composition import compose
from prunekit.config.validation import validate

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def reference():
    return script(DOCS / "reference.py")


def test_the_reference_is_that_of_the_code(reference):
    pages = reference.pages()
    for name, text in pages.items():
        assert (DOCS / "reference" / name).read_text(encoding="utf-8") == text, "run: python docs/reference.py"
    assert {file.name for file in (DOCS / "reference").iterdir()} == set(pages)


def test_a_key_is_told_with_its_default_and_what_it_takes(reference):
    keys = reference.pages()["keys.md"]
    assert "| `budget_tolerance` | `0.02` | float (0..0.5] | relative error of the FLOPs above which" in keys
    assert "| `force` | `false` | bool, *machine* |" in keys
    assert "| `method.init` | `null` | one of topk\\|open or null |" in keys


def test_a_field_of_a_result_is_told_with_its_type_and_its_comment(reference):
    page = reference.pages()["result.md"]
    assert "| `mean_length` | number | tokens |" in page
    assert "| `status` | `done` or `budget_missed` |  |" in page
    assert "| `goal` | [LatencyGoal](#latencygoal) or null |  |" in page


def pages_of(menu):
    for entry in menu:
        for name in entry.values() if isinstance(entry, dict) else [entry]:
            yield from [name] if isinstance(name, str) else pages_of(name)


def test_every_page_is_in_the_menu():
    menu = list(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if "example" not in path.parts}
    assert set(menu) == there
    assert len(menu) == len(there)


def test_the_picture_of_tokens_is_that_of_the_stored_run():
    assert (DOCS / "tokens.svg").read_text(encoding="utf-8") == script(DOCS / "tokens.py").drawn()


def commands(name):
    """The commands of a page's shell blocks, as lists of words."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    lines = [part for block in blocks for line in block.splitlines() for part in line.split("&&")]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line[:1] == ["prunekit"] and line[1] != "VERB"]


def test_the_commands_for_programs_are_accepted():
    found = commands("AGENTS.md")
    assert {line[1] for line in found} == {"data", "train", "table", "predict", "export", "serve", "import"}
    for _, verb, *given in found:
        if verb == "train":
            firsts = [word.split(",")[0] for word in given if word != "-m"]
            validate(*compose([word for word in firsts if not word.startswith("model=")]))
        else:
            parse_settings(verb, given)
