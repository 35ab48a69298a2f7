"""Letters that a font lacks: another font, else code points, and never a warning."""

import warnings
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry

from prunekit.results import fonts
from prunekit.results.fonts import families, legible


@pytest.fixture
def own_fonts(monkeypatch: pytest.MonkeyPatch):
    """The fonts that come with matplotlib alone, whatever this machine has."""
    own = [font for font in fonts.font_manager.fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(fonts.font_manager.fontManager, "ttflist", own)
    forget()
    yield own
    forget()


def forget() -> None:
    fonts._fonts.cache_clear()
    fonts.font_of.cache_clear()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("good été ab", "good été ab"),
        ("عربى", "عربى"),
        ("日本 ok", "U+65E5 U+672C ok"),
        ("a\nb\x00", "a U+000A b U+0000"),
        ("\ud83d", "U+D83D"),
        ("a\u200bb\ufeff", "ab"),
        ("👩\u200d👧", "U+1F469 U+1F467"),
        ("$5 to $6", r"\$5 to \$6"),
    ],
)
def test_a_letter_that_no_font_has_is_its_code_point(text: str, shown: str, own_fonts: list[FontEntry]):
    assert legible(text) == shown
    assert families([text]) == ["DejaVu Sans"]
    figure = Figure()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.text(0, 0, legible(text), fontfamily=families([text]))
        figure.canvas.draw()


def test_a_font_that_has_the_letter_is_used_before_code_points(own_fonts: list[FontEntry], tmp_path: Path):
    whole = next(font for font in own_fonts if font.name.startswith("Last Resort"))  # has a box for every letter
    own_fonts.append(FontEntry(fname=whole.fname, name="Noto Sans CJK JP", style="normal", weight="400"))
    own_fonts.append(FontEntry(fname=str(tmp_path / "none.ttf"), name="Aa", style="normal", weight="400"))
    assert legible("ok 日本") == "ok 日本"
    assert families(["ok", "日本"]) == ["DejaVu Sans", "Noto Sans CJK JP"]
