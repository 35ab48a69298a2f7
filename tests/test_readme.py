"""The README is true: its commands run (shortened), its Python works, its table is that of the committed result."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from support.bench_result import RESULT
from support.exported import PRUNERS, stored_run
from support.paths import ROOT
from support.scripts import script
from support.stored_runs import result, store
from support.weight_runs import SMALL as SMALL_WEIGHTS

from prunekit.cli import main
from prunekit.config.search_path import conf_dir
from prunekit.pipelines.tokens.latency_goal import Aim
from prunekit.report.rows import collect, save
from prunekit.results.summary import markdown
from prunekit.runs.result import RunResult

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
VERBS = [line.split("  #")[0].split(" # ")[0] for line in LINES if line.startswith("prunekit ")]
DEPLOYED = [line for line in VERBS if line.split()[1] in ("export", "bench")]
COMPARISONS = [line for line in VERBS if line not in DEPLOYED and line.split()[1] != "serve"]  # tests/cli/test_serve.py
COMMANDS = [line.split("  #")[0].strip() for line in LINES if "train.py" in line]
SHORT = [
    "backbone=tiny",
    "trainer=debug",
    "plots=false",
    "trainer.epochs=1",
    "teacher.epochs=1",
    "logger.wandb.enabled=false",
    "bench.examples=2",
    "bench.rounds=1",
    "budget_tolerance=0.5",
    "budget=1.5x",
]


def tickets(folder):
    rows = [f"the {('printer', 'invoice')[n % 2]} number {n} is broken,{('it', 'billing')[n % 2]}" for n in range(64)]
    (folder / "tickets.csv").write_text("body,queue\n" + "\n".join(rows) + "\n")


def shortened(command, folder):
    """The arguments of a command of the README, on a tiny model and generated sentences."""
    words = shlex.split(command)
    words = words[1:] if words[0] == "./run" else words
    assert words[:2] == ["python", "train.py"]
    given = words[2:]
    weights = any(word.startswith("task=domain") for word in given)
    # the task's shortening holds for every text task; the method and the task stay those of the command
    short = [word for word in SMALL_WEIGHTS if not word.startswith("task=")] if weights else SHORT
    extra = [*short, f"runs_dir={folder / 'runs'}", f"data.cache_dir={folder / 'cache'}"]
    if "task=csv" not in given and not weights:
        extra.append("task.synthetic_rows=48")
    if any(word.startswith("experiment=top") for word in given):
        extra += ["method.prune_location=[1,2,3]", "method.warmup_epochs=1", "trainer.evals_per_epoch=1"]
        extra.remove("budget=1.5x")
    elif not any(word.startswith(("method=", "experiment=")) for word in given) or "method=top" in given:
        extra.append("method.bins=8")
    if "method=lat" in given:
        extra += ["method.iterations=1", "method.population=1"]
    if any(word in ("task=wmt16_en_de", "task=parallel") for word in given):
        extra[extra.index("backbone=tiny")] = "backbone=tiny_translator"
    if any(word.startswith("goal.latency_ms=") for word in given):
        extra.remove("budget=1.5x")
    chosen = {word.split("=")[0] for word in given}
    return [*given, *(word for word in extra if word.split("=")[0] not in chosen - {"backbone"})]


def run(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return main.train(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tickets(tmp_path)
    # a tiny model is as fast as any goal; what is made of a goal is the matter of test_latency.py
    monkeypatch.setattr("prunekit.pipelines.tokens.latency_goal.translate", lambda *_: Aim(1.5, 100.0, 50.0, 200.0))
    missed_is_fine = (0, 3)  # so short a run need not meet a budget
    assert run(shortened(command, tmp_path), monkeypatch) in missed_is_fine


@pytest.mark.slow
@pytest.mark.parametrize("command", COMPARISONS)
def test_every_command_that_compares_runs_runs(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for task in ("cola", "sst2"):
        for method, budget in (("dense", "dense"), ("top", "2x"), ("topk", "2x")):
            store(tmp_path / "runs", result(method, budget, 1, 0.5, task=task))
    save(collect(["runs"]).rows, Path("results.json"))
    with pytest.raises(SystemExit) as ended:
        main.main(shlex.split(command)[1:])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "top" in shown or re.search(r"report\.html: \d+ runs", shown)


# those on a run do in short what the tests of export and bench do
@pytest.mark.slow
@pytest.mark.parametrize("command", DEPLOYED)
def test_every_command_that_deploys_or_measures_runs(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)[1:]
    if any(word.startswith("run=") for word in words):
        monkeypatch.setattr("prunekit.bench.machine.PEAK_SIDE", 64)
        folder = stored_run(tmp_path, "topk", PRUNERS["topk"]())
        words = [f"run={folder}" if word.startswith("run=") else word for word in words]
        words += ["int8=false", "rows=4"] if words[0] == "export" else ["examples=4", "batch_sizes=[2]", "peers=none"]
    if "model=./my_model" in words:
        tickets(tmp_path)
        (stored_run(tmp_path, "topk", None) / "model").rename(tmp_path / "my_model")
        words.append("batch_sizes=[2]")
    if "from=bench.json" in words:
        (tmp_path / "bench.json").write_text(json.dumps(RESULT.to_json()))
        (tmp_path / "RESULTS.md").write_text("<!-- bench -->\n<!-- end of bench -->\n")
    with pytest.raises(SystemExit) as ended:
        main.main(words)
    assert ended.value.code == 0


def test_there_are_commands_to_run():
    assert len(COMMANDS) >= 8


@pytest.mark.slow
def test_the_three_lines_of_python_run(tmp_path, monkeypatch, capsys):
    run(shortened("python train.py", tmp_path), monkeypatch)
    (folder,) = (tmp_path / "runs").glob("bbc_news/top/*/*/*/model")
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    namespace = {}
    exec(re.sub(r'"runs/[^"]*"', repr(str(folder)), block), namespace)
    assert namespace["logits"].shape == (1, 5)
    assert namespace["labels"] == [namespace["model"].config.id2label[int(namespace["logits"].argmax())]]


@pytest.mark.slow
def test_the_tables_are_those_of_the_committed_results():
    readme = script(ROOT / "benchmarks" / "readme.py")
    for page in readme.PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert readme.rewritten(page, text) == text
    with pytest.raises(ValueError, match="0 blocks named main job"):
        readme.rewritten("README.md", "")
    result = RunResult.from_json(json.loads((ROOT / "benchmarks" / "results" / "main_job.json").read_text()))
    assert markdown(result) in README
    assert result.method == "top"
    assert result.task == "bbc_news"


def test_every_method_has_a_row():
    for file in (conf_dir() / "method").glob("*.yaml"):
        assert f"| `{file.stem}` |" in README or f"| [`{file.stem}`](" in README


def test_every_link_to_a_file_leads_to_one():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
