"""The options of weight-pruning methods are the keys of their files, and a run is described by what varies."""

import dataclasses

import pytest

from prunekit.config.composition import compose
from prunekit.methods.weight_base import Need
from prunekit.pipelines.weights.pipeline import build_method
from prunekit.pipelines.weights.result import variant
from prunekit.runs.kinds import method_options, target_of

METHODS = ("magnitude", "wanda", "gblm", "sparsegpt", "dpruner")


def composed(*given):
    return compose(["task=domain_legal", *given])[0]


def built(*given):
    return build_method(composed(*given))


@pytest.mark.parametrize("name", METHODS)
def test_options_are_the_keys_of_the_file(name):
    cfg = composed(f"method={name}")
    fields = {field.name for field in dataclasses.fields(target_of(cfg).Options)}
    assert fields == set(cfg["method"]) - {"name", "_target_", "prunes"}


def test_values_are_those_of_the_file_and_the_command_line():
    options = built("method=sparsegpt", "method.sparsity=0.25").options
    assert (options.sparsity, options.width, options.stream, options.scope) == (0.25, 128, "auto", None)


@pytest.mark.parametrize("name", METHODS)
def test_an_unknown_key_is_refused(name):
    cfg = composed(f"method={name}")
    with pytest.raises(TypeError, match=r"Options does not know lamda, sparsty; it takes .*\bsparsity\b"):
        target_of(cfg).Options.from_config(method_options(cfg) | {"sparsty": 0.5, "lamda": 1})


def test_a_key_that_is_not_given_is_refused():
    cfg = composed("method=gblm")
    values = {key: value for key, value in method_options(cfg).items() if key != "gradient_scale"}
    with pytest.raises(TypeError, match="gradient_scale"):
        target_of(cfg).Options.from_config(values)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["method=magnitude"], "magnitude"),
        (["method=magnitude", "method.weight_update=obs"], "magnitude, repaired on mixed"),
        (["method=wanda", "method.calibration=domain"], "wanda, domain"),
        (["method=sparsegpt"], "sparsegpt, open"),
        (["method=dpruner"], "dpruner, dual_mul, lambda 0.3"),
        (
            ["method=dpruner", "method.general_on=domain", "method.domain_on=open"],
            "dpruner, dual_mul, lambda 0.3, general importance on domain, domain importance on open",
        ),
        # the text of a half that the score does not use plays no part
        (["method=dpruner", "method.score=domain_only", "method.general_on=mixed"], "dpruner, domain_only"),
        (["method=dpruner", "method.score=general_only", "method.domain_on=mixed"], "dpruner, general_only"),
    ],
)
def test_the_variant_names_what_distinguishes_a_run(given, words):
    cfg = composed(*given)
    assert variant(cfg["method"]["name"], build_method(cfg)) == words


@pytest.mark.parametrize(
    ("score", "domain"),
    [
        ("dual_mul", ["magnitude"]),
        ("dual_virtual", ["magnitude", "fisher"]),
        ("dual_add", ["fisher"]),
        ("general_only", []),
    ],
)
def test_dpruner_needs_general_importance_by_its_metric_and_the_sums_of_its_score(score, domain):
    method = built("method=dpruner", f"method.score={score}", "method.metric=obs", "method.domain_on=mixed")
    assert method.needs() == [Need("general", "open", "obs"), *(Need(what, "mixed") for what in domain)]


def test_ranks_are_by_gradients_of_the_text_that_the_method_scores_on():
    assert built("method=dpruner", "method.domain_on=mixed").options.gradient_text == "mixed"
    assert built("method=gblm", "method.calibration=domain").options.gradient_text == "domain"
