"""One command calibrates, scores, masks, repairs, measures and saves; what is known already is not computed again."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file
from support.damage import flip
from support.weight_runs import configured, run_small
from transformers import AutoModelForCausalLM

from prunekit.config.errors import ConfigError
from prunekit.pipelines.run import run
from prunekit.pipelines.weights import evaluation, masking, statistics
from prunekit.report.rows import collect
from prunekit.weights.decoder import all_matrices, prunable_matrices, weight_of
from prunekit.weights.storage import load_compact, load_masks

VARIANTS = [
    ["method=magnitude"],
    ["method=wanda", "method.calibration=mixed"],
    ["method=wanda", "method.alloc=owl"],
    ["method=sparsegpt", "method.calibration=domain"],
    ["method=gblm"],
    ["method=dpruner"],
    ["method=dpruner", "method.score=dual_virtual", "method.group=global"],
    ["method=dpruner", "method.score=general_only", "method.group=matrix", "method.metric=obs"],
    ["method=dpruner", "method.score=domain_only", "method.group=row", "method.alloc=rank"],
    ["method=dpruner", "method.weight_update=obs", "method.group=nm"],
    ["method=dpruner", "method.score=dual_add"],
    ["method=dpruner", "method.score=taylor2_signed"],
]


@pytest.mark.slow
@pytest.mark.parametrize("given", VARIANTS, ids=" ".join)
def test_every_method_removes_what_was_asked_and_saves_it(given, tmp_path):
    result, path = run_small(tmp_path, *given)
    # a row of 32 loses whole weights
    assert result.sparsity.of_prunable == pytest.approx(0.5, abs=0.02)
    model = AutoModelForCausalLM.from_pretrained(path / "model")
    matrices, masks = all_matrices(prunable_matrices(model)), load_masks(path / "model" / "masks.safetensors")
    assert list(masks) == list(matrices)
    for name, mask in masks.items():
        assert bool((weight_of(matrices[name])[~mask] == 0).all())
    assert 1 < result.pruned.domain_perplexity < 2000
    assert result.two_of_four == ("method.group=nm" in given)


@pytest.mark.parametrize(
    "family", ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("opt", "mistral", "qwen2"))]
)
def test_every_family_runs(family, tmp_path):
    result, _ = run_small(tmp_path, "method=dpruner", f"backbone.family={family}", "method.weight_update=obs")
    assert result.sparsity.of_prunable == pytest.approx(0.5, abs=0.01)


def test_nothing_removed_is_the_dense_model(tmp_path):
    result, _ = run_small(tmp_path, "method=dpruner", "method.sparsity=0")
    assert result.pruned == result.dense
    assert result.sparsity.removed == 0


@pytest.mark.slow
def test_another_sparsity_masks_anew_without_scoring_anew(tmp_path):
    first, _ = run_small(tmp_path, "method=dpruner")
    again, path = run_small(tmp_path, "method=dpruner", "method.sparsity=0.7", "method.lambda_=1")
    assert first.reused == ()
    assert sorted(name.split("-")[0] for name in again.reused) == ["general", "magnitude"]
    assert path.parent.name == "sparse0.7"
    fresh, _ = run_small(tmp_path / "elsewhere", "method=dpruner", "method.sparsity=0.7", "method.lambda_=1")
    assert fresh.pruned == again.pruned


@pytest.mark.slow
def test_what_changes_the_statistics_makes_them_anew(tmp_path):
    run_small(tmp_path, "method=dpruner")
    other, _ = run_small(tmp_path, "method=dpruner", "method.metric=obs")
    assert [name.split("-")[0] for name in other.reused] == ["magnitude"]
    seeded, _ = run_small(tmp_path, "method=dpruner", "seed=2")
    assert seeded.reused == ()


@pytest.mark.slow
def test_the_same_command_gives_the_stored_result_and_force_the_same_numbers(tmp_path):
    cfg = configured(tmp_path, "method=dpruner")
    first = run(cfg)
    assert run(cfg) == first
    again = run(cfg | {"force": True})
    assert again.pruned == first.pruned
    # what has no part in a run that prunes weights does not name it
    assert configured(tmp_path, "method=dpruner")["budget"] == "3x"
    assert run(configured(tmp_path, "method=dpruner", "budget=2x", "teacher.epochs=7")) == again


def test_the_score_reuses_a_statistic_that_the_allocation_computed(tmp_path):
    result, _ = run_small(tmp_path, "method=wanda", "method.alloc=owl")
    assert list(result.seconds) == ["evaluate dense", "norms on open", "mask", "evaluate pruned", "total"]
    (reused,) = result.reused
    assert (tmp_path / "cache" / "weights" / reused).is_file()


def test_damaged_files_of_the_cache_are_made_again_with_a_line_each(tmp_path, capsys):
    first, path = run_small(tmp_path, "method=wanda")
    shutil.rmtree(path)
    files = sorted((tmp_path / "cache" / "weights").glob("[!.]*"))
    assert [file.suffix for file in files] == [".json", ".safetensors"]
    contents = [file.read_bytes() for file in files]
    files[0].write_text(files[0].read_text().replace("1", "7"))
    flip(files[1], 0.99)
    again, _ = run_small(tmp_path, "method=wanda")
    assert (again.pruned, again.dense, again.reused) == (first.pruned, first.dense, ())
    assert [file.read_bytes() for file in files] == contents
    assert capsys.readouterr().out.count("it is made again") == 2


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, capsys):
    cfg = configured(tmp_path, "method=wanda")
    cfg["data"] |= {"cache_dir": "/dev/null/cache"}
    assert run(cfg).sparsity.of_prunable == pytest.approx(0.5, abs=0.02)
    assert capsys.readouterr().out.count("/dev/null/cache/weights cannot be written (") == 2


def test_sparsity_of_the_model_takes_more_of_the_matrices(tmp_path):
    result, _ = run_small(tmp_path, "method=magnitude", "method.sparsity_of=model", "method.sparsity=0.4")
    assert result.sparsity.of_model == pytest.approx(0.4, abs=0.005)
    with pytest.raises(ConfigError, match=r"method\.sparsity=0\.9 of the whole model"):
        run_small(tmp_path, "method=magnitude", "method.sparsity_of=model", "method.sparsity=0.9")


def test_the_model_card_and_the_compact_file(tmp_path):
    result, path = run_small(tmp_path, "method=dpruner", "method.compact=true")
    card = (path / "model" / "README.md").read_text()
    assert "neither smaller nor faster than the dense model" in card
    assert f"{result.pruned.domain_perplexity:.2f}" in card
    assert "36864 prunable weights" in card
    dense = load_file(path / "model" / "model.safetensors")
    for name, weight in load_compact(path / "model" / "compact.safetensors").items():
        assert weight.equal(dense[f"{name}.weight"])
    assert "quantization_config" not in json.loads((path / "model" / "config.json").read_text())
    about = result.calibration["domain"]
    assert (about.samples, about.tokens, about.seed) == (3, 72, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("score", "kept"), [("dual_virtual", {"general", "magnitude", "fisher"}), ("taylor2_signed", {"fisher", "signed"})]
)
def test_sums_of_gradients_go_on_from_chunk_to_chunk(score, kept, tmp_path):
    given = ("method=dpruner", f"method.score={score}")
    statistics = []
    for chunk in (1, 2, 16):  # of 3 samples
        run_small(tmp_path / str(chunk), *given, f"method.chunk={chunk}")
        files = sorted((tmp_path / str(chunk) / "cache" / "weights").glob("*.safetensors"))
        statistics.append({name: tensor for file in files for name, tensor in load_file(file).items()})
    assert {name.rpartition(".")[2] for name in statistics[0]} == kept
    for other in statistics[1:]:
        assert all(tensor.equal(other[name]) for name, tensor in statistics[0].items())


def test_without_weights_the_folder_holds_masks_and_the_run_is_done(tmp_path):
    given = ("method=wanda", "method.save_weights=false")
    result, path = run_small(tmp_path, *given)
    assert {file.name for file in (path / "model").iterdir()} >= {"masks.safetensors", "config.json", "README.md"}
    assert not list(path.rglob("model*.safetensors"))
    assert "Weights were not kept" in (path / "model" / "README.md").read_text()
    assert run_small(tmp_path, *given)[0] == result


def test_own_texts_overlap_and_choice(tmp_path):
    words = [f"ba de fi go lu ma number {n} " * 6 for n in range(20)]
    (tmp_path / "own.txt").write_text("\n\n".join(words))
    (tmp_path / "held.jsonl").write_text("".join(json.dumps({"text": w}) + "\n" for w in [*words[:2], "ba de " * 20]))
    (tmp_path / "q.jsonl").write_text('{"q": "ba de?", "a": "fi"}\n{"q": "go lu?", "a": "ma"}\n')
    result, _ = run_small(
        tmp_path,
        "task=domain_text",
        "task.synthetic_rows=null",
        "method=wanda",
        f"task.domain.file={tmp_path / 'own.txt'}",
        f"task.domain.eval_file={tmp_path / 'held.jsonl'}",
        f"task.open.file={tmp_path / 'own.txt'}",
        "task.choice.enabled=true",
        f"task.choice.file={tmp_path / 'q.jsonl'}",
        "task.choice.template='{{ q }}'",
        "task.choice.answer=a",
        "task.choice.choices=[fi,ma]",
    )
    assert result.calibration["domain"].overlap == 2
    assert result.pruned.choice_rows == 2


def test_generation_is_scored_by_rouge_on_an_own_file(tmp_path):
    (tmp_path / "own.txt").write_text("\n\n".join(f"ba de fi go lu ma number {n} " * 6 for n in range(20)))
    rows = [{"q": "ba de", "a": "fi go"}, {"q": "go lu", "a": "ma de"}, {"q": "lu", "a": "ba"}]
    (tmp_path / "ask.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result, path = run_small(
        tmp_path,
        "task=domain_text",
        "task.synthetic_rows=null",
        "method=magnitude",
        f"task.domain.file={tmp_path / 'own.txt'}",
        f"task.open.file={tmp_path / 'own.txt'}",
        "task.generation.enabled=true",
        f"task.generation.file={tmp_path / 'ask.jsonl'}",
        "task.generation.template='{{ q }}'",
        "task.generation.reference='{{ a }}'",
        "task.generation.rows=2",
        "task.generation.new_tokens=4",
    )
    for found in (result.dense, result.pruned):
        assert all(0 <= score <= 1 for score in (found.rouge1, found.rouge2, found.rouge_l))
        assert found.rouge_l <= found.rouge1
    (row,) = collect([tmp_path / "runs"]).rows
    assert row["scores"]["rouge1"] == result.pruned.rouge1
    assert "| rougeL |" in (path / "model" / "README.md").read_text()


def test_a_run_is_a_row_of_the_table(tmp_path):
    result, _ = run_small(tmp_path, "method=magnitude")
    found = collect([tmp_path / "runs"])
    (row,) = found.rows
    assert found.problems == []
    assert (row["metric"], row["flops"]["vs_unpadded"]) == ("token_probability", 1.0)
    assert row["score"] == pytest.approx(1 / result.pruned.domain_perplexity)
    assert row["scores"]["open_perplexity"] == result.pruned.open_perplexity
    assert row["dense_scores"]["open_perplexity"] == result.dense.open_perplexity
    assert row["variant"] == "magnitude"
    assert row["peak_memory_mib"] == result.peak_memory_mib


# -- what cannot run -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["method=top"], r"method=top prunes tokens, and task=domain_legal is of kind text"),
        (["method=dpruner", "task=bbc_news"], r"method=dpruner prunes weights, and task=bbc_news is of kind classif"),
        (["method=dpruner", "backbone=tiny"], r"family 'bert', which has no decoder blocks"),
        (["method=dpruner", "method.sparsity=1.5"], r"method\.sparsity=1\.5 is out of range"),
        (["method=dpruner", "method.group=nm", "method.sparsity=0.6"], r"2:4 removes 0\.5 of every matrix"),
        (["method=dpruner", "method.group=nm", "method.keep=4"], r"method\.keep=4 of method\.of=4 removes nothing"),
        (["method=dpruner", "method.scope=nothing"], r"method\.scope=nothing matches no linear layer"),
        (
            ["method=dpruner", "task.domain.samples=999"],
            r"gives \d+ samples of 24 tokens, not task\.domain\.samples=999",
        ),
        (["method=dpruner", "method.scope='mlp('"], r"method\.scope=mlp\( is not a regular expression"),
        (
            ["method=sparsegpt", "method.group=row"],
            r"method\.group=row is not one of the choices.\nAllowed: .*block\|nm",
        ),
        (["method=sparsegpt", "method.weight_update=obs"], r"Allowed: one of none; .* re-fitted while the mask is"),
        (
            ["method=dpruner", "task.loss_on=completion", "task.domain.completion=x"],
            r"task\.domain\.pack=packed cuts samples out of running text",
        ),
        (["method=dpruner", "task.stride=33"], r"task\.stride=33 skips text"),
        (["method=dpruner", "task.loss_on=completion"], r"task\.domain\.completion is null"),
        (["method=dpruner", "task.synthetic_rows=null"], r"task\.open: no texts\. Tried PRUNEKIT_DATA"),
    ],
)
def test_what_cannot_run_is_said_in_three_lines(given, words, tmp_path, monkeypatch):
    monkeypatch.delenv("PRUNEKIT_DATA", raising=False)
    task = [] if any(word.startswith("task=") for word in given) else ["task=domain_legal"]
    if "task=bbc_news" in given:
        from prunekit.config.composition import compose

        cfg, _ = compose([*given, f"runs_dir={tmp_path}"])
        with pytest.raises(ConfigError, match=words):
            run(cfg)
        return
    with pytest.raises(ConfigError, match=words) as refused:
        run_small(tmp_path, *task, *given)
    assert len(str(refused.value).splitlines()) <= 3


def test_too_little_text_is_said_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "perplexity", lambda *given: pytest.fail("measured"))
    with pytest.raises(ConfigError, match=r"not task\.open\.samples=999"):
        run_small(tmp_path, "method=magnitude", "task.open.samples=999")


@pytest.mark.parametrize("given", [["method=dpruner"], ["method=gblm"], ["method=wanda", "method.alloc=owl"]])
def test_a_scope_may_name_nothing_of_a_block(given, tmp_path):
    result, path = run_small(tmp_path, *given, r"method.scope='layers\.0\.'")
    masks = load_masks(path / "model" / "masks.safetensors")
    assert masks
    assert all(".0." in name for name in masks)
    assert result.sparsity.of_prunable == pytest.approx(0.5, abs=0.02)


def test_every_long_step_says_how_far_it_is(tmp_path, monkeypatch):
    seen = []
    for module in (evaluation, masking, statistics):
        monkeypatch.setattr(module, "track", lambda items, label, total=None: seen.append(label) or items)
    run_small(tmp_path, "method=dpruner", "method.weight_update=obs")
    steps = {"general", "gradients (magnitude)", "mask", "repair on mixed"}
    assert steps | {f"{text} ({model})" for text in ("open", "domain") for model in ("dense", "pruned")} <= set(seen)


def test_a_calibration_sequence_is_never_longer_than_the_model_takes(tmp_path):
    words = " ".join(["ba de fi go"] * 400)
    (tmp_path / "own.txt").write_text("\n\n".join(f"{n} {words}" for n in range(20)))
    result, _ = run_small(
        tmp_path,
        "task=domain_text",
        "task.synthetic_rows=null",
        "method=wanda",
        "task.open.samples=1",
        "task.open.seqlen=5000",
        f"task.open.file={tmp_path / 'own.txt'}",
        f"task.domain.file={tmp_path / 'own.txt'}",
    )
    assert result.calibration["open"].tokens == 512  # of the tokenizer; the model has two positions more


def test_warnings_about_the_hessian_reach_the_log(caplog):
    from prunekit.weights.importance import inverse_factor

    with caplog.at_level(logging.WARNING, logger="prunekit"):
        inverse_factor(torch.tensor([[1.0, 90], [90, 1.0]]))
    assert "its diagonal is used" in caplog.text
