"""Whole runs on a tiny model and generated sentences: what they leave, that they repeat, that kills cost nothing."""

import json
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from support.paths import ROOT
from support.processes import Training

import prunekit
from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.files import read_jsonl
from prunekit.pipelines.run import run, train
from prunekit.results.examples import load as load_examples

SMALL = [
    "task=synthetic",
    "backbone=tiny",
    "trainer=debug",
    "plots=false",
    "task.synthetic_rows=96",
    "method.bins=8",
    "logger.wandb.enabled=false",
    "bench.examples=4",
    "bench.rounds=1",
    "budget=1.5x",
]


def config(folder, *overrides):
    places = [f"runs_dir={folder / 'runs'}", f"data.cache_dir={folder / 'cache'}"]
    return compose([*SMALL, *places, *overrides])[0]


def run_folder(folder, method="top"):
    (found,) = (folder / "runs").glob(f"synthetic/{method}/tiny/*/s1-*")
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(config(folder))


def test_stored_examples_agree_with_the_result(finished):
    folder, result = finished
    found = load_examples(run_folder(folder))
    rows = result.score.rows
    assert (found.predicted == found.labels).mean() == pytest.approx(result.score.pruned)
    assert (found.dense == found.labels).mean() == pytest.approx(result.score.dense)
    assert found.counts.mean(0).tolist() == pytest.approx(list(result.tokens_per_layer))
    assert len(found.index) == rows
    for number in range(rows):
        depth = found.depth[found.text(number)]
        assert [(depth > layer).sum() for layer in range(4)] == found.counts[number].tolist()
        assert len(depth) == found.lengths[number]
    assert found.classes == ("red", "green", "blue")
    manifest = json.loads((run_folder(folder) / "manifest.json").read_text())
    assert (
        manifest["teacher"]["weights_sha256"]
        == (json.loads((run_folder(folder, "dense") / "manifest.json").read_text())["weights_sha256"])
    )


@pytest.mark.slow
def test_examples_can_be_left_out(tmp_path, finished):
    folder, _ = finished
    teacher = run_folder(folder, "dense") / "model"
    run(config(tmp_path, f"teacher.path={teacher}", "trainer.max_steps=3", "bench.enabled=false", "examples=0"))
    assert not list(tmp_path.glob("runs/**/examples.npz"))


def test_a_run_leaves_everything_that_is_promised(finished):
    folder, result = finished
    left = run_folder(folder)
    for name in ("config.yaml", "manifest.json", "metrics.jsonl", "metrics.csv", "result.json"):
        assert (left / name).is_file(), name
    for name in ("config.json", "model.safetensors", "prunekit.json", "prunekit.safetensors", "tokenizer.json"):
        assert (left / "model" / name).is_file(), name
    assert json.loads((left / "result.json").read_text()) == result.to_json()
    manifest = json.loads((left / "manifest.json").read_text())
    assert manifest["hash"] == result.hash == left.name.split("-")[1]
    assert len(manifest["data_fingerprint"]) == 64


def test_the_result_says_what_was_reached_against_both_baselines(finished):
    _, result = finished
    assert result.exit_code == (0 if result.budget.met else 3)
    assert result.budget.asked == 1.5
    flops = result.flops
    assert flops.flops_vs_unpadded == pytest.approx(flops.dense_unpadded_g / flops.pruned_g)
    assert flops.flops_vs_padded == pytest.approx(flops.dense_padded_g / flops.pruned_g)
    assert [row.batch_size for row in result.speed] == [1, 4]
    assert result.execution.to_json() == {"validation": "mask", "test": "pack"}


def test_the_budget_is_met_on_validation_within_two_percent(finished):
    _, result = finished
    assert result.budget.met
    assert abs(1.5 / result.budget.reached - 1) <= 0.02


