"""Published checkpoints: the imported model computes what the repository's code does, and what is wrong is refused."""

import json
import os

import pytest
import torch
from support.models import sentences
from support.published import (
    DIFFERENCES,
    FINAL,
    TOKEN_Z,
    ltp_decision,
    masked_forward,
    top_decision,
    write_ltp,
    write_top,
)

import prunekit
from prunekit.config.errors import ConfigError
from prunekit.models import pretrained
from prunekit.pipelines.imports.importing import import_checkpoint
from prunekit.pipelines.imports.published import Given
from prunekit.pipelines.imports.top import pickled_locations
from prunekit.tokens.encoder import encoder_of
from prunekit.tokens.state import Trace

ROWS = [9, 40, 23, 5]
WIDTH = 64
REFERENCE = Given("reference", max_length=WIDTH)


def imported(repository, folder, out, given=REFERENCE):
    return prunekit.load(import_checkpoint(repository, folder, out, given).folder)


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A checkpoint of ToP, the plain model in it, and what was imported from it."""
    folder = tmp_path_factory.mktemp("top")
    model = write_top(folder / "published", pruner_z=torch.tensor([1.0, 1.0]))
    return folder, model, imported("top", folder / "published", folder / "out")


@pytest.fixture(scope="module")
def ltp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ltp")
    model = write_ltp(folder / "published")
    return folder, model, imported("ltp", folder / "published", folder / "out")


def computed(model, batch):
    trace = Trace()
    with torch.no_grad():
        logits = model(**batch, trace=trace).logits
    return logits, trace.tokens_in


# -- ToP -------------------------------------------------------------------------------------------------


def test_top_computes_what_the_repository_does(top):
    _, plain, model = top
    batch = sentences(ROWS, width=WIDTH)
    with torch.no_grad():
        logits, counts = masked_forward(plain, batch, top_decision(TOKEN_Z, [1, 1], [2, 3]))
    ours, tokens = computed(model, batch)
    torch.testing.assert_close(ours, logits, atol=1e-4, rtol=0)
    assert torch.equal(tokens, counts)


def test_top_keeps_the_ranks_whose_bins_are_open(top):
    """8 ranked tokens in 4 bins, in the repository's arithmetic 0 0 0 1 1 2 2 3: gates 1 0 1 0 keep 5. Then 5 in bins
    0 0 1 2 3: gates 1 1 0 0 keep 3. [CLS] is the one more.
    """
    assert computed(top[2], sentences([9], width=WIDTH))[1][:, 0].tolist() == [9, 9, 6, 4]


def test_a_location_that_is_switched_off_keeps_all(tmp_path):
    write_top(tmp_path / "published", pruner_z=torch.tensor([0.0, 1.0]))
    model = imported("top", tmp_path / "published", tmp_path / "out")
    assert computed(model, sentences([9], width=WIDTH))[1][:, 0].tolist() == [9, 9, 9, 6]


def test_the_house_profile_keeps_as_many_by_whole_numbers_and_removes_them(top):
    """8 ranks in 4 bins are 0 0 1 1 2 2 3 3: 4 are kept; then 4 in bins 0 1 2 3: 2. Any padding will do."""
    folder, _, _ = top
    model = imported("top", folder / "published", folder / "house", Given("house"))
    assert encoder_of(model).execution == "pack"
    for width in (9, 30):
        assert computed(model, sentences([9], width=width))[1][:, 0].tolist() == [9, 9, 5, 3]


def test_the_folder_says_how_it_was_made(top):
    folder, _, _ = top
    about = json.loads((folder / "out" / "prunekit.json").read_text())
    assert about["max_length"] == WIDTH
    assert about["execution"] == "mask"
    assert about["about"]["settings"] == [
        "method=top",
        "method.init=open",
        "method.compat=true",
        "method.bins=4",
        "method.prune_location=[2,3]",
        "method.init_slope=0",
    ]
    config = json.loads((folder / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert not config.get("output_attentions")


@pytest.mark.parametrize(("width", "execution"), [(30, "mask"), (WIDTH, "drop")])
def test_another_padding_or_removal_is_refused_where_decisions_depend_on_it(top, width, execution):
    with pytest.raises(
        ValueError, match=r"\nAllowed: execution='mask' with texts padded to 64 tokens\.\nGive tokenizer"
    ):
        top[2](**sentences([9], width=width), execution=execution)
    with pytest.raises(ValueError, match=r"padding and dropped tokens vote.*\n.*\nUse prunekit.load"):
        prunekit.load(top[0] / "out", engine="packed")


def test_without_its_module_the_last_layers_are_assumed_and_said(tmp_path):
    write_top(tmp_path / "published", locations=None)
    found = import_checkpoint("top", tmp_path / "published", tmp_path / "out", REFERENCE)
    assert "2, 3 are pruned (there is no l0_module.pt: assumed to be the last 2)" in found.lines[0]


@pytest.mark.parametrize(
    ("written", "given", "names", "problem"),
    [
        ({"finetuning_task": "mnli"}, None, ["entailment", "neutral", "contradiction"], "single_label_classification"),
        (
            {"finetuning_task": "sst2"},
            None,
            ["LABEL_0", "LABEL_1", "LABEL_2"],
            "single_label_classification",
        ),  # 3 outputs
        (
            {"finetuning_task": "mnli", "id2label": {"0": "a", "1": "b", "2": "c"}},
            None,
            ["a", "b", "c"],
            "single_label_classification",
        ),
        ({"finetuning_task": "mnli"}, ["x", "y", "z"], ["x", "y", "z"], "single_label_classification"),
        ({"classes": 1, "finetuning_task": "stsb"}, None, ["score"], "regression"),
    ],
)
def test_classes_have_the_names_that_are_given_or_stored_or_those_of_the_task(tmp_path, written, given, names, problem):
    write_top(tmp_path / "published", **written)
    config = imported("top", tmp_path / "published", tmp_path / "out", Given("house", labels=given)).config
    assert (list(config.id2label.values()), config.problem_type) == (names, problem)


def test_more_tokens_than_the_model_reads_are_refused(tmp_path):
    write_top(tmp_path / "published")
    with pytest.raises(ConfigError, match=r"max_length=81, but the model reads at most 80 tokens\.\nAllowed: 4\.\.80"):
        import_checkpoint("top", tmp_path / "published", tmp_path / "out", Given("reference", max_length=81))


def test_no_code_of_a_pickle_runs(tmp_path):
    """Neither of l0_module.pt, which is unpickled without its classes, nor of the weights, which torch refuses."""

    class Hostile:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    write_top(tmp_path / "published")
    torch.save({"token_prune_loc": Hostile()}, tmp_path / "l0_module.pt")
    with pytest.raises(ConfigError, match=r"no token_prune_loc .*\n.*\nName them: prune_location"):
        pickled_locations(tmp_path / "l0_module.pt")
    torch.save({"weight": Hostile()}, tmp_path / "published" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin cannot be read"):
        import_checkpoint("top", tmp_path / "published", tmp_path / "out", REFERENCE)
    assert not (tmp_path / "ran").exists()


# -- LTP -------------------------------------------------------------------------------------------------


def test_ltp_computes_what_the_repository_does(ltp):
    """The same tokens of every text. Where [CLS] is dropped, its output differs by definition."""
    _, plain, model = ltp
    batch = sentences(ROWS * 2, width=WIDTH, pad=1, seed=3)
    decide = ltp_decision([FINAL * layer / 4 + difference for layer, difference in enumerate(DIFFERENCES)])
    first = []

    def noted(layer, attention, alive):
        first.append(decide(layer, attention, alive)[:, 0] > 0)
        return decide(layer, attention, alive)

    with torch.no_grad():
        logits, counts = masked_forward(plain, batch, noted)
    ours, tokens = computed(model, batch)
    assert torch.equal(tokens, counts)
    assert (counts[-1] < counts[0]).all()
    kept = torch.stack(first).all(0)
    assert 2 <= kept.sum() < 8
    torch.testing.assert_close(ours[kept], logits[kept], atol=1e-4, rtol=0)
    assert ((ours - logits).abs().amax(-1)[~kept] > 0.1).all()


def test_thresholds_are_the_line_plus_what_was_learned(ltp):
    """.02 * l / 4 + .0102, .0053 and .0005, times the padded length of 64."""
    values = encoder_of(ltp[2]).pruner.policy.values
    assert values.tolist() == pytest.approx([64 * 0.0152, 64 * 0.0153, 64 * 0.0155])


def test_ltp_packs_and_protects_cls_in_the_house_profile_alone(ltp):
    folder, _, model = ltp
    assert encoder_of(model).execution == "pack"
    assert not encoder_of(model).pruner.protect_first
    house = imported("ltp", folder / "published", folder / "house", Given("house"))
    assert encoder_of(house).pruner.protect_first
    assert encoder_of(house).pruner.policy.values.tolist() == pytest.approx([78 * 0.0152, 78 * 0.0153, 78 * 0.0155])


# -- what is refused -------------------------------------------------------------------------------------

QUERY = "bert.encoder.layer.1.attention.self.query.weight"


def without(name):
    return lambda weights: {other: tensor for other, tensor in weights.items() if other != name}


def replaced(name, tensor):
    return lambda weights: weights | {name: tensor}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"changed": without(QUERY)}, rf"lacks {QUERY}\.\nAllowed: the tensors"),
        ({"changed": replaced("bert.extra", torch.zeros(1))}, r"has unknown bert\.extra\."),
        ({"changed": replaced(QUERY, torch.zeros(2, 32))}, r"query\.weight \[2, 32\] instead of \[32, 32\]"),
        ({"changed": replaced(QUERY, torch.full((32, 32), torch.nan))}, rf"holds NaN in {QUERY}"),
        ({"changed": replaced(QUERY, torch.zeros(32, 32).long())}, rf"has no floats in {QUERY}"),
        ({"changed": lambda weights: {"classifier.weight": torch.zeros(3, 32)}}, "has 0 layers, .*num_hidden_layers=4"),
        ({"changed": lambda weights: [1]}, "holds a list of something else"),
        ({"changed": without("classifier.bias")}, r"lacks classifier\.bias"),
        (
            {"token_z": torch.tensor([[1.0, 0.5]]), "locations": [3]},
            r"zs\.pt has gates between 0 and 1\.\nAllowed: 0 and 1",
        ),
        ({"pruner_z": torch.ones(3)}, r"token_z \[2, 4\] and pruner_z \[3\]"),
        ({"locations": [2]}, r"l0_module\.pt names the layers \[2\], and zs\.pt has gates of 2"),
        ({"locations": [3, 4]}, r"prunes the input of layer 4\.\nAllowed: 1\.\.3"),
        ({"model_type": "roberta"}, r"model_type=roberta\.\nAllowed: bert\..*\n.*prunekit import ltp"),
        ({"position_embedding_type": "relative_key"}, "positions of the type relative_key"),
        ({"hidden_act": "nothing"}, r"config\.json does not make a model"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers=4"),
        ({"vocab_size": 10**12}, r"word_embeddings\.weight \[120, 32\] instead of \[1000000000000, 32\]"),
    ],
)
def test_a_checkpoint_of_top_that_does_not_fit_together_is_refused(tmp_path, given, message):
    write_top(tmp_path / "published", **given)
    with pytest.raises(ConfigError, match=message) as error:
        import_checkpoint("top", tmp_path / "published", tmp_path / "out", REFERENCE)
    assert len(str(error.value).splitlines()) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"differences": [0.0, 0.001]}, r"no pruner\.keep_threshold of layer\.2, layer\.3"),
        ({"differences": [0.001, 0.0, 0.0, 0.0]}, r"the thresholds 0\.001, .*\nAllowed: 0 in layer 0"),
        (
            {"changed": replaced("ibert.encoder.layer.1.attention.self.pruner.keep_threshold", torch.zeros(2))},
            "of layer 1 ",
        ),
        ({"changed": without("ibert.encoder.layer.0.output.dense.bias")}, r"lacks roberta\.encoder\.layer\.0\.output"),
        ({"quant_mode": True}, r"quant_mode=true: the model computes in whole numbers"),
        ({"prune_mode": "topk", "token_keep_rate": 0.2}, r"prune_mode=topk\.\n.*\n.*method=topk method\.rate=0\.2"),
        ({"final_token_threshold": None}, r"final_token_threshold=null\.\nAllowed: above 0"),
        ({"model_type": "bert"}, r"model_type=bert\.\nAllowed: ltp, ibert, roberta"),
    ],
)
def test_a_checkpoint_of_ltp_that_does_not_fit_together_is_refused(tmp_path, given, message):
    write_ltp(tmp_path / "published", **given)
    with pytest.raises(ConfigError, match=message) as error:
        import_checkpoint("ltp", tmp_path / "published", tmp_path / "out", REFERENCE)
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize("name", ["config.json", "pytorch_model.bin", "zs.pt"])
def test_a_missing_file_is_named(tmp_path, name):
    write_top(tmp_path / "published")
    (tmp_path / "published" / name).unlink()
    with pytest.raises(ConfigError, match=rf"{name} does not exist\.\nAllowed: the folder of a checkpoint"):
        import_checkpoint("top", tmp_path / "published", tmp_path / "out", REFERENCE)


def test_a_tokenizer_may_be_from_elsewhere(tmp_path):
    write_top(tmp_path / "published")
    (tmp_path / "published" / "vocab.txt").rename(tmp_path / "vocab.txt")
    (tmp_path / "published" / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no tokenizer .*\n.*\n.*tokenizer=<folder or hub id>"):
        import_checkpoint("top", tmp_path / "published", tmp_path / "out", REFERENCE)
    found = import_checkpoint("top", tmp_path / "published", tmp_path / "out", REFERENCE, str(tmp_path))
    assert pretrained.is_pruned(found.folder)
    assert (found.folder / "tokenizer.json").is_file()


def test_labels_must_be_as_many_as_outputs(tmp_path):
    write_top(tmp_path / "published")
    with pytest.raises(ConfigError, match=r"labels=\[a, b\] are 2, and the model has 3 outputs"):
        import_checkpoint("top", tmp_path / "published", tmp_path / "out", Given("reference", labels=["a", "b"]))
