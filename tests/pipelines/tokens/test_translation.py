"""Whole runs on a translation task: every method, unchanged; the test is translated."""

import json
import re
import signal

import pytest
import torch
from safetensors.torch import load_file
from support.processes import Training
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import prunekit
from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.cost import DecoderShape, decoder_macs
from prunekit.files import read_jsonl
from prunekit.models.sources import backbone_shape, find_backbone
from prunekit.pipelines.run import run, train
from prunekit.pipelines.tokens.translation import TranslationPipeline
from prunekit.runs import kinds
from prunekit.tokens.encoder import encoder_of
from prunekit.tokens.state import Trace
from prunekit.tokens.translation import encode, generate

SMALL = [
    "task=parallel",
    "task.synthetic_rows=48",
    "task.max_target_length=24",
    "backbone=tiny_translator",
    "trainer=debug",
    "plots=false",
    "trainer.epochs=1",
    "teacher.epochs=0",
    "logger.wandb.enabled=false",
    "bench.enabled=false",
    "budget=1.3x",
]
# three words and a colon: a prefix of four tokens
PREFIX = ["backbone.prefix='bade {source} {target}: '", "task.source_language=bafi", "task.target_language=bago"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("translation")


def config(folder, *overrides):
    places = [f"runs_dir={folder / 'runs'}", f"data.cache_dir={folder / 'cache'}"]
    small = [word for word in SMALL if "task=synthetic" not in overrides or "target_length" not in word]
    return compose([*small, *places, *overrides])[0]


def left_by(folder, method, task="parallel"):
    (found,) = (folder / "runs").glob(f"{task}/{method}/tiny_translator/*/s1-*")
    return found


@pytest.fixture(scope="module")
def topk(folder):
    timed = ["bench.enabled=true", "bench.batch_sizes=[2]", "bench.examples=2", "bench.rounds=1"]
    result = run(config(folder, "method=topk", "backbone.family=t5", *PREFIX, *timed))
    return left_by(folder, "topk"), result


def test_the_result_says_how_well_it_translates_and_what_the_encoder_costs(topk):
    left, result = topk
    assert result.budget.met
    score = result.score
    assert (score.metric, score.rows, score.chosen_by) == ("bleu", 24, "word_accuracy")
    assert set(score.pruned_all) == set(score.dense_all) == {"bleu", "chrf", "length_ratio", "word_accuracy"}
    assert result.flops.of == "encoder"
    found = result.translation
    assert re.match(r"nrefs:1\|case:mixed\|.*\|version:", found.signature)
    assert found.beams == 4
    # what is left behind the last layer, of what came in
    assert found.source_kept == pytest.approx(result.tokens_per_layer[-1] / result.mean_length)
    whole = found.end_to_end
    assert 1 < whole.reduction < result.flops.flops_vs_unpadded  # the decoder is not pruned
    assert whole.encoder_share == pytest.approx(result.flops.dense_unpadded_g / whole.dense_g)
    assert sum(band.rows for band in result.bands) == 24
    for band in result.bands:
        assert {"dense", "pruned", "flops_vs_unpadded"} <= set(band.to_json())
    assert [row.batch_size for row in result.speed] == [2]
    assert {"val/word_accuracy", "score"} <= {name for row in read_jsonl(left / "metrics.jsonl") for name in row}


def test_costs_by_length_add_up_to_the_whole(topk):
    _, result = topk
    rows = [band.rows for band in result.bands]
    means = [band.mean_length for band in result.bands]
    assert sum(n * mean for n, mean in zip(rows, means, strict=True)) / 24 == pytest.approx(result.mean_length)
    low, high = (choose(band.flops_vs_unpadded for band in result.bands) for choose in (min, max))
    assert low - 1e-6 <= result.flops.flops_vs_unpadded <= high + 1e-6


def test_the_same_command_again_returns_the_stored_result(topk, folder, capsys, monkeypatch):
    monkeypatch.setattr(TranslationPipeline, "execute", lambda self: pytest.fail("it ran again"))
    assert train(config(folder, "method=topk", "backbone.family=t5", *PREFIX, *_timed())) == 0
    shown = capsys.readouterr().out
    for said in ("stored result", "GFLOPs of the encoder", "source tokens that reach the decoder", "nrefs:1"):
        assert said in " ".join(shown.split())


def _timed():
    return ["bench.enabled=true", "bench.batch_sizes=[2]", "bench.examples=2", "bench.rounds=1"]


def test_the_folder_translates_as_it_was_tested_and_protects_the_prefix(topk):
    left, _ = topk
    model, tokenizer = prunekit.load(left / "model"), AutoTokenizer.from_pretrained(left / "model")
    assert encoder_of(model).prefix == 4
    batch = tokenizer(["bade bafi bago: bade fixgo debu baba nene susu pipi roro"], return_tensors="pt")
    trace = Trace()
    with torch.no_grad():
        encode(model, **batch, trace=trace)
    last = trace.layers[-1]
    kept = sorted(last.position[0][last.keep[0] > 0].tolist())
    assert kept[:4] == [0, 1, 2, 3]
    assert kept[-1] == batch["input_ids"].shape[1] - 1  # the end
    assert isinstance(tokenizer.batch_decode(generate(model, **batch), skip_special_tokens=True)[0], str)
    answers = json.loads((left / "predictions.json").read_text())
    assert sorted(answers, key=int) == [str(n) for n in range(1, 25)]
    card = (left / "model" / "README.md").read_text()
    for said in ("pipeline_tag: translation", "AutoModelForSeq2SeqLM", "prunekit.tokens.translation import generate"):
        assert said in card


def test_without_prunekit_the_folder_is_the_dense_model(topk):
    left, _ = topk
    stock = AutoModelForSeq2SeqLM.from_pretrained(left / "model")
    ours = prunekit.load(left / "model")
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in stock.state_dict().items())