def test_the_saved_model_reproduces_the_result(finished):
    folder, result = finished
    from prunekit.data.module import TokenPruningDataModule
    from prunekit.data.sources import find_task
    from prunekit.data.spec import TaskSpec
    from prunekit.evaluation.evaluate import evaluate

    cfg = config(folder)
    spec = TaskSpec.from_config(cfg["task"])
    model = prunekit.load(run_folder(folder) / "model")
    data = TokenPruningDataModule(
        spec,
        find_task(spec),
        run_folder(folder) / "model",
        batch_size=4,
        eval_batch_size=8,
        seed=1,
        cache_dir=folder / "cache",
    )
    data.setup()
    from prunekit.cost import Shape

    found = evaluate(
        model, data.loader("test"), spec, Shape.from_config(model.config), data.split("test").targets, "pack"
    )
    assert found.metrics[spec.score] == pytest.approx(result.score.pruned)
    assert found.cost["pruned_g"] == pytest.approx(result.flops.pruned_g)


def test_the_same_command_again_returns_the_stored_result(finished, capsys, monkeypatch):
    folder, result = finished
    monkeypatch.setattr("prunekit.pipelines.tokens.pipeline.Pipeline.execute", lambda self: pytest.fail("it ran again"))
    assert run(config(folder)) == result
    assert "synthetic" in capsys.readouterr().out


def test_metrics_are_logged_layer_by_layer(finished):
    folder, _ = finished
    rows = read_jsonl(run_folder(folder) / "metrics.jsonl")
    names = {name for row in rows for name in row}
    assert {"tokens/layer_00", "tokens/layer_03", "val/flops_vs_unpadded", "budget_gap", "train/kd"} <= names


@pytest.mark.slow
def test_same_seed_same_numbers_another_seed_other_numbers(finished, tmp_path):
    folder, result = finished
    again = run(config(tmp_path))
    assert again.score == result.score
    assert again.flops == result.flops
    weights = [load_file(run_folder(place) / "model" / "model.safetensors") for place in (folder, tmp_path)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    run(config(tmp_path, "seed=2", "bench.enabled=false"))
    (other,) = (tmp_path / "runs").glob("synthetic/top/tiny/*/s2-*")
    different = load_file(other / "model" / "model.safetensors")
    assert any(not torch.equal(weights[0][name], different[name]) for name in different)


def test_pruning_runs_share_one_teacher(finished):
    folder, _ = finished
    before = (run_folder(folder, "dense") / "result.json").stat().st_mtime_ns
    run(config(folder, "method.rank_alpha=0", "trainer.max_steps=3", "bench.enabled=false"))
    assert (run_folder(folder, "dense") / "result.json").stat().st_mtime_ns == before


def test_an_infeasible_budget_is_refused_with_the_feasible_range_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigError, match=r"budget=50x cannot be met by method=top on tiny.*1\.00x to \d+\.\d\dx"):
        train(config(tmp_path, "budget=50x"))
    assert not list((tmp_path / "runs").glob("**/*.ckpt"))


def test_a_layer_that_the_backbone_lacks_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"method\.prune_location=\[2, 9\] names layer 9, but tiny has layers 0\.\.3"):
        train(config(tmp_path, "method.prune_location=[2,9]"))


