"""A model that people bring is refused before anything slow, or does what it did before."""

import json
import shutil

import pytest
import torch
from support.folders import classifier_folder, edit_json, edit_tensors
from support.models import tiny_model
from transformers import AutoModelForSequenceClassification

import prunekit
from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.data.encoding import load_tokenizer
from prunekit.data.synthetic import MARKERS
from prunekit.models.tiny import build_tiny_backbone
from prunekit.pipelines.run import run, train
from prunekit.pipelines.tokens import preparation
from prunekit.runs.folder import RunFolder

COLOURS = ("red", "green", "blue")
SMALL = [
    "task=synthetic",
    "backbone=tiny",
    "trainer=debug",
    "plots=false",
    "task.synthetic_rows=48",
    "logger.wandb.enabled=false",
    "bench.enabled=false",
    "trainer.max_steps=2",
    "examples=0",
]


def config(folder, *given):
    places = [f"runs_dir={folder / 'runs'}", f"data.cache_dir={folder / 'cache'}"]
    typed = {word.partition("=")[0] for word in given} | ({"task.synthetic_rows"} if "task=csv" in given else set())
    small = [word for word in SMALL if word.partition("=")[0] not in typed]
    return compose([*small, *places, *given])[0]


@pytest.fixture
def no_data(monkeypatch):
    """Reading the data is the first slow thing."""
    monkeypatch.setattr(preparation, "read_data", lambda run: pytest.fail("data was read"))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return classifier_folder(tmp_path_factory.mktemp("models") / "my_model", names=COLOURS)


@pytest.fixture
def own(original, tmp_path):
    return shutil.copytree(original, tmp_path / "my_model")


# -- what is refused -------------------------------------------------------------------------------------


def headless(folder):
    edit_tensors(
        folder / "model.safetensors",
        lambda tensors: {name[5:]: tensor for name, tensor in tensors.items() if name.startswith("bert.")},
    )
    edit_json(folder / "config.json", architectures=["BertModel"])


def lacks_its_head(folder):
    edit_tensors(
        folder / "model.safetensors",
        lambda tensors: {name: tensor for name, tensor in tensors.items() if "classifier" not in name},
    )


def lacks_a_layer(folder):
    edit_tensors(
        folder / "model.safetensors",
        lambda tensors: {name: tensor for name, tensor in tensors.items() if "layer.2." not in name},
    )


def is_not_finite(folder):
    edit_tensors(
        folder / "model.safetensors",
        lambda tensors: tensors | {"classifier.bias": torch.tensor([0.0, float("nan"), 0.0])},
    )


def has_no_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def has_more_tokens(folder):
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)


def is_a_decoder(folder):
    shutil.rmtree(folder)
    build_tiny_backbone(folder, "llama")


def is_set_to_decode(folder):
    edit_json(folder / "config.json", is_decoder=True)


