"""What is settled before a training begins: the weights of classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.data.encoding import LabelTargets
from prunekit.data.spec import TaskSpec
from prunekit.models.sources import find_source
from prunekit.pipelines.tokens.preparation import class_weights
from prunekit.runs.kinds import kind_of


def weights(given: str) -> Any:
    spec = TaskSpec.from_config(compose(["task=synthetic", f"task.class_weights={given}"])[0]["task"])
    return class_weights(spec, LabelTargets(torch.tensor([0, 0, 0, 1])), ("spam", "ham"))


def test_classes_weigh_the_same_what_was_given_or_as_their_rows_are_rare():
    assert weights("null") is None
    assert weights("[1,3]") == (1, 3)
    assert weights("balanced") == pytest.approx((4 / 6, 4 / 2))


def test_a_list_of_another_length_is_refused_with_what_to_type():
    with pytest.raises(ConfigError) as raised:
        weights("[1,2,3]")
    assert str(raised.value) == (
        "task.class_weights=[1, 2, 3] has 3 numbers, but synthetic has 2 classes: spam, ham.\n"
        "Allowed: balanced, or a number above 0 for each class.\n"
        "Give task.class_weights=[1.0, 1.0], with these numbers changed."
    )


def test_only_classes_can_be_smoothed():
    cfg = compose(["task=synthetic", "task.kind=regression", "backbone=tiny", "trainer.label_smoothing=0.1"])[0]
    with pytest.raises(ConfigError, match=r"trainer\.label_smoothing=0\.1 with task\.kind=regression"):
        kind_of(cfg).check(cfg, find_source(cfg))