@pytest.mark.slow
def test_a_missed_budget_exits_with_3_and_keeps_the_closest_checkpoint(tmp_path):
    """Without a hard stage and with gates that hardly move, nothing is pruned."""
    cfg = config(tmp_path, "method.hard_fraction=0", "method.reg_lr=1e-6", "bench.enabled=false", "trainer.epochs=1")
    assert train(cfg) == 3
    result = json.loads((run_folder(tmp_path) / "result.json").read_text())
    assert result["status"] == "budget_missed"
    assert result["budget"]["reached"] == pytest.approx(1.0)
    assert (run_folder(tmp_path) / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_reference_behaviour_runs_and_is_tested_as_it_is_trained(tmp_path):
    """Its decisions hang on padding, so there is nothing to pack."""
    result = run(config(tmp_path, "method.compat=true", "trainer.epochs=2", "teacher.epochs=1"))
    assert result.execution.to_json() == {"validation": "mask", "test": "mask"}
    assert result.speed == ()


@pytest.mark.slow
def test_the_methods_own_knob_is_reported_in_its_own_terms(tmp_path):
    result = run(config(tmp_path, "budget=null", "method.target_sparsity=0.3", "bench.enabled=false"))
    assert result.budget.asked is None
    assert result.budget.knob.asked == pytest.approx(0.3)
    assert result.budget.knob.name == "measured sparsity"


def test_a_knob_out_of_reach_is_refused_in_its_own_terms(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)method\.target_sparsity=0\.95 asks for 20x.*a sparsity of 0\.00 to"):
        train(config(tmp_path, "budget=null", "method.target_sparsity=0.95"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.path=nowhere", "teacher.path=nowhere is no model"),
        ("method._target_=prunekit.methods.top.Tip", "method._target_=prunekit.methods.top.Tip cannot be imported"),
        ("trainer.accelerator=gpu", "trainer.accelerator=gpu, but torch sees no CUDA GPU"),
        ("runs_dir=/proc/runs", "runs_dir=/proc/runs: .* cannot be made"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_trained(tmp_path, override, message):
    cfg = compose([*SMALL, f"runs_dir={tmp_path / 'runs'}", f"data.cache_dir={tmp_path / 'cache'}"])[0]
    block, _, key = override.partition("=")[0].rpartition(".")
    (cfg[block] if block else cfg)[key] = override.partition("=")[2]
    with pytest.raises(ConfigError, match=message):
        train(cfg)
    assert not list(tmp_path.glob("**/*.ckpt"))


def test_a_teacher_of_another_task_is_refused(finished, tmp_path):
    from support.models import tiny_model

    tiny_model(classes=7).save_pretrained(tmp_path / "seven")
    with pytest.raises(ConfigError, match="a head with 7 outputs, but the task has 3"):
        train(config(tmp_path, f"teacher.path={tmp_path / 'seven'}"))


@pytest.mark.parametrize(("key", "named"), [("teacher.path", "teacher.path"), ("backbone.path", "backbone")])
def test_a_pruned_model_is_no_dense_one(finished, tmp_path, key, named):
    (found,) = (finished[0] / "runs").glob(f"synthetic/top/tiny/*/*-{finished[1].hash}")
    pruned = found / "model"
    with pytest.raises(ConfigError, match=rf"{named}={pruned} is a pruned model, which would run unpruned here"):
        train(config(tmp_path, f"{key}={pruned}"))


def test_a_teacher_in_another_format_is_refused_before_data_is_read(finished, tmp_path):
    import shutil

    shutil.copytree(run_folder(finished[0], "dense") / "model", tmp_path / "teacher")
    (tmp_path / "teacher" / "model.safetensors").rename(tmp_path / "teacher" / "pytorch_model.bin")
    (tmp_path / "teacher" / "prunekit.json").unlink()
    with pytest.raises(ConfigError, match=r"teacher holds no model\.safetensors"):
        train(config(tmp_path, f"teacher.path={tmp_path / 'teacher'}"))


def test_nothing_of_a_run_stays_in_memory(finished, tmp_path, monkeypatch):
    """The next job of a sweep runs in the same process."""
    import weakref

    from prunekit.pipelines.tokens import pipeline

    seen, fit = [], pipeline.fit

    def watched(method, *given, **options):
        fit(method, *given, **options)
        seen.append(weakref.ref(method))

    monkeypatch.setattr(pipeline, "fit", watched)
    run(plain(tmp_path, "method=dense", "trainer.max_steps=2"))
    assert len(seen) == 1
    assert seen[0]() is None


def test_threads_of_one_run_are_not_those_of_the_next():
    from prunekit.training.hardware import use_threads

    use_threads(None)
    own = torch.get_num_threads()
    use_threads(own + 1)
    assert torch.get_num_threads() == own + 1
    use_threads(None)
    assert torch.get_num_threads() == own


def test_another_model_in_the_same_folder_is_another_run(finished, tmp_path):
    from support.models import tiny_model

    from prunekit.runs.identity import canonical

    folder = tmp_path / "teacher"
    cfg = config(tmp_path, f"teacher.path={folder}")
    tiny_model(seed=1).save_pretrained(folder)
    first = canonical(cfg)
    tiny_model(seed=2).save_pretrained(folder)
    assert canonical(cfg) != first


@pytest.mark.slow
def test_a_run_whose_model_was_removed_is_not_done(finished, tmp_path):
    import shutil

    folder, result = finished
    (found,) = (folder / "runs").glob(f"synthetic/top/tiny/*/*-{result.hash}")
    left = found.relative_to(folder)
    for done in (left, run_folder(folder, "dense").relative_to(folder)):
        shutil.copytree(folder / done, tmp_path / done)
    shutil.rmtree(tmp_path / left / "model")
    run(config(tmp_path))
    assert (tmp_path / left / "model" / "config.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("asks_to_end", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_ends_with_130_and_the_same_command_goes_on(tmp_path, asks_to_end):
    process = start(tmp_path, "trainer.epochs=200")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/**/last.ckpt")):
        assert process.is_running()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send(asks_to_end)
    assert process.wait(timeout=60) == 130


def test_a_fine_tuned_folder_can_be_the_teacher(finished, tmp_path):
    folder, _ = finished
    teacher = run_folder(folder, "dense") / "model"
    result = run(config(tmp_path, f"teacher.path={teacher}", "trainer.max_steps=3", "bench.enabled=false"))
    assert result.score.dense == finished[1].score.dense
    assert not (tmp_path / "runs" / "synthetic" / "dense").exists()


def plain(folder, *overrides):
    """The configuration of a run of another method than ToP."""
    taken = {word.split("=")[0] for word in overrides} | ({"task"} if "experiment=" in "".join(overrides) else set())
    short = [word for word in SMALL if not word.startswith("method.") and word.split("=")[0] not in taken]
    places = [f"runs_dir={folder / 'runs'}", f"data.cache_dir={folder / 'cache'}"]
    return compose([*short, *places, "bench.enabled=false", "teacher.epochs=1", "trainer.epochs=1", *overrides])[0]


ONE_KNOB = [
    ["method=topk"],
    ["method=topk", "method.accumulate=true"],
    ["method=random"],
    ["method=first"],
    ["method=threshold"],
    ["method=lat", "method.iterations=1", "method.population=0", "method.mutations=2"],
]


@pytest.mark.slow
@pytest.mark.parametrize("train", ["true", "false"])
@pytest.mark.parametrize("overrides", ONE_KNOB, ids=" ".join)
def test_methods_with_one_knob_meet_the_budget_with_and_without_training(tmp_path, overrides, train):
    result = run(plain(tmp_path, *overrides, f"method.train={train}"))
    assert result.budget.met
    assert abs(1.5 / result.budget.reached - 1) <= 0.02
    assert ("fit" in result.seconds) == (train == "true")
    assert (run_folder(tmp_path, result.method) / "model" / "prunekit.json").is_file()


@pytest.mark.slow
def test_without_training_the_weights_are_the_teachers(tmp_path):
    run(plain(tmp_path, "method=topk", "method.train=false"))
    pruned, dense = (
        load_file(run_folder(tmp_path, method) / "model" / "model.safetensors") for method in ("topk", "dense")
    )
    assert all(torch.equal(pruned[name], dense[name]) for name in dense)


def test_a_schedule_that_cannot_meet_the_budget_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigError, match=r"budget=3x cannot be met by method=topk on tiny.*1\.00x to 1\.\d\dx"):
        train(plain(tmp_path, "method=topk", "method.dense_layers=null", "budget=3x"))
    assert not list((tmp_path / "runs").glob("**/*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["roberta", "electra", "distilbert"])
def test_every_family_runs_end_to_end(tmp_path, family):
    result = run(
        config(
            tmp_path,
            f"backbone.family={family}",
            "trainer.epochs=2",
            "teacher.epochs=1",
            "bench.enabled=false",
            "budget_tolerance=0.05",  # of 15 tokens in 8 bins a bin is more than 2 % of the FLOPs
        )
    )
    assert result.budget.met


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "experiment").glob("top_*.yaml")), ids=lambda path: path.stem)
def test_every_published_recipe_runs_on_generated_sentences(tmp_path, path):
    cfg, _ = compose(
        [
            f"experiment={path.stem}",
            "backbone=tiny",
            "trainer=debug",
            "plots=false",
            "task.synthetic_rows=48",
            "method.prune_location=[1,2,3]",
            "method.warmup_epochs=1",
            "method.reg_lr=0.5",
            "trainer.epochs=1",
            "trainer.batch_size=16",
            "trainer.evals_per_epoch=1",
            "teacher.epochs=1",
            "logger.wandb.enabled=false",
            "bench.enabled=false",
            f"runs_dir={tmp_path / 'runs'}",
            f"data.cache_dir={tmp_path / 'cache'}",
        ]
    )
    assert train(cfg) in (0, 3)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "experiment").glob("ltp_*.yaml")), ids=lambda path: path.stem)
