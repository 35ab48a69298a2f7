"""`prunekit import`: what is typed, and what is printed."""

import pytest
from support.published import write_ltp

from prunekit.cli.imports import main
from prunekit.config.errors import ConfigError


def test_a_checkpoint_becomes_a_folder_that_loads(tmp_path, monkeypatch, capsys):
    write_ltp(tmp_path / "sst2")
    monkeypatch.chdir(tmp_path)
    assert main(["ltp", "sst2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == (
        "thresholds layers 1..3: 0.0152, 0.0153, 0.0155, of scores in texts padded to 78 tokens"  # as many as it reads
    )
    assert printed[-2:] == [
        "written    sst2-prunekit",
        """next       python -c "import prunekit; model = prunekit.load('sst2-prunekit')\"""",
    ]
    with pytest.raises(ConfigError, match=r"sst2-prunekit exists\.\n.*\nGive another: out=sst2-prunekit_2"):
        main(["ltp", "sst2"])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], r"is not complete\.\nAllowed: top or ltp, and the folder"),
        (["bert", "folder"], r"prunekit import bert folder is not complete"),
        (["top", "nowhere"], r"nowhere is no folder .*\n.*\nType prunekit import top <folder>"),
        (["ltp", ".", "out=new", "prune_location=[2,3]"], r"prune_location=\[2, 3\] does not go with ltp"),
        (["top", ".", "profile=theirs"], r"profile=theirs .*\nAllowed: one of reference\|house"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(typed, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        main(typed)
