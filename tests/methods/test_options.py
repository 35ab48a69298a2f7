"""The options of methods: a field for each key of the method's file, and nothing that is not one."""

from dataclasses import FrozenInstanceError, dataclass, fields
from functools import cache

import pytest

from prunekit.config.composition import compose
from prunekit.config.keys import declared
from prunekit.config.search_path import conf_dir
from prunekit.methods.base import MethodOptions
from prunekit.methods.context import Training
from prunekit.methods.options import OptionalTraining
from prunekit.pipelines.tokens.preparation import method_class
from prunekit.runs.kinds import method_options

NAMES = sorted(file.stem for file in (conf_dir() / "method").glob("*.yaml"))
METHODS = [name for name in NAMES if "method.prunes" not in declared({"method": name})]  # those that prune tokens


@cache
def config(name):
    return compose([f"method={name}", "task=synthetic", "backbone=tiny"])[0]


@dataclass(frozen=True)
class Example(MethodOptions):
    share: float
    layers: tuple[int, ...] | None = None


@pytest.mark.parametrize("name", METHODS)
def test_the_fields_are_the_keys_of_the_file_and_take_its_values(name):
    cfg = config(name)
    options, keys = method_class(cfg).Options, method_options(cfg)
    assert {field.name for field in fields(options)} == set(keys)
    built = options.from_config(keys)
    assert hash(built) == hash(options.from_config(dict(reversed(keys.items()))))
    for key, value in keys.items():
        assert getattr(built, key) == (tuple(value) if isinstance(value, list) else value)


def test_every_method_has_options_of_its_own():
    classes = [method_class(config(name)).Options for name in METHODS]
    assert len(set(classes)) == len(METHODS)


def test_an_unknown_key_is_refused_with_those_that_are_known():
    with pytest.raises(TypeError, match=r"^Example does not know a, shares; it takes layers, share\.$"):
        Example.from_config({"shares": 0.5, "a": 1, "share": 0.5})
    with pytest.raises(TypeError, match=r"^MethodOptions does not know share; it takes no options\.$"):
        MethodOptions.from_config({"share": 0.5})


def test_a_key_that_is_missing_is_named():
    with pytest.raises(TypeError, match=r"missing .*'share'"):
        Example.from_config({"layers": [1]})


def test_lists_become_tuples_and_options_do_not_change():
    options = Example.from_config({"share": 0.5, "layers": [1, 2]})
    assert options == Example(0.5, (1, 2))
    with pytest.raises(FrozenInstanceError):
        options.share = 0.1


@pytest.mark.parametrize(("train", "epochs", "trains"), [(True, 2, True), (False, 2, False), (True, 0, False)])
def test_training_is_on_by_the_key_and_the_epochs(train, epochs, trains):
    training = Training(epochs=epochs, steps_per_epoch=5, lr=1e-3)
    assert OptionalTraining(train=train).trains(training) == trains
    assert MethodOptions().trains(training) == (epochs > 0)