def test_every_published_recipe_of_ltp_runs_on_generated_sentences(tmp_path, path):
    short = ["trainer.epochs=2", "trainer.evals_per_epoch=1", "method.hard_fraction=0.5", "trainer.lr=1e-3"]
    cfg = plain(tmp_path, f"experiment={path.stem}", "budget=null", "task.synthetic_rows=48", *short)
    assert run(cfg).method == "ltp"


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["house", "reference"])
def test_ltp_learns_thresholds_and_meets_the_budget(tmp_path, profile):
    result = run(plain(tmp_path, "method=ltp", f"method.profile={profile}", "trainer.epochs=2"))
    assert result.budget.met
    left = run_folder(tmp_path, "ltp")
    stored = load_file(left / "model" / "prunekit.safetensors")
    line = torch.tensor([0.32, 0.64, 0.96])
    assert (stored["policy.values"] - line).abs().max() > 0.01  # they moved
    names = {name for row in read_jsonl(left / "metrics.jsonl") for name in row}
    assert {"threshold/layer_01", "train/budget", "budget/expected"} <= names


@pytest.mark.slow
def test_a_run_trained_on_short_texts_is_reported_by_band_of_length(tmp_path, capsys):
    short = ["trainer.lr=1e-3", "method.hard_fraction=0.5", "trainer.epochs=2"]
    cfg = plain(tmp_path, "experiment=length_robustness", "task.synthetic_rows=96", "plots=true", *short)
    result = run(cfg)
    bands = result.bands
    assert len(bands) == 4
    assert [band.below for band in bands[:-1]] == [band.low for band in bands[1:]]
    assert sum(band.rows for band in bands) == result.score.rows
    share = sum(band.pruned * band.rows for band in bands) / result.score.rows
    assert share == pytest.approx(result.score.pruned)
    left = next((tmp_path / "runs").glob("qnli/ltp/tiny/*/s1-*"))
    drawn = json.loads((left / "plots" / "bands.json").read_text())
    assert drawn == {"score": "accuracy", "bands": [band.to_json() for band in bands]}
    assert (left / "plots" / "bands.png").read_bytes().startswith(b"\x89PNG")
    assert f"accuracy, {bands[-1].rows} of {bands[-1].low} to" in capsys.readouterr().out


