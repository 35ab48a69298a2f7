"""Every kind of task, by the name that a task's file gives. A new kind is one module beside this one and one entry."""

from __future__ import annotations

from prunekit.data.kinds.base import TaskKind
from prunekit.data.kinds.distilled import WITHOUT_LABELS
from prunekit.data.kinds.embedding import DISTILLED_EMBEDDING, EMBEDDING
from prunekit.data.kinds.labelled import CLASSIFICATION, REGRESSION
from prunekit.data.kinds.multilabel import MULTILABEL
from prunekit.data.kinds.span import SPAN
from prunekit.data.kinds.tokens import TOKENS
from prunekit.data.kinds.translation import TRANSLATION

KINDS: dict[str, TaskKind] = {
    kind.name: kind
    for kind in (
        *(CLASSIFICATION, REGRESSION, MULTILABEL, SPAN, TRANSLATION, TOKENS, EMBEDDING),
        *(*WITHOUT_LABELS.values(), DISTILLED_EMBEDDING),
    )
}
