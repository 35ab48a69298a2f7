"""Calibration samples and evaluation text of a text task, as token ids: a function of files, seed and tokenizer."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunekit.config.errors import listed, quoted
from prunekit.data.cells import is_missing, label_fault, spelling
from prunekit.data.errors import DataError
from prunekit.data.faults import Faults
from prunekit.data.loading import generator_of
from prunekit.data.synthetic import FILLERS, MARKERS
from prunekit.data.text.rendering import is_text, render
from prunekit.data.text.spec import ChoiceSpec, Corpus, CorpusFiles, GenerationSpec, TextSource, TextSpec

Stream = Literal["open", "domain", "mixed"]


@dataclass(frozen=True)
class TokenSample:
    """One calibration sequence; `counts` marks the tokens whose prediction enters the loss (None: all)."""

    ids: Int[Tensor, "tokens"]
    counts: Int[Tensor, "tokens"] | None = None


@dataclass(frozen=True)
class Documents:
    """Rendered documents of one corpus.

    `prompts` is the number of leading prompt characters of each calibration document. `overlap` calibration documents
    were left out because they are also evaluated, `duplicates` because they are exact repetitions, and `empty` rows of
    both kinds because nothing in them can be seen.
    """

    calibration: list[str]
    evaluation: list[str]
    prompts: list[int]
    overlap: int = 0
    duplicates: int = 0
    empty: int = 0


@dataclass(frozen=True)
class Question:
    """A prompt, its possible continuations, and the index of the correct one."""

    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Texts:
    """All texts of a task before tokenisation."""

    spec: TextSpec
    documents: Mapping[str, Documents]
    questions: list[Question] = field(default_factory=list)
    references: list[tuple[str, str]] = field(default_factory=list)


# -- reading -----------------------------------------------------------------------------------------


def read_texts(spec: TextSpec, source: TextSource) -> Texts:
    """Read, render and split all files of a task.

    Raises:
        DataError: a file that cannot be read, a template with a column that the file does not have, or a corpus
            without documents.
    """
    if spec.synthetic_rows:
        return _synthetic(spec)
    assert source.open is not None
    assert source.domain is not None
    documents = {
        "open": read_documents(spec.open, source.open, "open"),
        "domain": read_documents(spec.domain, source.domain, "domain"),
    }
    questions = [] if spec.choice is None or source.choice is None else read_questions(spec.choice, source.choice)
    references = []
    if spec.generation is not None and source.generation is not None:
        references = _references(spec.generation, source.generation)
        documents = {name: _drop_references(corpus, references) for name, corpus in documents.items()}
    return Texts(spec, documents, questions, references)


def read_documents(corpus: Corpus, files: CorpusFiles, name: str) -> Documents:
    """Return the documents of a corpus, without empty ones and exact repetitions.

    A calibration document that is also in the evaluation text, up to case and white space, is left out and counted.

    Raises:
        DataError: no document is left to calibrate on, or to evaluate.
    """
    documents, empty = _render(corpus, files.calibration, name)
    rendered, duplicates = _drop_duplicates(documents)
    if files.evaluation is not None:
        measured, also_empty = _render(corpus, files.evaluation, name)
        held_out = [prompt + completion for prompt, completion in measured]
        empty += also_empty
    else:
        order = sorted("".join(pair) for pair in rendered)
        order.sort(key=_hash_fraction)
        held_out = order[: math.ceil(corpus.held_out * len(order))]
        excluded = set(held_out)
        rendered = [pair for pair in rendered if "".join(pair) not in excluded]
    evaluated = {_normalise(text) for text in held_out}
    kept = [(p, c) for p, c in rendered if _normalise(p + c) not in evaluated]
    if not kept or not held_out:
        raise DataError(
            f"task.{name}: {files.calibration} leaves {len(kept)} documents to calibrate on and {len(held_out)} to "
            f"measure on.\nAllowed: 1 or more of each.\nGive more text, or task.{name}.eval_file=..."
        )
    overlap = len(rendered) - len(kept)
    return Documents([p + c for p, c in kept], held_out, [len(p) for p, _ in kept], overlap, duplicates, empty)


def _render(corpus: Corpus, path: Path, name: str) -> tuple[list[tuple[str, str]], int]:
    """Return prompt and completion of each row, "" if there is no completion, and how many rows were empty."""
    rows = render(path, f"task.{name}", corpus.template, corpus.completion)
    pairs = [(texts[0], texts[1]) for _, texts in rows if is_text("".join(texts))]
    return pairs, len(rows) - len(pairs)


def _drop_duplicates(pairs: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str]], int]:
    """Return the distinct pairs in order, and the number of repetitions."""
    distinct = list(dict.fromkeys(pairs))
    return distinct, len(pairs) - len(distinct)


def _normalise(text: str) -> str:
    return " ".join(text.lower().split())


def _hash_fraction(text: str) -> float:
    """Return a number in 0..1 that depends only on the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def read_questions(spec: ChoiceSpec, path: Path) -> list[Question]:
    """Return the first `rows` questions in an order that depends only on their text.

    Raises:
        DataError: an answer that is not among the choices.
    """
    questions: list[Question] = []
    faults, number_of = Faults(), {choice: place for place, choice in enumerate(spec.choices)}
    for number, (row, (prompt,)) in enumerate(render(path, "task.choice", spec.template), 1):
        if spec.answer not in row:
            raise DataError(
                f"{path} has no column {quoted(spec.answer)}; its columns are {listed(row)}.\n"
                "Allowed: the column of the correct choice.\nName it with task.choice.answer=..."
            )
        answer = row[spec.answer]
        place = None if is_missing(answer) or label_fault(answer) else number_of.get(spelling(answer))
        if place is None or not is_text(prompt):
            what = f"column {quoted(spec.answer)} holds {quoted(answer)}" if place is None else "the prompt is empty"
            faults.add(f"row {number}", f": {what}")
        else:
            questions.append(Question(prompt, spec.choices, place))
    if faults:
        raise DataError(
            f"{path}, {faults}.\nAllowed: {listed(spec.choices)}, and a prompt.\n"
            "Correct these rows, task.choice.choices or task.choice.answer."
        )
    return sorted(questions, key=lambda question: _hash_fraction(question.prompt))[: spec.rows]