@pytest.mark.slow
def test_a_search_leaves_its_pareto_set_in_numbers_and_as_a_picture(tmp_path):
    search = ["method=lat", "method.train=false", "method.iterations=1", "method.population=2"]
    result = run(plain(tmp_path, *search, "plots=true"))
    left = run_folder(tmp_path, "lat")
    numbers = json.loads((left / "plots" / "pareto.json").read_text())
    assert result.search.chosen.to_json() == numbers["chosen"]
    assert [point.to_json() for point in result.search.pareto] == numbers["pareto"]
    assert (left / "plots" / "pareto.png").read_bytes().startswith(b"\x89PNG")
    stored = json.loads((left / "model" / "prunekit.json").read_text())
    assert list(stored["pruner"]["policy"]["arguments"]["ratios"].values()) == numbers["chosen"]["shares"]
    assert not list((left / "checkpoints").glob("**/search-*"))  # done: nothing to go on from


# -- kill -9 -------------------------------------------------------------------------------------------


def start(folder, *overrides):
    places = [f"runs_dir={folder / 'runs'}", f"data.cache_dir={folder / 'cache'}", "trainer.checkpoint_seconds=1"]
    return Training([*SMALL, "bench.enabled=false", *places, *overrides], folder)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(finished, tmp_path, workers):
    """Killed in the teacher, in the soft stage, after an epoch's end and in the hard stage."""
    folder, _ = finished

    def steps(method):
        found = list((tmp_path / "runs").glob(f"synthetic/{method}/tiny/*/*/metrics.jsonl"))
        rows = read_jsonl(found[0]) if found else []
        return max((row["step"] or 0 for row in rows), default=0)

    def checkpointed(method, after):
        return bool(list((tmp_path / "runs").glob(f"synthetic/{method}/**/last.ckpt"))) and steps(method) >= after

    for method, after in (("dense", 1), ("top", 1), ("top", 18), ("top", 25)):
        process = start(tmp_path, f"data.workers={workers}")
        process.kill_when(lambda method=method, after=after: checkpointed(method, after))
    assert start(tmp_path, f"data.workers={workers}").wait() == 0
    manifest = json.loads((run_folder(tmp_path) / "manifest.json").read_text())
    assert len(manifest["resumed"]) >= 2
    for name in ("model.safetensors", "prunekit.safetensors"):
        uninterrupted = load_file(run_folder(folder) / "model" / name)
        resumed = load_file(run_folder(tmp_path) / "model" / name)
        assert all(torch.equal(uninterrupted[key], resumed[key]) for key in uninterrupted)


