"""A kind of task is known to each package once, by its object."""

import copy

import pytest

from prunekit.data.kinds.distilled import WITHOUT_LABELS
from prunekit.data.kinds.labelled import CLASSIFICATION, REGRESSION
from prunekit.data.kinds.multilabel import MULTILABEL
from prunekit.data.kinds.registry import KINDS
from prunekit.data.kinds.span import SPAN
from prunekit.data.kinds.translation import TRANSLATION
from prunekit.data.spec import TaskSpec
from prunekit.evaluation.judges import JUDGES
from prunekit.losses import LOSSES
from prunekit.models.heads import HEADS
from prunekit.runs.kinds import TokenRuns, TranslationRuns


def test_every_kind_has_a_head_a_judge_and_losses_and_nothing_else_has():
    assert set(HEADS) == set(JUDGES) == set(KINDS.values())
    assert set(LOSSES) == set(KINDS)


def test_every_kind_has_a_run_and_only_one():
    distilled = ("distilled_classification", "distilled_regression", "distilled_multilabel", "distilled_embedding")
    labelled = ("classification", "regression", "multilabel", "span", "tokens", "embedding")
    assert TokenRuns.tasks == labelled + distilled
    assert TranslationRuns.tasks == ("translation",)


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
def test_a_kind_is_written_as_its_name_and_a_copy_is_the_same_kind(kind):
    assert f"task.kind={kind}" == f"task.kind={kind.name}"
    assert copy.deepcopy(kind) == kind
    assert HEADS[copy.deepcopy(kind)] is HEADS[kind]
    assert [kind == other for other in KINDS.values()].count(True) == 1


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
def test_metrics_by_default_are_among_those_allowed(kind):
    assert set(kind.default_metrics) <= set(kind.metrics)
    assert kind.checkpoint_metric in ("", *kind.default_metrics)


def test_what_a_file_names_is_the_kind():
    spec = TaskSpec.from_config({"name": "t", "kind": "span", "text_pair": "context", "max_length": 384})
    assert spec.kind is SPAN
    assert (spec.row_name, spec.judged_name) == ("window", "question")
    assert TaskSpec.from_config({"name": "t"}).kind is CLASSIFICATION


def test_only_texts_with_labels_or_a_value_are_served_and_benchmarked():
    labelling = [CLASSIFICATION, REGRESSION, MULTILABEL]
    assert [kind for kind in KINDS.values() if kind.labels_texts] == [*labelling, *WITHOUT_LABELS.values()]
    assert TRANSLATION.does == "translates"
