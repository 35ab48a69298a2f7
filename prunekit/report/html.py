"""`prunekit report`: finished runs as one HTML file that needs nothing but a browser.

prunekit report                                   # the runs in runs/, into report.html
prunekit report runs task=cola out=cola.html
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any


def page(numbers: Mapping[str, Any]) -> str:
    """Write the page about the numbers of `study`; style, script and data are inside."""
    parts = files("prunekit.report") / "page"
    read = {name: (parts / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    # inside a script element only "<" could end it
    data = json.dumps(numbers, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    title = html.escape(str(numbers["title"]))
    inserted = {"STYLE": read["css"], "SCRIPT": read["js"], "TITLE": title, "DATA": data}
    # in one pass: a title that reads %DATA% is a title
    return re.sub("%(STYLE|SCRIPT|TITLE|DATA)%", lambda mark: inserted[mark[1]], read["html"])