def is_short(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    rows = model.bert.embeddings.position_embeddings.weight[:40]
    edit_tensors(
        folder / "model.safetensors",
        lambda tensors: tensors | {"bert.embeddings.position_embeddings.weight": rows.detach().clone()},
    )
    edit_json(folder / "config.json", max_position_embeddings=40)
    edit_json(folder / "tokenizer_config.json", model_max_length=10**30)


def is_named_by_number(folder):
    edit_json(folder / "config.json", id2label={str(n): f"LABEL_{n}" for n in range(3)})


def has_other_classes(folder):
    edit_json(folder / "config.json", id2label={"0": "red", "1": "green", "2": "violet"})


def is_pruned(folder):
    edit_json_or_new(folder / "prunekit.json")


def edit_json_or_new(path):
    part = {"class": "prunekit.tokens.scorers.AttentionReceived", "arguments": {}}
    pruner = {"layers": [1], "scorer": part, "policy": part}
    content = {"format": 1, "weights_sha256": "", "tensors_sha256": "", "execution": "pack", "pruner": pruner}
    path.write_text(json.dumps(content))


FAULTS = {
    headless: "my_model has no head for text-classification, so it answers nothing",
    lacks_its_head: r"my_model lacks 2 tensors: classifier\.bias, classifier\.weight",
    lacks_a_layer: r"my_model lacks 16 tensors: bert\.encoder\.layer\.2\.",
    is_not_finite: r"my_model holds NaN in classifier\.bias",
    has_no_tokenizer: "my_model has no tokenizer",
    has_more_tokens: r"my_model has a tokenizer with (\d+) tokens, but embeddings of \d+",
    is_a_decoder: "my_model is of the family 'llama', which prunekit cannot prune",
    is_set_to_decode: r"my_model generates text \(is_decoder=true\)",
    is_short: r"task\.max_length=\d+, but model=\S+my_model reads at most 40 tokens",
    is_named_by_number: r"has the classes \[LABEL_0, LABEL_1, LABEL_2\], but the task has \[red, green, blue\]",
    has_other_classes: r"has the classes \[red, green, violet\], but the task has \[red, green, blue\]",
    is_pruned: "my_model is a pruned model, which would run unpruned here",
}


@pytest.mark.parametrize("spoil", FAULTS)
def test_a_model_with_a_fault_is_refused_before_anything_slow(own, tmp_path, no_data, spoil):
    spoil(own)
    with pytest.raises(ConfigError, match=FAULTS[spoil]) as raised:
        train(config(tmp_path, f"model={own}", "method=topk", "method.train=false", "trainer.epochs=0"))
    assert len(str(raised.value).splitlines()) <= 3


@pytest.mark.parametrize("spoil", [headless, has_no_tokenizer, has_more_tokens, is_a_decoder, is_pruned])
def test_it_is_refused_before_it_answers_texts_without_labels(own, tmp_path, no_data, spoil):
    spoil(own)
    given = ["task=csv", f"task.file={colours(tmp_path)}", "task.label=null", f"model={own}", "method=topk"]
    with pytest.raises(ConfigError, match=FAULTS[spoil]):
        train(config(tmp_path, *given, "method.train=false", "trainer.epochs=0"))


@pytest.mark.parametrize("spoil", [headless, lacks_its_head, is_not_finite, has_more_tokens, is_named_by_number])
def test_a_teacher_with_a_fault_is_refused_before_anything_slow(own, tmp_path, no_data, spoil):
    spoil(own)
    given = [f"teacher.path={own}", f"backbone.path={own}"]
    with pytest.raises(ConfigError, match=FAULTS[spoil]):
        train(config(tmp_path, "method=topk", *given))


def test_a_teacher_of_other_sizes_is_refused(tmp_path, no_data):
    tiny_model(layers=2, classes=3).save_pretrained(tmp_path / "two")
    edit_json(tmp_path / "two" / "config.json", id2label=dict(enumerate(COLOURS)))
    with pytest.raises(ConfigError, match=r"(?s)has 2 layers x 32, but backbone=\S+ has 4 x 32\..*Give model="):
        train(config(tmp_path, "method=topk", f"teacher.path={tmp_path / 'two'}"))


# -- what it does ----------------------------------------------------------------------------------------


def colours(tmp_path, names=COLOURS):
    """A table whose texts name their class by a marker of the synthetic task."""
    rows = [f"{MARKERS[row % 3 * 2]} word {row},{names[row % 3]}" for row in range(45)]
    (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return tmp_path / "t.csv"


def answers(folder):
    """The label of each text by name, as the packed engine gives it."""
    return prunekit.load(folder, engine="packed")([f"{MARKERS[row % 3 * 2]} word {row}" for row in range(9)]).labels


def test_one_key_names_the_model_everywhere_and_changes_no_answer(own, tmp_path):
    given = ["task=csv", f"task.file={colours(tmp_path)}", f"model={own}", "method=dense", "trainer.epochs=0"]
    result = run(config(tmp_path, *given))
    (folder,) = (tmp_path / "runs" / "csv" / "dense" / "my_model").glob("dense/s1-*")
    assert result.backbone == "my_model"
    assert "# dense on csv, my_model, seed 1" in (folder / "model" / "README.md").read_text()
    assert answers(folder / "model") == answers(own)
    assert json.loads((folder / "model" / "prunekit.json").read_text())["max_length"] == 512


@pytest.mark.slow
@pytest.mark.parametrize("key", ["model", "teacher.path"])
def test_a_model_in_another_order_gives_the_same_names(own, tmp_path, key):
    table = colours(tmp_path)
    swapped = shutil.copytree(own, tmp_path / "swapped")
    order = [2, 0, 1]

    def change(tensors):
        return tensors | {f"classifier.{part}": tensors[f"classifier.{part}"][order] for part in ("weight", "bias")}

    edit_tensors(swapped / "model.safetensors", change)
    edit_json(swapped / "config.json", id2label={str(n): COLOURS[old].title() for n, old in enumerate(order)})
    given = ["task=csv", f"task.file={table}", "task.labels=[red,green,blue]", "method=topk", "method.train=false"]
    given += ["trainer.epochs=0", f"{key}={swapped}", "budget=1.2x"]
    given += [f"backbone.path={swapped}"] if key != "model" else []
    result = run(config(tmp_path, *given))
    (folder,) = (tmp_path / "runs").glob("csv/topk/*/*/s1-*")
    assert prunekit.load(folder).config.id2label == dict(enumerate(COLOURS))
    texts = [line.partition(",")[0] for line in table.read_text().splitlines()[1:]]
    expected = prunekit.load(own, engine="packed")(texts).labels
    assert len(set(expected)) > 1
    assert prunekit.load(folder, engine="packed")(texts, prune=False).labels == expected
    assert prunekit.load(swapped, engine="packed")(texts).labels == [name.title() for name in expected]
    # the same model in the task's own order is as good
    other = run(config(tmp_path, *[word.replace(str(swapped), str(own)) for word in given]))
    assert other.score.dense == result.score.dense


def test_a_run_that_needs_no_teacher_trains_none(own, tmp_path):
    result = run(config(tmp_path, f"model={own}", "method=topk", "budget=1.2x", "trainer.epochs=1"))
    assert result.backbone == "my_model"
    assert not (tmp_path / "runs" / "synthetic" / "dense").exists()
    (folder,) = (tmp_path / "runs").glob("synthetic/topk/my_model/*/s1-*")
    assert "topk on synthetic, my_model" in (folder / "model" / "README.md").read_text()
    manifest = RunFolder(folder, "").manifest()
    assert len(manifest["teacher"]["weights_sha256"]) == 64
