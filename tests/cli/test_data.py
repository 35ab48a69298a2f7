"""`prunekit data`: what it says about a task's data, and that it says it before anything is trained."""

from pathlib import Path

import pytest

from prunekit.cli import data
from prunekit.config.errors import ConfigError


def tickets(path, rows=60):
    lines = [
        f"ticket {number} {'ba de fi go ' * (number % 7)},{'help' if number % 3 else 'sales'}" for number in range(rows)
    ]
    path.write_text("text,label\n" + "\n".join([*lines, lines[-1], lines[1].replace("help", "sales")]) + "\n")
    return path


@pytest.fixture
def preview(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def of(*typed):
        code = data.main(["backbone=tiny", f"data.cache_dir={tmp_path / 'cache'}", *typed])
        return code, capsys.readouterr().out.splitlines()

    return of


def said(lines, label):
    return [line.removeprefix(label).strip() for line in lines if line.startswith(label)]


def test_a_table_is_described_with_what_may_go_wrong_and_what_to_type_next(preview, tmp_path):
    tickets(tmp_path / "t.csv")
    code, lines = preview("task=csv", "task.file=t.csv", "method=topk", "task.max_length=16")
    assert code == 0
    place = Path("t.csv").absolute()
    assert said(lines, "data")[0].startswith(f"csv, classification, from {place}; columns text=text, label=label")
    assert said(lines, "left out") == ["1 duplicates"]
    (rows,) = said(lines, "rows")
    assert rows.startswith("train ")
    assert said(lines, "labels")[0].startswith("help 6")
    assert "% cut at 16" in said(lines, "tokens")[0]
    assert sum("#" in line for line in lines) >= 3  # a histogram
    warnings = " | ".join(said(lines, "warning"))
    assert "are cut at 16 tokens; raise task.max_length" in warnings
    assert "2 rows have the same text as others and another label" in warnings
    (reduction,) = said(lines, "reduction")
    assert reduction.startswith("topk on tiny: up to ")
    assert lines[-1] == (
        f"next       python train.py backbone=tiny data.cache_dir={tmp_path / 'cache'} task=csv task.file=t.csv "
        "method=topk task.max_length=16 budget=2x"  # 3x is out of reach
    )
    assert not (tmp_path / "runs").exists()


def test_values_and_pairs_are_described_too(preview, tmp_path):
    rows = [f'{{"a": "ba de {number}", "b": "fi {number}", "score": {number / 4}}}' for number in range(24)]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    typed = ["task.text=a", "task.text_pair=b", "task.label=score", "task.kind=regression"]
    _, lines = preview("task=csv", "task.file=t.jsonl", *typed)
    assert "columns text=a, text_pair=b, label=score" in lines[0]
    assert said(lines, "labels") == ["values from 0 to 5.75, median 3"] or said(lines, "labels")[0].startswith("values")


def test_data_that_cannot_be_used_is_refused(preview, tmp_path):
    (tmp_path / "t.csv").write_text("text,label\na,1\n,2\n")
    with pytest.raises(ConfigError, match="the text in column 'text' is empty"):
        preview("task=csv", "task.file=t.csv")
    with pytest.raises(ConfigError, match=r"has texts and no labels\.\nAllowed: labelled tasks"):
        data.main(["task=domain_text", "method=wanda", "backbone=smollm2"])