def _references(spec: GenerationSpec, path: Path) -> list[tuple[str, str]]:
    rows = render(path, "task.generation", spec.template, spec.reference)
    faults = Faults()
    for number, (_, texts) in enumerate(rows, 1):
        if not all(map(is_text, texts)):
            faults.add(f"row {number}", ": the prompt or its reference is empty")
    if faults:
        raise DataError(f"{path}, {faults}.\nAllowed: rows with both.\nCorrect or remove these rows.")
    pairs = [(texts[0], texts[1]) for _, texts in rows]
    return sorted(pairs, key=lambda pair: _hash_fraction(pair[0]))[: spec.rows]


def _drop_references(documents: Documents, references: Sequence[tuple[str, str]]) -> Documents:
    """Drop calibration documents that contain a prompt with its reference text, and count them as overlap."""
    scored = [_normalise(f"{prompt} {reference}") for prompt, reference in references]
    keep = [not any(text in _normalise(document) for text in scored) for document in documents.calibration]
    if not any(keep):
        raise DataError(
            "every document to calibrate on is also generated and scored by ROUGE.\n"
            "Allowed: at least one that is not.\nGive task.generation.file=..., or fewer task.generation.rows."
        )
    return dataclasses.replace(
        documents,
        calibration=list(compress(documents.calibration, keep)),
        prompts=list(compress(documents.prompts, keep)),
        overlap=documents.overlap + keep.count(False),
    )


def _synthetic(spec: TextSpec) -> Texts:
    """Generate documents: the domain repeats a few words, the open corpus a few others."""
    documents = {}
    for name, words in (("open", FILLERS), ("domain", MARKERS)):
        random = Random(name)
        texts = [
            " ".join(random.choice(words) for _ in range(random.randint(30, 60)))
            for _ in range(spec.synthetic_rows or 1)
        ]
        documents[name] = Documents(texts[:-4], texts[-4:], [0] * len(texts[:-4]))
    questions = [Question("ba de", (FILLERS[n], MARKERS[n]), n % 2) for n in range(4)] if spec.choice else []
    references = [("ba de", "fi go")] if spec.generation else []
    return Texts(spec, documents, questions, references)


# -- tokens ------------------------------------------------------------------------------------------


