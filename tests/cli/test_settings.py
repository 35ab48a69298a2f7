"""The grammar of settings: how a value is read, and what stands without a name."""

import pytest

from prunekit.cli.settings import parse_settings, print_help
from prunekit.config.errors import ConfigError

FILE = """# python tools/weigh.py [PATH ...] [key=value ...]
paths: [runs]   # list of path; typed without the name
where: {}       # block; conditions, typed without the name
names: [a]      # list of text
sizes: null     # list of int 1.. or null
title: weights  # text
out: null       # path or null
quick: false    # bool
count: 3        # int 1..9 or null
"""
DEFAULTS = {
    "paths": ["runs"], "where": {}, "names": ["a"], "sizes": None, "title": "weights", "out": None, "quick": False,
    "count": 3,
}  # fmt: skip


@pytest.fixture
def script(tmp_path):
    """A script's settings file."""
    (tmp_path / "tools").mkdir()
    file = tmp_path / "tools" / "weigh.yaml"
    file.write_text(FILE)
    return file


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ([], {}),
        (["count=4", "quick=true", "count=5"], {"count": 5, "quick": True}),
        (["count=null", "out="], {"count": None}),
        (["title=1e5", "out=2024"], {"title": "1e5", "out": "2024"}),  # text is never a number
        (["title=a, b: [c]"], {"title": "a, b: [c]"}),
        (["names=[b,c]"], {"names": ["b", "c"]}),
        (["names=b, c"], {"names": ["b", "c"]}),  # a list needs no brackets
        (["names=1,true"], {"names": ["1", "true"]}),
        (["names=[]", "sizes=8"], {"names": [], "sizes": [8]}),
        (["sizes=1,32"], {"sizes": [1, 32]}),
        (["sizes=[1, 32]"], {"sizes": [1, 32]}),
        (["sizes=null"], {"sizes": None}),
        (["here", "there/lr=1e-4"], {"paths": ["here", "there/lr=1e-4"]}),
        (["paths=here,there"], {"paths": ["here", "there"]}),
        (["task=cola,sst2", "lr=1e-4", "count=2"], {"where": {"task": "cola,sst2", "lr": "1e-4"}, "count": 2}),
        (["where=x"], {"where": {"where": "x"}}),
        (["where.count=2"], {"where": {"count": "2"}}),  # a condition that is called as a setting is
    ],
)
def test_words_become_values(words, values, script):
    assert parse_settings(script, words) == DEFAULTS | values


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("count=10", "count=10 is out of range.\nAllowed: int 1..9 or null.\npython tools/weigh.py --help"),
        ("quick=yess", "quick=yess is not true or false.\nAllowed: bool."),
        ("sizes=[1", "sizes=[1 is not a list."),
        ("sizes=0,1", "sizes=[0, 1] holds 0, which is out of range.\nAllowed: list of int 1.. or null."),
        ("names=null", "names=null is not a list."),
        ("x" * 300, "is not a path: a name in it has 300"),
        ("--cout=3", "Unknown setting of weigh: --cout=3.\nAllowed: paths, where, names, "),
        ("--cout=3", "\nDid you mean count=...?"),
        ("-x", "\npython tools/weigh.py --help explains them."),
        ("--count=3", "--count=3: settings have no dashes.\nAllowed: key=value.\nType: python tools/weigh.py count=3"),
    ],
)
def test_what_cannot_be_is_answered_in_three_lines(word, message, script):
    with pytest.raises(ConfigError) as refused:
        parse_settings(script, [word])
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 3


def test_without_conditions_and_paths_every_word_is_a_setting(script):
    script.write_text(FILE.replace("paths:", "#").replace("where:", "#"))
    for word, advice in (("here", "--help explains them"), ("tite=x", "Did you mean title=...?")):
        with pytest.raises(ConfigError, match=f"Unknown setting of weigh: {word}") as refused:
            parse_settings(script, [word])
        assert advice in str(refused.value)


def test_help_is_the_commented_file(script, capsys):
    assert print_help(script) == 0
    assert capsys.readouterr().out == FILE
