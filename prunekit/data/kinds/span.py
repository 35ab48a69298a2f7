"""Questions whose answer is a part of a text, which is read in windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit.config.errors import ConfigError
from prunekit.data.columns import Cells, Mapped, take
from prunekit.data.keys import TaskKeys
from prunekit.data.kinds.base import TaskKind
from prunekit.data.rows import Rows
from prunekit.data.spans import Answer, flatten_squad, read_answers
from prunekit.data.splitting import content_hashes, hash_split
from prunekit.data.synthetic import FILLERS, MARKERS
from prunekit.data.tables import Table

if TYPE_CHECKING:
    from prunekit.data.encoding import EncodedSplit, Encoder


@dataclass(frozen=True)
class Span(TaskKind):
    """The first and the last token of an answer in a text, or none."""

    def check(self, keys: TaskKeys) -> None:
        """Check that there is a text to find answers in, and that windows move on.

        Raises:
            ConfigError: there is none, or they do not.
        """
        super().check(keys)
        if keys.text_pair is None:
            raise ConfigError(
                "task.text_pair=null with task.kind=span: there is no text to find answers in.\n"
                "Name its column, as task.text_pair=context."
            )
        if keys.empty == "keep":
            raise ConfigError("task.empty=keep with task.kind=span: nothing is found in no text; use error or drop.")
        if keys.stride >= keys.max_length - 4:
            raise ConfigError(
                f"task.stride={keys.stride} with task.max_length={keys.max_length}: windows would not move on.\n"
                f"Set task.stride to less than {keys.max_length - 4} minus the tokens of the longest question."
            )

    def protects(self, keys: TaskKeys) -> bool:
        """Return whether the question is protected, which is the first segment."""
        return keys.protect_question or keys.protect == "first_segment"

    def bands_refusal(self, keys: TaskKeys, *, tested: bool) -> str:
        """Refuse: windows have no length of their own."""
        return (
            f"data.train_band and data.eval_bands are of text lengths, but {keys.name} reads in windows.\n"
            "Allowed: null with task.kind=span.\nLeave them out, or choose another task."
        )

    def flatten(self, keys: TaskKeys, table: Table) -> Table:
        """Return a row per question."""
        return flatten_squad(keys, table)

    def output_count(self, names: Sequence[str] | None) -> int:
        """Return 2: a head has one output for the first and one for the last token."""
        return 2

    def rows(self, keys: TaskKeys, table: Table, kept: Sequence[int], names: Sequence[str] | None) -> Rows[Answer]:
        """Read questions, contexts and answers."""
        contexts = table.texts(str(keys.text_pair), kept)
        answers = read_answers(keys, table, kept)
        given = table.columns.get(keys.id or "")
        ids = Mapped(Cells([kept] if given is None else [kept, take(given, kept)]), _id)
        questions = Mapped(table.texts(keys.text, kept), str.strip)
        return Rows(questions, contexts, answers, ids=ids)

    def generate(self, keys: TaskKeys, random: Random, count: int, names: Sequence[str] | None) -> Rows[Answer]:
        """Make up contexts with one or two markers of one kind, and of another kind that is not asked for.

        A question holds one marker, and the answer is the run of markers of its kind in the context. A third of the
        questions have no answer where that is allowed.
        """
        questions, contexts, answers = [], [], []
        kinds = len(MARKERS) // 2
        for row in range(count):
            asked, other, absent = random.sample(range(kinds), 3)
            words = [random.choice(FILLERS) for _ in range(random.randint(8, 24))]
            runs = {
                kind: [random.choice(MARKERS[2 * kind : 2 * kind + 2]) for _ in range(random.randint(1, 2))]
                for kind in (asked, other)
            }
            for run in runs.values():
                place = random.randint(0, len(words))
                words[place:place] = [" ".join(run)]
            text = " ".join(runs[asked])
            has_none = keys.unanswerable and row % 3 == 0
            questions.append(f"{random.choice(FILLERS)} {MARKERS[2 * (absent if has_none else asked)]}")
            contexts.append(" ".join(words))
            start = sum(len(word) + 1 for word in words[: words.index(text)])
            answers.append(Answer() if has_none else Answer((text,), (start,)))
        places = [f"generated row {row + 1}" for row in range(count)]
        return Rows(questions, contexts, answers, places, [str(row + 1) for row in range(count)])

    def together(self, rows: Rows[Answer]) -> Sequence[Sequence[str]]:
        """Return the contexts."""
        return Cells([rows.pairs or [""] * len(rows)])

    def divide(self, rows: Rows[Answer], fractions: Mapping[str, float]) -> dict[str, np.ndarray]:
        """Keep the questions about one context together, or a part would ask about texts trained on.

        Of rows with the same question, context and answers the first is kept.
        """
        asked = Cells([rows.texts, rows.labels])
        return hash_split(content_hashes(self.together(rows)), self.strata(rows), fractions, asked)

    def encode(
        self, keys: TaskKeys, rows: Rows[Answer], encoder: Encoder, names: Sequence[str] | None, prefix: int
    ) -> EncodedSplit:
        """Tokenise questions and contexts in windows."""
        from prunekit.data.windows import encode_windows  # loads torch, and a task is checked without it

        return encode_windows(rows, encoder, keys.stride, protect_question=self.protects(keys))


def _id(cells: tuple[Any, ...]) -> str:
    """Return what a row is called, given by its number and its id, if it has one."""
    row, *given = cells
    return str(row + 1 if not given or given[0] is None else given[0])


# HasAns and NoAns of SQuAD's own script: the same, of the questions with and without an answer
SPAN = Span(
    "span",
    metrics=("f1", "exact_match", "has_answer_f1", "has_answer_exact_match", "no_answer_f1", "no_answer_exact_match"),
    default_metrics=("f1", "exact_match"),
    row_name="window",
    judged_name="question",
    does="finds answers in texts, which it reads in windows",
)