@pytest.mark.slow
def test_calibrated_thresholds_survive_kills_too(tmp_path):
    """LTP killed in the soft stage and, with thresholds scaled and a fresh optimiser, in the hard one."""
    overrides = ["method=ltp", "trainer.epochs=4", "method.hard_fraction=0.5", "trainer.checkpoint_seconds=1"]
    run(plain(tmp_path / "whole", *overrides))
    given = [word for word in SMALL if not word.startswith("method.")]
    places = [f"runs_dir={tmp_path / 'killed' / 'runs'}", f"data.cache_dir={tmp_path / 'killed' / 'cache'}"]
    words = [*given, *places, "bench.enabled=false", "teacher.epochs=1", *overrides]

    def steps():
        rows = [
            row
            for path in (tmp_path / "killed").glob("runs/synthetic/ltp/**/metrics.jsonl")
            for row in read_jsonl(path)
        ]
        kept = list((tmp_path / "killed").glob("runs/synthetic/ltp/**/last.ckpt"))
        return max((row["step"] or 0 for row in rows), default=0) if kept else 0

    for after in (20, 60):
        Training(words, tmp_path).kill_when(lambda after=after: steps() >= after)
    assert Training(words, tmp_path).wait() == 0
    manifest = json.loads((run_folder(tmp_path / "killed", "ltp") / "manifest.json").read_text())
    assert len(manifest["resumed"]) == 2
    records = [
        [{key: value for key, value in row.items() if key != "time"} for row in read_jsonl(left / "metrics.jsonl")]
        for left in (run_folder(tmp_path / place, "ltp") for place in ("whole", "killed"))
    ]
    assert records[0] == records[1]
    for name in ("model.safetensors", "prunekit.safetensors"):
        whole, killed = (
            load_file(run_folder(tmp_path / place, "ltp") / "model" / name) for place in ("whole", "killed")
        )
        assert all(torch.equal(whole[key], killed[key]) for key in whole)


@pytest.mark.slow
def test_a_search_that_is_killed_ends_with_the_same_lengths(tmp_path):
    """LAT killed after some schedules were scored; the fit was done and is not repeated."""
    overrides = ["method=lat", "method.iterations=3"]
    whole = run(plain(tmp_path / "whole", *overrides))
    given = [word for word in SMALL if not word.startswith("method.")]
    places = [f"runs_dir={tmp_path / 'killed' / 'runs'}", f"data.cache_dir={tmp_path / 'killed' / 'cache'}"]
    short = ["bench.enabled=false", "teacher.epochs=1", "trainer.epochs=1"]
    words = [*given, *places, *short, *overrides]

    def scored():
        return sum(len(read_jsonl(path)) for path in (tmp_path / "killed").glob("**/settle/search-*.jsonl"))

    Training(words, tmp_path).kill_when(lambda: scored() >= 5)
    before = scored()
    assert (
        5
        <= before
        < len(json.loads((run_folder(tmp_path / "whole", "lat") / "plots/pareto.json").read_text())["measured"])
    )
    assert Training(words, tmp_path).wait() == 0
    killed = json.loads((run_folder(tmp_path / "killed", "lat") / "result.json").read_text())
    assert killed["search"] == whole.search.to_json()
    assert killed["score"] == whole.score.to_json()
    for name in ("model.safetensors", "prunekit.safetensors"):
        contents = [
            (run_folder(tmp_path / place, "lat") / "model" / name).read_bytes() for place in ("whole", "killed")
        ]
        assert contents[0] == contents[1]
