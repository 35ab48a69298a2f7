"""A pruned checkpoint is a Hugging Face folder: it loads pruned here, dense elsewhere, and never by accident wrong."""

import json

import pytest
import torch
from support.models import sentences, tiny_model
from transformers import AutoModelForSequenceClassification

import prunekit
from prunekit.models.loading import load_classifier
from prunekit.models.pretrained import save
from prunekit.tokens.encoder import encoder_of, install
from prunekit.tokens.policies import KeepRatio, LearnedThreshold, Threshold
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.rank_gates import RankGate
from prunekit.tokens.scorers import AttentionReceived, ReferenceReceived
from prunekit.tokens.state import Trace


def gates():
    policy = RankGate([1, 2], 5, init_coarse=4.0, min_tokens=1)
    with torch.no_grad():
        policy.token_loga.copy_(torch.tensor([[3.0, -3, 3, -3, 3], [3, 3, -3, -3, -3]]))
        policy.shift.fill_(0.5)
    return policy


def scaled():
    policy = Threshold({1: 0.45})
    policy.scale.fill_(2.0)
    return policy


def learned():
    policy = LearnedThreshold({1: 0.2}, 0.1, 0.01)
    with torch.no_grad():
        policy.values.fill_(0.9)
    return policy


POLICIES = {"ratio": lambda: KeepRatio({1: 0.5}), "threshold": scaled, "learned threshold": learned, "gates": gates}


@pytest.fixture
def saved(tmp_path):
    model = install(tiny_model(), TokenPruner(AttentionReceived(), gates(), [1, 2]))
    save(model, None, tmp_path / "model")
    return model, tmp_path / "model"


@pytest.mark.parametrize("name", POLICIES)
def test_a_loaded_checkpoint_keeps_the_same_tokens_and_gives_the_same_logits(tmp_path, family, name):
    model = install(tiny_model(family), TokenPruner(AttentionReceived(), POLICIES[name](), [1], protect_first=True))
    save(model, None, tmp_path)
    again = prunekit.load(tmp_path)
    batch = sentences([12, 5, 8], pad=model.config.pad_token_id or 0)
    for execution in ("mask", "pack"):
        traces = Trace(), Trace()
        with torch.no_grad():
            logits = [
                m(**batch, execution=execution, trace=t).logits for m, t in zip((model, again), traces, strict=True)
            ]
        assert torch.equal(logits[0], logits[1])
        assert torch.equal(traces[0].tokens_out, traces[1].tokens_out)


def test_a_loaded_model_prunes_without_being_told_to(saved):
    _, folder = saved
    trace = Trace()
    with torch.no_grad():
        prunekit.load(folder)(**sentences([12]), trace=trace)
    counts = trace.tokens_out[:, 0].tolist()
    assert counts[0] == 12
    assert counts[1] < 12
    assert counts[2] < counts[1]


def test_stock_transformers_loads_the_dense_fallback(saved):
    model, folder = saved
    batch = sentences([12, 5])
    with torch.no_grad():
        dense = model(**batch, execution="dense").logits
        stock = AutoModelForSequenceClassification.from_pretrained(folder)(**batch).logits
    torch.testing.assert_close(stock, dense, atol=1e-5, rtol=0)


def test_nothing_in_the_folder_is_pickled(saved):
    _, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "prunekit.json",
        "prunekit.safetensors",
    ]


def test_weights_that_do_not_belong_to_the_settings_are_refused(saved):
    _, folder = saved
    tiny_model(seed=5).save_pretrained(folder)
    written = json.loads((folder / "prunekit.json").read_text())["weights_sha256"][:12]
    with pytest.raises(ValueError, match=rf"was written for {written}.*does not belong to these weights"):
        prunekit.load(folder)


