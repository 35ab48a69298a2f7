"""The judge of each kind of task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from prunekit.data.kinds.base import TaskKind
from prunekit.data.kinds.distilled import WITHOUT_LABELS
from prunekit.data.kinds.embedding import DISTILLED_EMBEDDING, EMBEDDING
from prunekit.data.kinds.labelled import CLASSIFICATION, REGRESSION
from prunekit.data.kinds.multilabel import MULTILABEL
from prunekit.data.kinds.span import SPAN
from prunekit.data.kinds.tokens import TOKENS
from prunekit.data.kinds.translation import TRANSLATION
from prunekit.data.spec import TaskSpec
from prunekit.evaluation.agreement import AgreementJudge
from prunekit.evaluation.judging import Judge
from prunekit.evaluation.label_sets import LabelSetJudge
from prunekit.evaluation.metrics import LabelJudge
from prunekit.evaluation.question_answering import AnswerJudge
from prunekit.evaluation.tagging import TagJudge
from prunekit.evaluation.translation import WordJudge
from prunekit.evaluation.vectors import VectorJudge

# a judge is made from the task, the targets that such a task has, and the device of the model
JUDGES: dict[TaskKind, Callable[[TaskSpec, Any, torch.device | str], Judge]] = {
    CLASSIFICATION: LabelJudge,
    REGRESSION: LabelJudge,
    MULTILABEL: LabelSetJudge,
    SPAN: AnswerJudge,
    TRANSLATION: WordJudge,
    TOKENS: TagJudge,
    **dict.fromkeys(WITHOUT_LABELS.values(), AgreementJudge),
    EMBEDDING: VectorJudge,
    DISTILLED_EMBEDDING: VectorJudge,
}
