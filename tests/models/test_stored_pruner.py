"""prunekit.json may be anything; what is not a pruner is refused in one sentence."""

import json

import pytest
import torch
from support.folders import edit_tensors
from support.models import sentences, tiny_model

import prunekit
from prunekit.config.errors import ConfigError
from prunekit.files import sha256
from prunekit.models.pretrained import load_pruner, save, save_pruner
from prunekit.tokens.encoder import encoder_of, install
from prunekit.tokens.policies import LearnedThreshold, Threshold
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import AttentionReceived


@pytest.fixture
def folder(tmp_path):
    pruner = TokenPruner(AttentionReceived(), LearnedThreshold({1: 0.9, 2: 1.0}, 0.1, 0.01), [1, 2])
    save(install(tiny_model(), pruner), None, tmp_path / "m")
    return tmp_path / "m"


def put(settings, path, value):
    *blocks, name = path.split(".")
    for block in blocks:
        settings = settings[block]
    if value is None and name != "pruner":
        del settings[name]
    else:
        settings[name] = value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds a list instead of an object"),
        ("3", "holds a int instead of an object"),
        ("null", "holds a NoneType instead of an object"),
        ("", "is not readable as JSON"),
        ("[" * 1000, "is not readable as JSON"),
        ('{"a":' * 1000 + "1" + "}" * 1000, "is not readable as JSON"),
        ("9" * 5000, "is not readable as JSON"),
        ("{}", "has format=None"),
    ],
)
def test_what_is_no_settings_is_refused(folder, content, message):
    (folder / "prunekit.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        prunekit.load(folder)


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


WRONG = {
    "format": ["1", None, 0, -1, True, 1.0, [], 2, 10**400],
    "weights_sha256": [None, 1, "0" * 64],
    "tensors_sha256": [None, 1, "0" * 64],
    "execution": [None, "fast", 1, []],
    "prefix": ["1", -1, 1.5],
    "pruner": [[], "x", 1, {}],
    "pruner.layers": [None, "12", [1.5], [True], [-1], [99], {"1": 1}],
    "pruner.soft_form": ["none", 1],
    "pruner.protect_first": ["yes", 1],
    "pruner.extra": [1],
    "pruner.scorer": [None, [], "prunekit.tokens.scorers.AttentionReceived", {"class": 1, "arguments": {}}],
    "pruner.policy.class": [None, 1, [], "builtins.eval"],
    "pruner.policy.arguments": [
        None, [], {}, {"thresholds": {}, "temperature": 0.1}, {"thresholds": {"x": 1.0}, "temperature": 0.1},
        {"thresholds": {"1": float("nan"), "2": 1.0}, "temperature": 0.1},
        {"thresholds": {"1": float("inf"), "2": 1.0}, "temperature": 0.1},
        {"thresholds": {"1": 0.9}, "temperature": 0.1}, {"thresholds": nested(900), "temperature": 0.1},
        {"thresholds": {"1": 10**400, "2": 1.0}, "temperature": 0.1},
    ],
}  # fmt: skip


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in WRONG.items() for value in values])
def test_every_key_is_checked(folder, path, value):
    settings = json.loads((folder / "prunekit.json").read_text())
    put(settings, path, value)
    (folder / "prunekit.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError) as raised:
        prunekit.load(folder)
    assert len(str(raised.value).splitlines()[0]) < 400 + len(str(folder))


@pytest.mark.parametrize("name", ["policy.values", "policy.scale"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_thresholds_are_numbers(folder, name, value):
    def change(tensors):
        return tensors | {name: torch.full_like(tensors[name], value)}

    edit_tensors(folder / "prunekit.safetensors", change)
    settings = json.loads((folder / "prunekit.json").read_text())
    settings["tensors_sha256"] = sha256(folder / "prunekit.safetensors")
    (folder / "prunekit.json").write_text(json.dumps(settings))
    for engine in ("hf", "packed"):
        with pytest.raises(ConfigError, match=rf"prunekit\.safetensors holds (NaN|an infinity) in {name}"):
            prunekit.load(folder, engine=engine)


def test_thresholds_are_floating_numbers(folder):
    edit_tensors(
        folder / "prunekit.safetensors", lambda found: {**found, "policy.values": found["policy.values"].bool()}
    )
    settings = json.loads((folder / "prunekit.json").read_text())
    settings["tensors_sha256"] = sha256(folder / "prunekit.safetensors")
    (folder / "prunekit.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"does not fit .*policy.values is of the type torch.bool"):
        prunekit.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "prunekit.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=rf"{name} does not exist, but prunekit\.json was written for it"):
        prunekit.load(folder)


def test_a_pruner_without_a_model_is_checked_alike(folder, tmp_path):
    save_pruner(prunekit.load(folder), tmp_path / "task")
    load_pruner(install(tiny_model(), None), tmp_path / "task")
    (tmp_path / "task" / "task_pruner.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"task_pruner\.json holds a list"):
        load_pruner(install(tiny_model(), None), tmp_path / "task")


def test_a_policy_that_must_prune_everything_is_saved_as_numbers(tmp_path):
    policy = Threshold({1: 0.5})
    policy.meet(lambda: 4.0 if policy.scale > 1e6 else 1.0, 4.0, most=4.0, tolerance=0.01)
    save(install(tiny_model(), TokenPruner(AttentionReceived(), policy, [1])), None, tmp_path)
    again = prunekit.load(tmp_path)
    with torch.no_grad():
        again(**sentences([12]))
    assert encoder_of(again).pruner.policy.scale.isfinite()
