"""Configurations: what is shipped is sound, mistakes are explained, and a configuration's name is stable."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.plugins import write_metadata

from prunekit.config.budget import amount_label, budget_label, parse_budget
from prunekit.config.composition import compose, spelled_out
from prunekit.config.domains import check_of
from prunekit.config.errors import ConfigError, shown
from prunekit.config.identity import config_hash
from prunekit.config.keys import declared, read_keys, without_machine_keys
from prunekit.config.search_path import conf_dir
from prunekit.config.validation import check_layers, validate
from prunekit.runs.identity import canonical

FILES = sorted(file.relative_to(conf_dir()) for file in conf_dir().rglob("*.yaml"))
OPTIONS = [file for file in FILES if file.parent != Path()]


def checked(*overrides: str) -> dict[str, Any]:
    cfg, choices = compose(overrides)
    validate(cfg, choices)
    return cfg


def message(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        checked(*overrides)
    lines = str(caught.value).splitlines()
    assert len(lines) <= 3
    return lines


# -- what is shipped ---------------------------------------------------------------------------------


def test_the_defaults_are_top_on_bbc_news_with_minilm_at_3x():
    cfg = checked()
    names = {group: cfg[group]["name"] for group in ("method", "task", "backbone")}
    assert names == {"method": "top", "task": "bbc_news", "backbone": "minilm"}
    assert (cfg["budget"], cfg["budget_tolerance"], cfg["seed"]) == ("3x", 0.02, 1)


@pytest.mark.parametrize("file", OPTIONS, ids=str)
def test_every_option_composes_and_passes_its_own_checks(file: Path):
    extra = file.stem.partition("_")[0]
    plugin = {"launcher": f"hydra_plugins.hydra_{extra}_launcher", "search": f"hydra_plugins.hydra_{extra}_sweeper"}
    needed = plugin.get(str(file.parent))
    if needed is not None and file.stem != "grid" and importlib.util.find_spec(needed) is None:
        with pytest.raises(ConfigError, match=rf"(?s)is not installed.*prunekit\[{extra}\]"):
            checked(f"{file.parent}={file.stem}")
        return
    checked(f"{file.parent}={file.stem}")


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_key_of_every_file_is_declared_by_a_comment(file: Path):
    text = (conf_dir() / file).read_text()
    if "@package _global_" in text:
        return  # it declares nothing; its keys were checked by composing it
    group = str(file.parent) if file.parent != Path() else None
    keys = declared({group: file.stem} if group else {})
    content = {name: value for name, value in yaml.safe_load(text).items() if name not in ("defaults", "hydra")}
    assert set(paths(content, f"{group}." if group else "")) <= set(keys)


def paths(content: dict[str, Any], prefix: str) -> list[str]:
    found = []
    for name, value in content.items():
        found.append(f"{prefix}{name}")
        if isinstance(value, dict):
            found += paths(value, f"{prefix}{name}.")
    return found


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_says_what_it_is_and_the_command_that_runs_it(file: Path):
    header = re.match(r"(#.*\n)+", (conf_dir() / file).read_text())
    assert header is not None
    assert "python train.py" in header[0] or str(file.parent) in ("task", "backbone")


@pytest.mark.parametrize("group", ["method", "task", "backbone"])
def test_an_option_is_named_like_its_file(group: str):
    files = sorted((conf_dir() / group).glob("*.yaml"))
    assert [yaml.safe_load(file.read_text())["name"] for file in files] == [file.stem for file in files]


#        bins  topk  warm-up  epochs  sparsity  score  unpadded  published  padded to
PUBLISHED = {
    "cola": (20, 10, 50, 100, 0.43, "60.3", "1.75x", "10.39x", 64),
    "rte": (100, 20, 50, 80, 0.59, "68.3", "2.44x", "7.71x", 256),
    "qqp": (50, 20, 10, 40, 0.65, "90.9", "2.86x", "12.41x", 128),
    "mrpc": (50, 20, 150, 200, 0.67, "89.1", "3.03x", "7.71x", 128),
    "sst2": (25, 20, 10, 40, 0.40, "93.4", "1.67x", "4.66x", 64),
    "mnli": (50, 20, 10, 40, 0.50, "83.4", "2.00x", "6.68x", 128),
    "qnli": (50, 20, 10, 40, 0.58, "89.0", "2.38x", "6.16x", 128),
    "stsb": (30, 20, 50, 150, 0.70, "86.6", "3.33x", "7.20x", 64),
}


@pytest.mark.parametrize("task", PUBLISHED)
def test_the_published_recipes_of_top_hold_the_readme_s_values(task: str):
    bins, topk, warmup, epochs, sparsity, score, unpadded, published, padded_to = PUBLISHED[task]
    cfg = checked(f"experiment=top_{task}")
    method = cfg["method"]
    assert (method["bins"], method["rank_topk"], method["warmup_epochs"]) == (bins, topk, warmup)
    assert (cfg["trainer"]["epochs"], method["target_sparsity"], cfg["budget"]) == (epochs, sparsity, None)
    assert (method["prune_location"], method["hard_fraction"]) == (list(range(2, 12)), 0)
    assert (cfg["trainer"]["batch_size"], cfg["task"]["max_length"]) == (32, 256)
    assert (cfg["task"]["name"], cfg["backbone"]["name"]) == (task, "bert_base")
    assert cfg["task"]["padded_length"] == padded_to
    header = (conf_dir() / "experiment" / f"top_{task}.yaml").read_text().partition("defaults:")[0]
    for fact in (
        "arXiv:2306.14393",
        f"Expect {score}",
        f"Expect {unpadded}",
        published,
        f"padded to {padded_to} tokens",
    ):
        assert fact in header


def test_sst2_is_the_one_run_whose_learning_rates_are_published():
    cfg = checked("experiment=top_sst2")
    assert (cfg["trainer"]["lr"], cfg["method"]["reg_lr"], cfg["method"]["rank_alpha"]) == (1e-5, 0.02, 0.01)


#       stage 1  score  dense  GFLOPs, from, reduction, metric
LTP = {
    "mnli": (1, "86.53", "87.53", "3.64", "6.83", "1.88x", "accuracy"),
    "qqp": (1, "89.69", "90.39", "2.53", "5.31", "2.10x", "mean_of_accuracy_f1"),
    "qnli": (1, "91.98", "92.86", "4.77", "8.94", "1.87x", "accuracy"),
    "sst2": (1, "93.46", "94.27", "2.13", "4.45", "2.09x", "accuracy"),
    "stsb": (10, "90.03", "90.89", "2.84", "5.53", "1.95x", "mean_of_pearson_spearman"),
    "mrpc": (10, "91.59", "92.14", "4.44", "9.33", "2.10x", "mean_of_accuracy_f1"),
    "rte": (10, "77.98", "77.98", "6.30", "11.38", "1.81x", "accuracy"),
    "squad2": (1, "82.25", "83.04", "16.99", "32.12", "1.89x", "f1"),
}


@pytest.mark.parametrize("task", LTP)
def test_the_published_recipes_of_ltp_hold_the_paper_s_values(task: str):
    soft, score, dense, gflops, whole, reduction, metric = LTP[task]
    cfg = checked(f"experiment=ltp_{task}")
    method, trainer = cfg["method"], cfg["trainer"]
    assert (method["final_threshold"], method["reference_length"], method["temperature"]) == (0.01, 128, 1e-3)
    # sentences are padded to 128 there; windows of 384 are not, and no setting of theirs is published
    norm, batch, length = ("live", 32, 384) if task == "squad2" else ("reference", 64, 128)
    assert (method["reg_lambda"], method["reg_norm"], cfg["budget"]) == (0.1, norm, None)
    assert trainer["epochs"] == soft + 5
    for steps in (600, 100_000):  # of a whole epoch, and of the largest task
        assert round(method["hard_fraction"] * trainer["epochs"] * steps) == 5 * steps
    assert (trainer["batch_size"], trainer["lr"], method["lr_threshold"]) == (batch, 2e-5, 2e-5)
    assert (cfg["task"]["name"], cfg["backbone"]["name"], cfg["task"]["max_length"]) == (task, "roberta_base", length)
    assert cfg["task"]["score"] == metric
    assert float(whole) / float(gflops) == pytest.approx(float(reduction[:-1]), abs=0.015)
    header = (conf_dir() / "experiment" / f"ltp_{task}.yaml").read_text().partition("defaults:")[0]
    for fact in ("arXiv:2107.00910", f"Expect {score}", f"dense {dense}", f"{gflops} instead of {whole}", reduction):
        assert fact in header
    checked(f"experiment=ltp_{task}", f"budget={reduction}", "method.reg_lambda=null")  # as the header says


# -- mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "given", "allowed", "advice"),
    [
        ("method.bins=0", "method.bins=0 is out of range", "int 1..1000 or null; rank bins", "the default, null"),
        ("method.rank_topk=12.5", "method.rank_topk=12.5 is not a whole number", "int 2..4096", "20"),
        ("method.rank_topk=true", "method.rank_topk=true is not a whole number", "int 2..4096", "20"),
        ("method.rank_topk=null", "method.rank_topk=null is not a whole number", "int 2..4096", "20"),
        ("method.beta=hot", "method.beta=hot is not a number", "float (0..10]; temperature", "0.6667"),
        ("method.beta=0", "method.beta=0.0 is out of range", "float (0..10]", "0.6667"),
        ("trainer.clip=inf", "trainer.clip=inf is not a number", "float 0..", "1.0"),
        ("bench.enabled=1", "bench.enabled=1 is not true or false", "bool", "true"),
        ("bench.batch_sizes=32", "bench.batch_sizes=32 is not a list", "list of int 1..4096", "[1, 32]"),
        ("bench.batch_sizes=[1,0]", "[1, 0] holds 0, which is out of range", "list of int 1..4096", "[1, 32]"),
        ("runs_dir=7", "runs_dir=7 is not a path", "path", "runs"),
        ("task.text=null", "task.text=null is not text", "text; column", "in a shell: 'task.text=\"null\"'"),
        ("goal=1", "goal=1 is not a block of keys", "block", "goal.<key>=<value>"),
        ("data=[]", "data=[] is not a block of keys", "the keys of data", "data.<key>=<value>"),
        (f"budget=1{400 * '0'}x", f"budget=1{76 * '0'}... is not a budget", "up to 1000000x", "Write budget=3x"),
        ("budget=1e400", "budget=inf is not a budget", "1x and more", "Write budget=3x"),
        (f"seed={5000 * '1'}", "holds a number of more than 4,300 digits", "that a computer takes", "quote it"),
        (f"seed=1{400 * '0'}", "is out of range", "int 0..4294967295", "1"),
        (f"data.train_rows=1{400 * '0'}", "is out of range", "int 1.. or null", "null"),
        (f"trainer.clip=1{400 * '0'}", "is out of range", "float 0..", "1.0"),
        (f"runs_dir={256 * 'x'}", "a name in it has 256 bytes, and file systems take 255", "path", "runs"),
        (f"runs_dir={3000 * 'x/'}", "it has 6000 bytes, and file systems take 4095", "path", "runs"),
        ("trainer.precision=bf61", "bf61 is not one of the choices", "one of auto|32|bf16", "trainer.precision=bf16?"),
        ("data=3", "data=3 is not a block of keys", "block", "data.<key>=<value>"),
        ("budget=3", "budget=3 is not a budget", "1x and more", "Write budget=3x"),
        ("budget=0.5x", "budget=0.5x is not a budget", "1x and more", "Write budget=3x"),
        ("method.prune_location=[3,2]", "[3, 2] is not in rising order", "layers 1.. or null", "null"),
        ("method.prune_location=[2,3,3]", "[2, 3, 3] names layer 3 twice", "layers 1.. or null", "null"),
        ("method.prune_location=[0,1]", "[0, 1] holds 0, which is out of range", "layers 1.. or null", "null"),
        ("method.prune_location=[]", "[] is empty", "layers 1.. or null", "null"),
        ("method.binz=3", "method.binz=3: there is no key method.binz", "bins", "Did you mean method.bins?"),
        ("+method.binz=3", "method.binz=3: there is no key method.binz", "bins", "Did you mean method.bins?"),
        ("+extra.deep=3", "there is no key extra", "budget, budget_tolerance", "--cfg job"),
        ("bins=3", "bins=3: there is no key bins", "budget", "Did you mean method.bins?"),
        ("epochs=3", "epochs=3: there is no key epochs", "budget", "teacher.epochs or trainer.epochs?"),
        ("metod=top", "metod=top: there is no key metod", "method", "Did you mean method?"),
        ("method=topp", "method=topp does not exist", "first, ", "Did you mean method=top?"),
        ("experiment=best", "experiment=best does not exist", "top_cola", "add experiment/best.yaml"),
        ("method=null", "method=null: a group without which nothing runs", "sweeps, experiment and debug", "--help"),
        ("method=7", "method=7: a group without which nothing runs", "the name of an option", "--help"),
        ("method=${seed}", "method=${seed}: an option is chosen before", "the name of an option", "itself"),
        ("bench.rounds@x=1", "bench.rounds@x=1: there is no group bench.rounds", "method", "key=value"),
        ("bench.batch_sizes.first=1", "bench.batch_sizes.first=1: a list has no key first", "whole", "key=[a,b]"),
        ("~trainer", "there is no trainer", "conf/trainer/", "trainer=..."),
        ("~logger.wandb", "logger.wandb is missing", "block", "Leave ~logger.wandb out."),
        ("task=[]", "there is no task", "an option of conf/task/", "Give task="),
        ("~method.rank_topk", "method.rank_topk is missing", "int 2..4096", "method.rank_topk=..., as 20"),
        ("method=[", "method=[ cannot be read", "key=value", "Quote"),
        ("seed=1,2", "'seed=1,2'", "one value per key", "Add -m"),
        ("method.bins=???", "method.bins is not given", "comment", "Add method.bins=..."),
        ("budget=null", "nothing says how much to prune", "one of budget, method.target_sparsity", "budget=3x"),
    ],
)
def test_a_mistake_is_answered_with_what_was_given_what_is_allowed_and_what_to_do(
    override: str, given: str, allowed: str, advice: str
):
    first, second, third = message(override)
    assert given in first
    assert second.startswith("Allowed: ") or override == "method.bins=???"
    assert allowed in second
    assert advice in third


def test_budget_and_the_method_s_own_knob_exclude_each_other():
    first, second, third = message("method.target_sparsity=0.5")
    assert first == "budget=3x and method.target_sparsity=0.5 both say how much to prune."
    assert second == "Allowed: one of budget, method.target_sparsity, goal.latency_ms."
    assert third == "Add budget=null to go by method.target_sparsity."
    assert checked("method.target_sparsity=0.5", "budget=null")["method"]["target_sparsity"] == 0.5


def test_a_goal_replaces_the_default_budget_and_no_other():
    asked = checked("goal.latency_ms=12")
    assert (asked["budget"], asked["goal"]["latency_ms"]) == (None, 12.0)
    assert checked("goal.latency_ms=12", "budget=null") == asked
    for budget in ("budget=3x", "budget=2x", "++budget=3x"):
        first, second, third = message("goal.latency_ms=12", budget)
        assert first == f"budget={budget[-2:]} and goal.latency_ms=12.0 both say how much to prune."
        assert second == "Allowed: one of budget, goal.latency_ms."
        assert third == "Add budget=null to go by goal.latency_ms, or leave that out."
    assert message("goal.latency_ms=12", "method.target_sparsity=0.5")[0] == (
        "goal.latency_ms=12.0 and method.target_sparsity=0.5 both say how much to prune."
    )


@pytest.mark.parametrize(
    ("overrides", "given", "allowed"),
    [
        (
            ["method=dense"],
            "method=dense prunes no tokens between layers",
            "lat, ltp, random, threshold, top, topk, tsdtp",
        ),
        (["method=wanda", "task=domain_legal", "backbone=smollm2"], "method=wanda prunes no tokens", "topk"),
        (["method=layers"], "method=layers prunes no tokens between layers", "topk, tsdtp"),
        (["task=squad2"], "task=squad2 is of kind span", "classification and regression"),
        (
            ["goal.device=cuda"],
            "goal.device=cuda is not one of the choices",
            "latency goals on GPUs are not supported yet",
        ),
        (["goal.batch=0"], "goal.batch=0 is out of range", "int 1..256"),
        (["goal.latency_ms=0"], "goal.latency_ms=0.0 is out of range", "float (0..)"),
    ],
)
def test_a_goal_that_cannot_be_is_refused(overrides: list[str], given: str, allowed: str):
    first, second, _ = message("goal.latency_ms=12", *overrides)
    assert given in first
    assert allowed in second


def test_a_goal_names_a_run_and_without_one_its_other_keys_do_not():
    asked = checked("goal.latency_ms=12")
    assert amount_label(asked) == "12ms"
    assert amount_label(checked()) == "3x"
    here = config_hash(checked())
    assert config_hash(checked("goal.batch=1", "goal.threads=2")) == here
    assert config_hash({key: value for key, value in checked().items() if key != "goal"}) == here
    named = {config_hash(checked("goal.latency_ms=12", *more)) for more in ([], ["goal.batch=1"], ["goal.dtype=int8"])}
    assert len(named | {here}) == 4


def test_an_interpolation_that_leads_nowhere_is_named():
    first, allowed, do = message("method.bins=${nowhere}")
    assert first == "method.bins: Interpolation key 'nowhere' not found."
    assert allowed.startswith("Allowed: a value")
    assert do.startswith("Correct the name")


def test_a_file_that_is_not_yaml_is_named_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = tmp_path / "conf" / "method" / "broken.yaml"
    plugin(tmp_path, monkeypatch)
    broken.write_text("name: broken\nbins: [1, 2\nother: 3\n")
    first, second, _ = message("method=broken")
    assert f"{broken}, line 3" in first
    assert second == "Allowed: YAML."


def test_a_layer_that_the_backbone_lacks_is_named():
    cfg = checked("method.prune_location=[2,5,6]")
    with pytest.raises(ConfigError) as caught:
        check_layers(cfg, 6, "minilm")
    assert str(caught.value).splitlines() == [
        "method.prune_location=[2, 5, 6] names layer 6, but minilm has layers 0..5.",
        "Allowed: 1..5.",
        "Set method.prune_location to a subset, or choose another backbone.",
    ]
    check_layers(cfg, 7, "a backbone of seven layers")


def test_layers_are_checked_wherever_a_key_is_made_of_them():
    with pytest.raises(
        ConfigError, match=re.escape("method.rank_layers=[1, 8] names layer 8, but minilm has layers 0..5")
    ):
        check_layers(checked("method.rank_layers=[1,8]"), 6, "minilm")


# -- the grammar of comments -------------------------------------------------------------------------


def test_a_comment_declares_domain_default_flags_and_prose(tmp_path: Path):
    file = tmp_path / "x.yaml"
    file.write_text(
        "# header\n"
        "bins: 50  # int 1..1000; rank bins\n"
        "  # per location\n"
        "mark: 'a # b'  # text or null, machine\n"
        "share: null  # float (0..1] or null, knob; of FLOPs\n"
        "sizes: [1, 2]  # list of int 1..\n"
        "deep:  # block; below\n"
        "  on: true  # bool\n"
        "loose: 1  # whatever one likes\n"
    )
    keys = read_keys(file, "x.")
    assert list(keys) == ["x.bins", "x.mark", "x.share", "x.sizes", "x.deep", "x.deep.on"]
    assert (keys["x.bins"].default, keys["x.bins"].prose) == ("50", "rank bins per location")
    assert keys["x.mark"].machine
    assert keys["x.mark"].nullable
    assert (keys["x.share"].knob, keys["x.share"].machine) == (True, False)
    assert keys["x.share"].allowed == "float (0..1] or null; of FLOPs"
    assert keys["x.sizes"].default == "[1, 2]"


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        ("int 1..3", [1, 3], [0, 4]),
        ("int -2..", [-2, 10**9], [-3]),
        ("float 0..1", [0, 1, 0.5], [-0.1, 1.1]),
        ("float (0..1]", [1, 1e-9], [0]),
        ("float [0..1)", [0.0], [1.0]),
        ("float -1.5..-.5", [-1, -0.5], [0]),
        ("one of auto|32", ["auto", 32, "32"], ["cpu", None]),
        ("list of one of a|b", [[], ["a", "b"]], ["a", ["c"]]),
        ("layers 1..", [[1, 4]], [[4, 1], [1, 1], [0], []]),
        ("budget", ["3x", 0.4], ["3", None, 2]),
    ],
)
def test_a_domain_admits_its_ends_and_nothing_beyond(domain: str, inside: list[Any], outside: list[Any]):
    check = check_of(domain)
    assert [value for value in inside if check(value)] == []
    assert [value for value in outside if not check(value)] == []


def test_a_text_that_is_no_domain_is_refused():
    with pytest.raises(ValueError, match=r"'number 1..3' is not a domain; write one of bool, text"):
        check_of("number 1..3")


# -- budgets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "reduction", "label"),
    [("3x", 3.0, "3x"), ("2.5X", 2.5, "2.5x"), (0.4, 2.5, "2.5x"), (0.3, 1 / 0.3, "3.333x"), ("1x", 1.0, "dense"),
     (1.0, 1.0, "dense"), (None, None, "own")],
)  # fmt: skip
def test_a_budget_is_a_reduction_or_a_fraction_kept(given: Any, reduction: float | None, label: str):
    assert parse_budget(given) == pytest.approx(reduction)
    assert budget_label(given) == label


@pytest.mark.parametrize(
    ("given", "advice"), [(3, "3x"), (2.5, "2.5x"), (0, "3x"), ("x3", "3x"), ("0.9x", "3x"), (True, "3x")]
)
def test_a_number_that_could_mean_either_is_refused(given: Any, advice: str):
    with pytest.raises(ConfigError, match=rf"budget={str(given).lower()} is not a budget(.|\n)*Write budget={advice},"):
        parse_budget(given)


# -- names -------------------------------------------------------------------------------------------


def test_what_the_machine_decides_leaves_the_hash_alone_and_what_changes_results_does_not():
    here = config_hash(checked())
    assert re.fullmatch(r"[0-9a-f]{8}", here)
    for machine in ("runs_dir=elsewhere", "force=true", "data.workers=2", "trainer.threads=1", "logger.csv=false",
                    "logger.wandb.mode=offline", "trainer.checkpoint_seconds=5"):  # fmt: skip
        assert config_hash(checked(machine)) == here, machine
    for meant in ("seed=2", "budget=2x", "trainer.lr=1e-5", "method.bins=49", "data.train_rows=10", "task=cola"):
        assert config_hash(checked(meant)) != here, meant


@pytest.mark.parametrize("spelled", ["2.0x", "2X", "0.5"])
def test_one_budget_spelled_differently_is_one_run(spelled: str):
    here, there = canonical(checked("budget=2x")), canonical(checked(f"budget={spelled}"))
    assert there["budget"] == "2x"
    assert config_hash(there) == config_hash(here)


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_hash_does_not_see_the_order_of_keys(random: Any):
    cfg, _ = COMPOSED

    def shuffled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        items = list(value.items())
        random.shuffle(items)
        return {name: shuffled(item) for name, item in items}

    assert config_hash(shuffled(cfg)) == config_hash(cfg)


COMPOSED = compose([])


def test_an_experiment_and_the_same_values_typed_by_hand_are_one_run():
    content = yaml.safe_load((conf_dir() / "experiment" / "top_rte.yaml").read_text())
    typed = [item.removeprefix("override /") for entry in content.pop("defaults") for item in assignments(entry)]
    typed += assignments(content)
    assert {"method=top", "task=rte", "method.bins=100", "budget=null", "trainer.epochs=80"} < set(typed)
    assert config_hash(checked(*typed)) == config_hash(checked("experiment=top_rte"))


def assignments(content: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in content.items():
        deep = isinstance(value, dict)
        found += assignments(value, f"{prefix}{name}.") if deep else [f"{prefix}{name}={shown(value)}"]
    return found


# -- plug-ins ----------------------------------------------------------------------------------------


def plugin(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str = "raise ImportError('too early')") -> None:
    """An installed distribution whose module `strange` brings a method."""
    (folder / "conf" / "method").mkdir(parents=True)
    (folder / "conf" / "method" / "strange.yaml").write_text(
        "# strange\nname: strange  # text\n_target_: strange.Method  # text\nodd: 3  # int 1..9; how odd\n"
    )
    (folder / "strange.py").write_text(code)
    write_metadata(folder, "strange", "strange", "strange")
    monkeypatch.syspath_prepend(str(folder))


def test_a_method_of_another_package_is_composed_and_checked_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plugin(tmp_path, monkeypatch)
    assert checked("method=strange")["method"] == {"name": "strange", "_target_": "strange.Method", "odd": 3}
    assert message("method=strange", "method.odd=10") == [
        "method.odd=10 is out of range.",
        "Allowed: int 1..9; how odd.",
        "Leave it out for the default, 3.",
    ]


def test_a_logger_of_another_package_joins_those_of_prunekit_and_names_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here = config_hash(checked())
    plugin(tmp_path, monkeypatch)
    (tmp_path / "conf" / "logger").mkdir()
    (tmp_path / "conf" / "logger" / "diary.yaml").write_text(
        "# diary\ndiary:  # block, machine\n  _target_: strange.start  # text, machine\n"
        "  enabled: true  # bool, machine\n  colour: red  # one of red|blue, machine; of the ink\n"
    )
    alone = checked("logger=diary")["logger"]
    assert alone == {
        "csv": True,
        "texts": 6,
        "diary": {"_target_": "strange.start", "enabled": True, "colour": "red"},
    }
    cfg = checked("logger=[default,diary]", "logger.diary.colour=blue", "logger.trackio=true")
    assert list(cfg["logger"]) == [*checked()["logger"], "diary"]
    assert cfg["logger"]["diary"]["colour"] == "blue"
    assert config_hash(cfg) == config_hash(checked("logger=diary")) == here
    assert message("logger=[default,diary]", "logger.diary.colour=green")[1] == "Allowed: one of red|blue; of the ink."
    assert message("logger.diary.colour=blue")[0] == "logger.diary.colour=blue: there is no key logger.diary.colour."


def test_the_switches_of_loggers_are_those_of_the_command_line():
    default = checked()["logger"]
    assert [block["enabled"] for block in default.values() if isinstance(block, dict)] == [True, False, False]
    typed = (
        "logger.trackio=true",
        "logger.tensorboard=true",
        "logger.wandb.enabled=false",
        "logger.wandb.project=mine",
    )
    blocks = [block for block in checked(*typed)["logger"].values() if isinstance(block, dict)]
    assert [block["enabled"] for block in blocks] == [False, True, True]
    assert [block.get("project") for block in blocks] == ["mine", "mine", None]
    short = ("trackio.enabled=true", "tensorboard.enabled=true", "wandb.enabled=false", "wandb.project=mine")
    assert checked(*short) == checked(*typed)
    assert config_hash(checked(*short)) == config_hash(checked())
    alone = checked("logger=trackio")["logger"]
    assert alone["trackio"] | {"_target_": None} == {"_target_": None, "enabled": True, "project": "prunekit"}
    assert "wandb" not in alone


def test_a_logger_s_keys_are_written_in_full_and_no_other_key_is_touched():
    typed = ["wandb.mode=offline", "++trackio.enabled=true", "~wandb.entity", "logger.trackio=true"]
    full = ["logger.wandb.mode=offline", "++logger.trackio.enabled=true", "~logger.wandb.entity"]
    assert spelled_out(typed) == [*full, "logger.trackio.enabled=true"]
    others = ["logger=wandb", "logger.csv=false", "data.train_rows=3", "wandbox.mode=1", "task=wandb", "default.x=1"]
    assert spelled_out(others) == others
    assert message("wandb.mode=sometimes")[1].startswith("Allowed: one of online|offline|disabled or null")


def test_what_a_machine_block_held_in_an_older_run_is_no_difference():
    old = checked()
    old["logger"] |= {"trackio": False, "trackio_sink": {"enabled": False, "project": "prunekit"}}
    assert config_hash(old) == config_hash(checked())
    without = without_machine_keys({"a": {"b": 1, "c": {"d": 2}}, "ab": 3, "e": 4}, {"a.c", "e"})
    assert without == {"a.b": 1, "ab": 3}


def test_a_plug_in_may_say_where_its_configuration_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plugin(tmp_path, monkeypatch, code=f"conf_dir = {str(tmp_path / 'elsewhere')!r}\n")
    (tmp_path / "conf").rename(tmp_path / "elsewhere")
    monkeypatch.delitem(sys.modules, "strange", raising=False)
    assert checked("method=strange")["method"]["odd"] == 3


def test_a_plug_in_without_configuration_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plugin(tmp_path, monkeypatch, code="")
    (tmp_path / "conf").rename(tmp_path / "elsewhere")
    monkeypatch.delitem(sys.modules, "strange", raising=False)
    first, second, _ = message()
    assert first == "the plug-in 'strange' (strange) has no configuration."
    assert "prunekit.plugins" in second


def test_one_and_one_point_zero_name_the_same_run():
    whole, _ = compose(["method.rank_alpha=0", "trainer.clip=1", "method.bins=50"])
    fraction, _ = compose(["method.rank_alpha=0.0", "trainer.clip=1.0", "method.bins=50"])
    assert type(whole["method"]["rank_alpha"]) is float
    assert type(whole["method"]["bins"]) is int
    assert config_hash(whole) == config_hash(fraction)


def test_a_key_at_the_value_that_runs_had_before_it_does_not_change_the_hash():
    recipe = compose(["experiment=top_cola"])[0]
    older = recipe | {"method": {key: value for key, value in recipe["method"].items() if key != "init"}}
    assert config_hash(recipe) == config_hash(older)
    assert config_hash(compose(["experiment=top_cola", "method.init=topk"])[0]) != config_hash(older)


@pytest.mark.parametrize(
    ("typed", "budget"),
    [
        ("task=cola", "2x"),
        ("task=sst2", "3x"),
        ("task=cola budget=3x", "3x"),
        ("task=cola task.budget=1.5x", "1.5x"),
        ("task=cola goal.latency_ms=9", None),
        ("experiment=top_cola", None),
    ],
)
def test_a_task_may_bring_the_budget_that_is_taken_where_none_is_given(typed, budget):
    assert checked(*typed.split())["budget"] == budget


def test_a_tasks_budget_names_the_run_that_the_same_budget_typed_names():
    named = [canonical(compose(f"task=cola {more}".split())[0]) for more in ("", "budget=2x")]
    assert config_hash(named[0]) == config_hash(named[1])
