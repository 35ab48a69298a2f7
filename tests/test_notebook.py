"""The notebook runs: its cells in order, in one process, as a kernel runs them, on few rows."""

import ast
import json
import os
import subprocess
import sys

import pytest
from support.paths import ROOT

CELLS = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def run_cell(source, names):
    """Run a cell; return the value of its last expression, or what a line for the shell printed."""
    if source.startswith("!"):
        command = source[1:].format(**names).replace("prunekit", f"{sys.executable} -m prunekit", 1)
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, shell=True, env=env, check=True, capture_output=True, text=True).stdout
    body = ast.parse(source).body
    last = ast.Expression(body.pop().value) if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return None if last is None else eval(compile(last, "cell", "eval"), names)


def test_the_notebook_is_committed_without_outputs():
    assert not [cell for cell in CELLS if cell.get("outputs") or cell.get("execution_count")]
    assert len(CODE) >= 6
    for source in CODE:
        if not source.startswith("!"):
            ast.parse(source)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNEKIT_NOTEBOOK_ROWS", "48")
    names = {}
    shown = [run_cell(source, names) for source in CODE]
    table, topk, random, exported = (shown[at] for at in (2, 3, 4, 6))
    assert "topk" in table
    assert "random" in table
    # the same number of tokens in every layer, and not the same tokens
    assert topk.stories[0].counts == random.stories[0].counts
    assert topk.stories[0].depth != random.stories[0].depth
    assert "<svg" in topk._repr_html_()
    assert "labels" in exported
    packed, onnx = capsys.readouterr().out.splitlines()[-2:]
    assert packed.removeprefix("packed") == onnx.removeprefix("onnx")  # both engines give the same labels