def calibration_samples(
    texts: Texts, stream: Stream, tokenizer: PreTrainedTokenizerBase, seed: int, longest: int
) -> list[TokenSample]:
    """Return the samples of one stream, none longer than `longest`; "mixed" is half of the samples of each corpus.

    Raises:
        DataError: there is too little text.
    """
    if stream == "mixed":
        parts = [calibration_samples(texts, name, tokenizer, seed, longest) for name in ("open", "domain")]
        return [sample for part in parts for sample in part[: (len(part) + 1) // 2]]
    corpus = texts.spec.open if stream == "open" else texts.spec.domain
    documents = texts.documents[stream]
    length = min(corpus.seqlen, longest)
    order = torch.randperm(len(documents.calibration), generator=generator_of("calibration", stream, seed)).tolist()
    if corpus.pack == "packed":
        samples = _pack_documents(documents.calibration, order, corpus.samples, length, tokenizer, seed)
    else:
        # only the domain has completions
        completion_only = stream == "domain" and texts.spec.loss_on == "completion"
        samples = _take_examples(documents, order, corpus.samples, length, tokenizer, completion_only)
    if len(samples) < corpus.samples:
        raise DataError(
            f"task.{stream} gives {len(samples)} samples of {length} tokens, "
            f"not task.{stream}.samples={corpus.samples}.\n"
            f"Allowed: up to {max(1, len(samples))} with this text.\n"
            f"Lower task.{stream}.samples or task.{stream}.seqlen, or give more text."
        )
    return samples


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text, with one beginning where both the tokenizer and a template write it."""
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    begins_twice = tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2
    return ids[1:] if begins_twice else ids


def _pack_documents(
    documents: Sequence[str],
    order: Sequence[int],
    count: int,
    length: int,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
) -> list[TokenSample]:
    """Return samples that each start in another document and continue in the next ones.

    A sample that fits in one document starts at a random place of it.
    """
    random, used = Random(f"window {seed}"), set[int]()
    samples: list[TokenSample] = []
    for start in order:
        if len(samples) == count:
            break
        if start in used:
            continue
        ids: list[int] = []
        place = start
        while len(ids) < length and place < len(documents) and place not in used:
            # part of a very long document is enough: ten characters per token are more than needed
            text = documents[place]
            if not ids and len(text) > 20 * length:
                begin = random.randrange(len(text) - 10 * length)
                text = text[begin : begin + 10 * length]
            ids += token_ids(tokenizer, text if not ids else "\n" + text)
            used.add(place)
            place += 1
        if len(ids) >= length:
            begin = random.randint(0, len(ids) - length) if place == start + 1 else 0
            samples.append(TokenSample(torch.tensor(ids[begin : begin + length])))
    return samples


def _take_examples(
    documents: Documents,
    order: Sequence[int],
    count: int,
    length: int,
    tokenizer: PreTrainedTokenizerBase,
    completion_only: bool,
) -> list[TokenSample]:
    """Return samples of one document each, truncated at the end; with `completion_only` prompt tokens do not count."""
    samples: list[TokenSample] = []
    for place in order:
        if len(samples) == count:
            break
        text, prompt = documents.calibration[place], documents.prompts[place]
        ids = token_ids(tokenizer, text)[:length]
        if len(ids) < 2:
            continue
        counts = None
        if completion_only:
            before = min(len(token_ids(tokenizer, text[:prompt])), len(ids))
            if before >= len(ids):
                continue
            counts = torch.tensor([0] * before + [1] * (len(ids) - before))
        samples.append(TokenSample(torch.tensor(ids), counts))
    return samples


def evaluation_ids(texts: Texts, stream: str, tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, "tokens"]:
    """Return the first `eval_tokens` tokens of a corpus' held-out documents; their order depends only on the files.

    Documents from an evaluation file keep their order; held-out ones are sorted by content hash. One document
    contributes at most an eighth of the tokens, but up to 64 in any case.

    Raises:
        DataError: fewer than 2 tokens.
    """
    count = texts.spec.eval_tokens
    documents = texts.documents[stream].evaluation
    ids: list[int] = []
    for text in documents:
        ids += token_ids(tokenizer, text[: 10 * count] + "\n")[: max(64, count // 8)]
        if len(ids) >= count:
            break
    if len(ids) < 2:
        raise DataError(
            f"task.{stream}: the evaluation text has {len(ids)} tokens.\nAllowed: 2 or more.\nGive more text."
        )
    return torch.tensor(ids[:count])


def samples_digest(samples: Sequence[TokenSample]) -> str:
    """Return the hex digest of the samples' tokens."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((sample.ids.tolist(), None if sample.counts is None else sample.counts.tolist())).encode())
    return digest.hexdigest()