def test_gates_of_another_model_are_refused(saved, tmp_path):
    _, folder = saved
    other = install(tiny_model(), TokenPruner(AttentionReceived(), RankGate([1, 2], 5), [1, 2]))
    save(other, None, tmp_path / "other")
    (folder / "prunekit.safetensors").write_bytes((tmp_path / "other" / "prunekit.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"prunekit\.safetensors has sha256 .* does not belong to these weights"):
        prunekit.load(folder)


def test_settings_that_are_torn_are_refused(saved):
    _, folder = saved
    (folder / "prunekit.json").write_text('{"format": 1,')
    with pytest.raises(ValueError, match=r"prunekit\.json is not readable as JSON"):
        prunekit.load(folder)


def test_a_model_runs_as_it_was_tested(tmp_path):
    save(install(tiny_model(), TokenPruner(AttentionReceived(), gates(), [1, 2]), "mask"), None, tmp_path)
    assert encoder_of(prunekit.load(tmp_path)).execution == "mask"
    assert encoder_of(prunekit.load(tmp_path, "drop")).execution == "drop"


def test_the_folder_of_a_run_stands_for_its_model(tmp_path):
    save(install(tiny_model(), TokenPruner(AttentionReceived(), gates(), [1, 2])), None, tmp_path / "s1-abc" / "model")
    assert encoder_of(prunekit.load(tmp_path / "s1-abc")).pruner is not None
    assert prunekit.load(tmp_path / "s1-abc", engine="packed").pruner is not None


def test_a_folder_without_settings_is_no_pruned_checkpoint(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no prunekit\.json"):
        prunekit.load(tmp_path)


def test_a_newer_format_is_refused(saved):
    _, folder = saved
    settings = json.loads((folder / "prunekit.json").read_text())
    (folder / "prunekit.json").write_text(json.dumps(settings | {"format": 99}))
    with pytest.raises(ValueError, match="has format 99, this prunekit reads up to 1"):
        prunekit.load(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.Policy", "nowhere.Policy, which is not installed here"),
        ("builtins.eval", "builtins.eval, which is no KeepPolicy; refused"),
    ],
)
def test_settings_cannot_name_anything_but_a_policy(saved, name, message):
    _, folder = saved
    settings = json.loads((folder / "prunekit.json").read_text())
    settings["pruner"]["policy"]["class"] = name
    (folder / "prunekit.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        prunekit.load(folder)


def test_a_pruner_keeps_all_its_settings(tmp_path):
    pruner = TokenPruner(
        ReferenceReceived(padded_to=4),
        KeepRatio({0: 0.5}),
        [0],
        soft_form="bias",
        protect_first=False,
        hide_gone=False,
        finishes_layer=True,
    )
    save(install(tiny_model(), pruner), None, tmp_path)
    again = encoder_of(prunekit.load(tmp_path)).pruner
    assert (again.soft_form, again.protect_first, again.hide_gone, again.layers) == ("bias", False, False, {0})
    assert again.finishes_layer
    assert isinstance(again.scorer, ReferenceReceived)
    assert again.scorer.padded_to == 4


def test_a_dense_model_is_saved_and_loaded_too(tmp_path):
    save(install(tiny_model(), None), None, tmp_path)
    assert encoder_of(prunekit.load(tmp_path)).pruner is None


def test_a_head_of_another_size_is_refused(tmp_path):
    tiny_model(classes=3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a head with 3 outputs, but the task has 2"):
        load_classifier(tmp_path, labels=["no", "yes"])


def test_a_head_is_made_for_the_task_and_knows_its_labels(tmp_path):
    tiny_model(head="SequenceClassification", classes=1).base_model.save_pretrained(tmp_path)
    model = load_classifier(tmp_path, labels=["no", "yes"])
    assert model.config.id2label == {0: "no", 1: "yes"}
    assert model.dtype == torch.float32
    assert load_classifier(tmp_path, labels=None).config.num_labels == 1


def test_the_package_offers_load_without_importing_torch():
    with pytest.raises(
        AttributeError,
        match="no attribute 'lead'; it offers __version__, evaluate, fit, load, ",
    ):
        _ = prunekit.lead
