"""Without labels the dense model's answers count as right."""

import math

import pytest
import torch

from prunekit.config.errors import ConfigError
from prunekit.data.encoding import LabelTargets, number_queries
from prunekit.data.kinds.distilled import (
    DISTILLED_CLASSIFICATION,
    DISTILLED_MULTILABEL,
    DISTILLED_REGRESSION,
    OVERLAP,
)
from prunekit.data.spec import TaskSpec
from prunekit.evaluation.agreement import AgreementJudge, top_overlap
from prunekit.losses import TEMPERATURE, distillation_loss, task_loss

NAMES = ("a", "b")


def judged(kind, logits, dense, names=NAMES, **keys):
    spec = TaskSpec.from_config({"name": "t", "kind": kind.name, "labels": list(names) or None, **keys})
    judge = AgreementJudge(spec, LabelTargets(torch.tensor(dense), names), "cpu")
    for rows in torch.arange(len(logits)).flip(0).split(2):  # in any order
        judge.update(torch.tensor(logits)[rows], {"labels": torch.tensor(dense)[rows], "index": rows})
    return judge.compute()


def test_classes_agree_where_the_largest_logit_is_the_same():
    verdict = judged(DISTILLED_CLASSIFICATION, [[2.0, 0], [0, 1], [0, 3]], [[1.0, 0], [0, 2], [1, 0]])
    assert verdict.metrics["agreement"] == pytest.approx(2 / 3)
    assert verdict.judged == 3
    assert verdict.predictions.labels.tolist() == [0, 1, 0]
    assert verdict.predictions.predicted.tolist() == [0, 1, 1]
    assert verdict.predictions.classes == NAMES


def test_the_divergence_is_in_nats_and_a_mean_over_texts():
    third = math.log(3)  # probabilities 3/4 and 1/4 against 1/2 and 1/2
    verdict = judged(DISTILLED_CLASSIFICATION, [[0.0, 0.0]] * 3, [[third, 0.0], [0.0, 0.0], [0.0, 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert verdict.metrics["kl"] == pytest.approx(expected / 3, abs=1e-6)


def test_label_sets_agree_as_a_whole_at_the_thresholds_of_the_model():
    logits, dense = [[1.0, -1.0], [1.0, 1.0]], [[2.0, -3.0], [1.0, -1.0]]
    assert judged(DISTILLED_MULTILABEL, logits, dense).metrics["agreement"] == 0.5
    verdict = judged(DISTILLED_MULTILABEL, logits, dense, thresholds=[0.5, 0.1])
    assert verdict.metrics["agreement"] == 0.5  # -1 is above 0.1, -3 below
    assert verdict.predictions.right.tolist() == [False, True]


def test_values_agree_by_rank():
    verdict = judged(DISTILLED_REGRESSION, [[1.0], [2.0], [3.0], [4.0]], [[1.0], [2.0], [4.0], [3.0]], names=())
    assert verdict.metrics["spearman"] == pytest.approx(0.8)
    assert verdict.metrics["kendall"] == pytest.approx(4 / 6)


def test_the_loss_is_the_distance_from_the_answers():
    logits, dense = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    expected = distillation_loss(logits, dense, TEMPERATURE)
    assert float(task_loss(logits, dense, DISTILLED_CLASSIFICATION)) == float(expected)
    assert float(task_loss(torch.tensor([[1.0]]), torch.tensor([[3.0]]), DISTILLED_REGRESSION)) == 4.0


# -- rankings ------------------------------------------------------------------------------------------


def test_the_overlap_is_of_the_ten_best_and_a_mean_over_queries_with_more_documents():
    """Query 0 has 12 documents, of which its tenth and eleventh are exchanged; query 1 has 11, ranked backwards."""
    dense = torch.tensor([*range(12, 0, -1), *range(11, 0, -1), 5.0])
    found = dense.clone()
    found[[9, 10]] = found[[10, 9]]
    found[12:23] = found[12:23].flip(0)
    queries = torch.tensor([0] * 12 + [1] * 11 + [2])
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert top_overlap(found, dense, queries) == pytest.approx((0.9 + 0.9) / 2)
    assert top_overlap(found[order], dense[order], queries[order]) == pytest.approx(0.9)
    assert top_overlap(dense, dense, queries) == 1.0
    assert top_overlap(dense, dense, torch.arange(24)) is None


def test_rankings_are_reported_where_a_query_has_more_than_ten_documents():
    spec = TaskSpec.from_config({"name": "t", "kind": DISTILLED_REGRESSION.name, "text_pair": "document"})
    dense = torch.arange(12.0)[:, None]
    metrics = {}
    for name, queries in (("one query", torch.zeros(12, dtype=torch.long)), ("twelve", torch.arange(12))):
        judge = AgreementJudge(spec, LabelTargets(dense, (), queries), "cpu")
        judge.update(-dense, {"labels": dense, "index": torch.arange(12)})
        metrics[name] = judge.compute().metrics
    assert metrics["one query"][OVERLAP] == 0.8  # ranked backwards, of 12 documents only 8 can be among both ten
    assert OVERLAP not in metrics["twelve"]
    asked = TaskSpec.from_config(
        {"name": "t", "kind": DISTILLED_REGRESSION.name, "text_pair": "d", "metrics": ["spearman", OVERLAP]}
    )
    with pytest.raises(ConfigError, match="no query, the first of two texts, has more than 1 documents"):
        AgreementJudge(asked, LabelTargets(dense, (), torch.arange(12)), "cpu")


def test_equal_first_texts_are_one_query():
    assert number_queries(["a", "b", "a", "c"]).tolist() == [0, 1, 0, 2]
