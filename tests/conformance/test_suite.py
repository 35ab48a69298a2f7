"""Every method of conf/method conforms, each check finds the method that breaks it, and failures teach."""

import re
import shutil

import pytest
from support.plugins import write_metadata

from prunekit.config.search_path import conf_dir
from prunekit.conformance.suite import MethodConformance

WEIGHTS = ("magnitude", "wanda", "sparsegpt", "gblm", "dpruner")  # prune no tokens; tested in test_weight_pipeline.py
FILES = (file.stem for file in (conf_dir() / "method").glob("*.yaml"))
METHODS = sorted(name for name in FILES if name not in ("dense", *WEIGHTS))

# one class per file of conf/method: a new method is covered when its file is there
# of the method tsdtp a budget of 1x asks for pruning: task attention has to be earned back
OTHERWISE = {
    "tsdtp": {"nothing_pruned": ("budget=null", "method.keep_ratio=1")},
    # whole steps
    "layers": {"overrides": ("method=layers", "budget=2x")},
    "truncate": {"overrides": ("method=truncate", "budget_tolerance=0.1")},
}
# one of each kind of decision stays in the quick suite: gates, thresholds, shares
QUICK = ("top", "ltp", "topk")
for name in METHODS:
    title = f"Test{name.title().replace('_', '')}"
    own = {"overrides": (f"method={name}",), "__module__": __name__, **OTHERWISE.get(name, {})}
    suite = type(title, (MethodConformance,), own)
    globals()[title] = suite if name in QUICK else pytest.mark.slow(suite)
del suite  # pytest would collect the last one under this name too


@pytest.mark.slow
class TestTopLearning(MethodConformance):
    overrides = ("method=top", "method.hard_fraction=0.5")


@pytest.mark.slow
class TestTopOpen(MethodConformance):
    overrides = ("method=top", "method.init=open")


@pytest.mark.slow
class TestTopkOfSeveralBudgets(MethodConformance):
    overrides = ("method=topk", "method.also=[1.2x,1.6x]")


@pytest.mark.slow
class TestThresholdProfile(MethodConformance):
    overrides = ("method=threshold", "method.profile=geometric")


# -- the checks can fail -------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def broken_methods(tmp_path_factory):
    """A distribution whose method `broken` is whatever class of broken_methods.py the overrides name."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "conf" / "method").mkdir(parents=True)
    (folder / "conf" / "method" / "broken.yaml").write_text(
        "name: broken  # text\n_target_: support.broken_methods.Sound  # text\n"
        "start: 0.8  # float 0..; of the thresholds\n"
    )
    (folder / "broken_plugin.py").write_text("")
    write_metadata(folder, "broken", "broken", "broken_plugin")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield
    shutil.rmtree(folder)


class TestSound(MethodConformance):
    """What the broken methods have in common passes, so it is their one fault that the checks find."""

    overrides = ("method=broken",)


def suite_of(method):
    """The suite on a class of broken_methods.py."""
    overrides = ("method=broken", f"method._target_=support.broken_methods.{method}")
    return type(method, (MethodConformance,), {"overrides": overrides})


def failure(method, check, **fixtures):
    """What the check says about a broken method."""
    with pytest.raises(pytest.fail.Exception) as caught:
        getattr(suite_of(method)(), check)(**fixtures)
    return str(caught.value)


FAULTS = [
    ("Unprotected", "protected_tokens_are_kept",
     r"layer 0, row 0, execution 'mask': token 0 is protected, but its keep"),
    ("PaddingKeeper", "no_dropped_token_returns", r"layer 0, row 1, execution 'mask': padding \[14, 16, 18\] is kept"),
    ("Reviver", "no_dropped_token_returns", r"layer 1, row 0, execution 'mask': tokens \[1, 3, .*\] were dropped and"),
    ("PaddingCounter", "padding_changes_nothing", r"layer 0, row \d: 'mask' keeps .*, 'mask' with 9 more columns"),
    ("BatchNormaliser", "batch_mates_change_nothing", r"layer 0, row \d: 'mask' in a batch of 6 keeps .* alone keeps"),
    ("Gambler", "evaluation_is_deterministic", r"layer 0, row \d: 'mask' the first time keeps .*, the second time"),
    ("GhostVoter", "mask_drop_and_pack_are_one_function", r"layer \d, row \d: 'mask' on bert keeps .*, 'drop' on bert"),
    ("GhostVoter", "the_packed_engine_is_the_mask_path", r"layer \d, row \d: 'mask' keeps .*, the packed engine"),
    ("Glutton", "with_nothing_to_prune_it_is_the_dense_model", r"layer 0, row 0: 'dense' keeps 20 .*=1x keeps 19"),
    ("Undifferentiable", "gradients_reach_what_is_trained", r"policy\.threshold is in an .* it got no gradient"),
    ("DetachedLoss", "gradients_reach_what_is_trained", r"\(and \d+ more\) is in an optimiser group, but in 16 steps"),
    ("Forgetful", "gradients_reach_what_is_trained", r"policy\.threshold requires a gradient, but no optimiser group"),
    ("CountsItself", "interrupted_and_resumed_it_ends_with_the_same_weights", r"the steps 5 and 11 of 16, .* differs"),
    ("Swallower", "an_unknown_key_is_refused", r"Swallower\.Options\.from_config takes no_such_key=1"),
    ("Idle", "padding_changes_nothing", r"Idle prunes nothing: neither with random parameters nor after a short fit"),
    ("Dense", "padding_changes_nothing", r"Dense prunes nothing: .* less than the dense model"),
]  # fmt: skip


def faults():
    """Each fault as a case of its own; those that only a fit shows are left to the slow suite."""
    for fault in FAULTS:
        needs_fit = fault[0] in ("CountsItself", "Idle")
        yield pytest.param(*fault, id=" ".join(fault[:2]), marks=[pytest.mark.slow] * needs_fit)


@pytest.mark.parametrize(("method", "check", "message"), [*faults()])
def test_a_broken_method_fails_and_is_told_where_and_why(method, check, message):
    said = failure(method, f"test_{check}")
    assert re.search(message, said), said
    assert "\nUsual cause: " in said


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("Secretive", r"layer 0, row \d: 'mask' before keeps .*, after saving"),
        ("Unloadable", r"cannot be loaded \(ConfigE"),
    ],
)
def test_a_method_that_does_not_survive_saving_is_told(method, message, tmp_path):
    said = failure(method, "test_saved_and_loaded_it_is_the_same_model", tmp_path=tmp_path)
    assert re.search(message, said), said
    assert "arguments()" in said


def test_every_check_has_a_method_that_fails_it():
    checks = {name for name in vars(MethodConformance) if name.startswith("test_")}
    found = {f"test_{check}" for _, check, _ in FAULTS}
    assert checks - found == {"test_saved_and_loaded_it_is_the_same_model"}  # whose faults are below the table


def test_a_class_that_names_no_method_is_told():
    with pytest.raises(pytest.fail.Exception, match=r"Nameless names no method"):
        type("Nameless", (MethodConformance,), {})().test_padding_changes_nothing()


@pytest.mark.slow
def test_a_method_that_prunes_only_once_trained_is_checked_after_a_short_fit():
    suite_of("Late")().test_padding_changes_nothing()


def test_a_class_may_bring_its_method_into_a_pruning_state_itself(monkeypatch):
    class Prepared(suite_of("Late")):
        def prepare(self, method):
            method.policy.trained.fill_(1.0)

    monkeypatch.setattr("prunekit.conformance.running._fit", lambda *given: pytest.fail("it was trained"))
    Prepared().test_padding_changes_nothing()