def test_a_teacher_of_no_epochs_is_the_backbone_as_it_is(topk, folder):
    cfg = config(folder, "method=topk", "backbone.family=t5")
    backbone = find_backbone(cfg["backbone"])
    assert backbone_shape(backbone)["num_hidden_layers"] == 4
    dense = left_by(folder, "dense")
    weights, stored = load_file(backbone / "model.safetensors"), load_file(dense / "model" / "model.safetensors")
    assert set(weights) == set(stored)
    assert all(torch.equal(weights[name], stored[name]) for name in weights)
    assert not list(dense.glob("checkpoints/*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["marian", "t5"])
@pytest.mark.parametrize("method", ["topk", "threshold", "ltp", "top", "tsdtp", "dtp", "lat"])
def test_every_method_runs_on_it_and_meets_the_budget(folder, method, family):
    own = {
        "ltp": ["trainer.epochs=2"],
        "top": ["method.bins=8", "trainer.epochs=2"],
        "tsdtp": ["trainer.epochs=2"],
        "dtp": ["trainer.epochs=2"],
        "lat": ["method.iterations=1", "method.mutations=1", "method.crossovers=1", "method.population=1"],
    }.get(method, [])
    prefix = PREFIX if family == "t5" else []
    result = run(config(folder, f"method={method}", f"backbone.family={family}", "task.name=each", *prefix, *own))
    assert result.budget.met
    assert abs(1.3 / result.budget.reached - 1) <= 0.02
    assert result.translation.source_kept < 1


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [["method=dtp"], ["method=threshold", "method.profile=geometric"]])
def test_a_translator_is_pruned_as_it_is(folder, overrides):
    result = run(config(folder, "method.train=false", "task.name=untrained", *overrides, *PREFIX))
    assert result.budget.met


@pytest.mark.slow
def test_a_decoder_learns_to_say_its_source(folder):
    """The loss, the data and the decoder belong together: trained on what it is to say, it says it better."""
    long = ["method=dense", "budget=null", "task.name=learned", "trainer.epochs=16", "trainer.lr=1e-3"]
    run(config(folder, *long))
    rows = read_jsonl(left_by(folder, "dense", "learned") / "metrics.jsonl")
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert max(losses[-3:]) < 0.97 * losses[0]  # its word embeddings, random ones, stay as they are


@pytest.mark.slow
def test_half_precision_trains_too(folder):
    result = run(config(folder, "method=tsdtp", "trainer.epochs=2", "trainer.precision=bf16", "task.name=half"))
    assert result.precision == "bf16-mixed"


@pytest.mark.slow
def test_a_run_that_is_killed_ends_with_the_same_weights(tmp_path):
    """In the soft stage and, with k shifted and a fresh optimiser, in the hard one."""
    own = ["method=tsdtp", "trainer.epochs=4", "trainer.checkpoint_seconds=1", "trainer.batch_size=2"]

    def arguments(place):
        places = [f"runs_dir={tmp_path / place / 'runs'}", f"data.cache_dir={tmp_path / place / 'cache'}"]
        return [*SMALL, *places, *own]

    def step():
        rows = [row for file in (tmp_path / "killed").glob("runs/*/tsdtp/**/metrics.jsonl") for row in read_jsonl(file)]
        saved = list((tmp_path / "killed").glob("runs/*/tsdtp/**/last.ckpt"))
        return max((row["step"] for row in rows if isinstance(row.get("step"), int)), default=0) if saved else 0

    run(compose(arguments("whole"))[0])
    for after in (20, 70):  # of 96 steps, 58 of them soft
        code = Training(arguments("killed"), tmp_path).kill_when(lambda after=after: step() >= after)
        assert code == -signal.SIGKILL, "the run ended before it could be killed"
    run(compose(arguments("killed"))[0])
    manifest = json.loads((left_by(tmp_path / "killed", "tsdtp") / "manifest.json").read_text())
    assert len(manifest["resumed"]) == 2
    for name in ("model.safetensors", "prunekit.safetensors"):
        whole, killed = (
            load_file(left_by(tmp_path / place, "tsdtp") / "model" / name) for place in ("whole", "killed")
        )
        assert all(torch.equal(whole[key], killed[key]) for key in whole)


# -- what cannot work ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["backbone=tiny"], r"(?s)of the family 'bert', which is not for task.kind=translation.*Allowed: marian, t5"),
        (["task=synthetic"], r"(?s)of the family 'marian', which is not for task.kind=classification.*bert"),
        (["trainer.epochs=0"], r"trainer.epochs=0 trains nothing, but method=topk is to be trained"),
        (["backbone.prefix='to {target}: '"], "names the target language, which task=parallel does not give"),
        (["backbone.prefix='to {goal}: '"], "cannot be filled in"),
        (["data.eval_bands=[0,median,max]"], "data.eval_bands, but parallel is translated"),
        (["method=dpruner", "budget=3x"], "method=dpruner prunes weights, and task=parallel is of kind translation"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_trained(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        run(config(tmp_path, "method=topk", *overrides))
    assert not list(tmp_path.glob("runs/**/result.json"))


def test_a_classifier_without_a_head_cannot_be_taken_as_it_is(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)trainer.epochs=0 takes .* no head for text-classification"):
        run(config(tmp_path, "task=synthetic", "backbone=tiny", "method=topk"))


def test_without_sacrebleu_nothing_is_started(tmp_path, monkeypatch):
    found = kinds.importlib.util.find_spec
    monkeypatch.setattr(kinds.importlib.util, "find_spec", lambda name: None if name == "sacrebleu" else found(name))
    with pytest.raises(ConfigError, match=r"(?s)task=parallel is scored by sacreBLEU.*prunekit\[translation\]"):
        run(config(tmp_path, "method=topk"))


# -- the decoder's cost --------------------------------------------------------------------------------


def test_a_decoder_small_enough_to_count_by_hand():
    shape = DecoderShape(layers=2, hidden=3, ffn=5, heads=4, vocabulary=7)
    # own 4*3*4*2 + 2*4*4, across 2*3*4*2 + 2*3*4*6 + 2*4*2*6, feed-forward 2*3*5*2; vocabulary 3*7*2
    assert decoder_macs(shape, torch.tensor([6]), torch.tensor([2])).tolist() == [2 * (128 + 288 + 60) + 42]


@pytest.mark.parametrize("family", ["marian", "t5"])
def test_it_is_what_torch_counts(family):
    from support.translators import translator
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode
    from transformers.modeling_outputs import BaseModelOutput

    model = translator(family)
    source = BaseModelOutput(last_hidden_state=torch.randn(1, 9, 32))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(encoder_outputs=source, decoder_input_ids=torch.randint(5, 120, (1, 6)), use_cache=False)
    shape = DecoderShape.from_config(model.config)
    counted = 2 * float(decoder_macs(shape, torch.tensor([9]), torch.tensor([6])))
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.01)
