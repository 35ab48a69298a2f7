"""The README and the pages after it are true: commands run (shortened), and tables are of committed results."""

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
from prunekit.cli.settings import parse_settings
from prunekit.config.composition import compose
from prunekit.config.search_path import conf_dir
from prunekit.config.validation import validate
from prunekit.pipelines.tokens.latency_goal import Aim
from prunekit.report.rows import collect, save
from prunekit.results.summary import markdown
from prunekit.runs.result import RunResult

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", "docs/index.md", "docs/train.md", "docs/use.md", "docs/compare.md", "docs/methods/index.md")


def blocks(page, language):
    """The code blocks of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


# a command that stands on two pages is run once
LINES = dict.fromkeys(
    re.split(r"\s+# ", line)[0].strip()
    for page in PAGES
    for block in blocks(page, "bash")
    for line in block.splitlines()
)
VERBS = {verb: [line for line in LINES if line.split()[:2] == ["prunekit", verb]] for verb in main.VERBS}
COMPARISONS = VERBS["table"] + VERBS["report"]
ON_A_RUN = [
    line for verb in ("data", "prune", "predict", "export", "bench") for line in VERBS[verb]
]  # serve: tests/cli/test_serve.py
COMMANDS = [line for line in LINES if "train.py" in line]
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


def my_model(folder):
    """A fine-tuned model that knows the queues of the tickets."""
    (stored_run(folder, "topk", None, labels=("billing", "it")) / "model").rename(folder / "my_model")
    for name in ("prunekit.json", "prunekit.safetensors"):
        (folder / "my_model" / name).unlink(missing_ok=True)


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
    if "method.also=[2x,4x]" in given:  # out of reach for so few tokens
        given = [word for word in given if word not in ("budget=3x", "method.also=[2x,4x]")] + ["method.also=[1.2x]"]
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
    if "model=./my_model" in command:
        my_model(tmp_path)
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


# those on a run do in short what the tests of each verb do
@pytest.mark.slow
@pytest.mark.parametrize("command", ON_A_RUN)
def test_every_command_on_data_or_a_model_runs(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tickets(tmp_path)
    monkeypatch.setattr("prunekit.bench.machine.PEAK_SIDE", 64)
    short = {"export": ["int8=false", "rows=4"], "bench": ["examples=4", "batch_sizes=[2]", "peers=none"]}
    _, verb, *words = shlex.split(command)
    if any(word.startswith("run=") for word in words):
        folder = stored_run(tmp_path, "topk", PRUNERS["topk"]())
        words = [f"run={folder}" if word.startswith("run=") else word for word in words] + short.get(verb, [])
    if "model=./my_model" in words:
        my_model(tmp_path)
        words += {"prune": ["bench.examples=2", "bench.rounds=1"]}.get(verb, ["batch_sizes=[2]"])
    if "from=bench.json" in words:
        (tmp_path / "bench.json").write_text(json.dumps(RESULT.to_json()))
        (tmp_path / "RESULTS.md").write_text("<!-- bench -->\n<!-- end of bench -->\n")
    with pytest.raises(SystemExit) as ended:
        main.main([verb, *words])
    assert ended.value.code == 0


def test_there_are_commands_to_run():
    assert len(COMMANDS) >= 20
    assert len(COMPARISONS) >= 6
    assert len(ON_A_RUN) >= 7


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_every_command_within_a_line_is_accepted():
    found = [shlex.split(line) for line in re.findall(r"`((?:prunekit|python train\.py) [^`]+)`", README)]
    named = [words[1:] if words[0] == "prunekit" else ["train", *words[2:]] for words in found]
    assert len(named) >= 8
    for verb, *words in named:
        if words in (["--help"], ["..."]) or verb == "--help":
            continue
        if verb == "train":
            validate(*compose([word.split(",")[0] for word in words if word != "-m"]))
        else:
            parse_settings(verb, words)


@pytest.mark.slow
def test_the_python_of_each_page_runs(tmp_path, monkeypatch, capsys):
    run(shortened("python train.py", tmp_path), monkeypatch)
    (folder,) = (tmp_path / "runs").glob("bbc_news/top/*/*/*/model")
    monkeypatch.chdir(tmp_path)
    my_model(tmp_path)
    for page in ("README.md", "docs/use.md"):
        namespace = {"texts": [f"the printer number {row} is broken" for row in range(64)]}
        for block in blocks(page, "python"):
            exec(re.sub(r'"runs/[^"]*"', repr(str(folder)), block), namespace)
    assert namespace["logits"].shape == (1, 5)
    assert namespace["labels"] == [namespace["model"].config.id2label[int(namespace["logits"].argmax())]]
    assert capsys.readouterr().out.count("layer 0") == 2  # both explain a text


@pytest.mark.slow
def test_the_tables_are_those_of_the_committed_results():
    readme = script(ROOT / "benchmarks" / "readme.py")
    for page in readme.PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert readme.rewritten(page, text) == text
    with pytest.raises(ValueError, match="0 blocks named headline"):
        readme.rewritten("README.md", "")
    result = RunResult.from_json(json.loads((ROOT / "benchmarks" / "results" / "main_job.json").read_text()))
    assert markdown(result) in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert result.method == "top"
    assert result.task == "bbc_news"


def test_every_method_has_a_row():
    methods = (ROOT / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    for file in (conf_dir() / "method").glob("*.yaml"):
        assert f"| `{file.stem}` |" in methods or f"| [`{file.stem}`](" in methods


def test_every_link_to_a_file_leads_to_one():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
