"""Generated data and random models, so that every path of the code can be tested without a download.

A sentence is filler words and a few marker words; only the markers tell the label. So there is something to learn, and
something to prune.
"""

from __future__ import annotations

import string
from random import Random
from typing import Any

from prunekit.data.rows import Rows, TaskRows
from prunekit.data.spans import Answer
from prunekit.data.spec import TaskSpec

SYLLABLES = ("ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "su")
FILLERS = tuple(first + second for first in SYLLABLES for second in SYLLABLES[:4])
MARKERS = tuple(first + second + "x" for first in SYLLABLES for second in SYLLABLES[4:8])
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SCORES = 6  # regression labels are 0.0 .. 5.0


def synthetic_task(spec: TaskSpec) -> TaskRows:
    """Rows of the spec's shape: its splits, its classes or scores, one text or two. The same for every seed of a run.

    Training gets `synthetic_rows` rows, every other split half as many. A sentence holds two to four markers, all of
    its class or score; with two texts they are in the second. Where answers are found, a question holds one marker,
    and the answer is the run of markers of its kind in the context. A translation says word by word what its source
    says.
    """
    rows = spec.synthetic_rows or 256
    names = spec.labels or (("0", "1") if spec.kind == "classification" else None)
    extra = list(spec.validation_splits[1:])
    splits = ["train", "validation", *extra, *(["test"] if spec.test_split or spec.test_fraction else [])]
    made = {}
    for split in splits:
        count = rows if split == "train" else max(rows // 2, 1)
        random = Random(f"{split} {spec.kind} {names}")
        if spec.kind == "span":
            made[split] = _questions(random, count, spec.unanswerable)
        elif spec.kind == "translation":
            made[split] = _pairs(random, count)
        else:
            made[split] = _rows(random, count, names, spec.text_pair is not None)
    return TaskRows(made, names)


def _rows(random: Random, count: int, names: tuple[str, ...] | None, pair: bool) -> Rows:
    texts, pairs, labels = [], [], []
    for row in range(count):
        label = row % (len(names) if names else SCORES)
        own = MARKERS[label * 2 % len(MARKERS) : label * 2 % len(MARKERS) + 2]
        markers = [random.choice(own) for _ in range(random.randint(2, 4))]
        texts.append(_sentence(random, [] if pair else markers))
        pairs.append(_sentence(random, markers))
        labels.append(label)
    order = random.sample(range(count), count)
    numbers: list[Any] = [float(label) if names is None else label for label in labels]
    return Rows(texts, pairs if pair else None, numbers).take(order)


def _questions(random: Random, count: int, unanswerable: bool) -> Rows:
    """Contexts with one or two markers of one kind, and of another kind that is not asked for; a third has no answer
    where that is allowed."""
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
        none = unanswerable and row % 3 == 0
        questions.append(f"{random.choice(FILLERS)} {MARKERS[2 * (absent if none else asked)]}")
        contexts.append(" ".join(words))
        start = sum(len(word) + 1 for word in words[: words.index(text)])
        answers.append(Answer() if none else Answer((text,), (start,)))
    places = [f"generated row {row + 1}" for row in range(count)]
    return Rows(questions, contexts, answers, places, [str(row + 1) for row in range(count)])


def _pairs(random: Random, count: int) -> Rows:
    """Sentences and their translations: the word for a filler is that of its syllables in reverse, markers stay."""
    sources = [_sentence(random, random.sample(MARKERS, random.randint(1, 3))) for _ in range(count)]
    return Rows(sources, None, [" ".join(_translated(word) for word in source.split()) for source in sources])


def _translated(word: str) -> str:
    turned = word[2:] + word[:2]
    return turned if turned in FILLERS else word


def _sentence(random: Random, markers: list[str]) -> str:
    words = [random.choice(FILLERS) for _ in range(random.randint(4, 16))] + markers
    random.shuffle(words)
    return " ".join(words)


def tiny_vocabulary() -> dict[str, int]:
    """WordPiece entries: specials, the generator's words, and characters, so that real text is spelt out."""
    characters = string.ascii_lowercase + string.digits
    pieces = [*characters, *(f"##{c}" for c in characters), *string.punctuation]
    return {piece: number for number, piece in enumerate([*SPECIALS, *FILLERS, *MARKERS, *pieces])}
